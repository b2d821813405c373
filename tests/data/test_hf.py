from __future__ import annotations

import builtins
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image

from frostline.data import FolderData, ImageData
from frostline.data.hf import HuggingFaceData
from frostline.errors import ConfigError, DataError

datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")

# datasets leaves the tables beside pictures open
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*metadata:ResourceWarning")

CONF = Path(__file__).parents[2] / "conf" / "data"
CLASSES = ("cat", "dev board", "test tube")
MakeTree = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def tree(make_tree: MakeTree) -> Path:
    """Class folders with names that datasets would take for splits."""
    splits = {"train": 6, "val": 2, "test": 3}
    return make_tree({f"{split}/{name}": count for split, count in splits.items() for name in CLASSES}, root="tree [1]")


def loaded(root: Path | str, **settings: Any) -> HuggingFaceData:
    data = HuggingFaceData(str(root), **{"val_fraction": 0.0, **settings})
    data.load()
    return data


def counts(data: ImageData) -> dict[str, list[int]]:
    return {split: data.class_counts(split) for split in data.splits}


def names(data: ImageData, split: str) -> list[str]:
    return [data.splits[split].name(index) for index in range(len(data.splits[split]))]


def rows(tree: Path, split: str) -> dict[str, list[Any]]:
    """What a person would save: encoded files with their paths, class numbers and a group."""
    files = sorted((tree / split).rglob("*.jpg"))
    return {
        "image": [{"bytes": file.read_bytes(), "path": file.relative_to(tree).as_posix()} for file in files],
        "label": [CLASSES.index(file.parent.name) for file in files],
        "patient": [f"p{number // 2}" for number in range(len(files))],
    }


def table(columns: Mapping[str, list[Any]], **features: Any) -> Any:
    known = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    known |= {name: datasets.Value("string") for name in columns if name not in known}
    chosen = {name: feature for name, feature in {**known, **features}.items() if name in columns}
    return datasets.Dataset.from_dict(dict(columns), features=datasets.Features(chosen))


def three(tree: Path) -> Any:
    saved_as = {"train": "train", "validation": "val", "test": "test"}
    return datasets.DatasetDict({name: table(rows(tree, split)) for name, split in saved_as.items()})


def write_parquet(root: Path, tables: Any) -> Path:
    (root / "data").mkdir(parents=True)
    for split, found in tables.items():
        found.to_parquet(str(root / "data" / f"{split}-00000-of-00001.parquet"))
    return root


def test_config_names_every_argument_with_its_default() -> None:
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / "hf.yaml"))
    own = set(inspect.signature(HuggingFaceData).parameters) - set(inspect.signature(ImageData).parameters)
    assert node.pop("defaults")[0] == "common/files@_here_"  # which has root and file_limit
    assert node.pop("_target_") == "frostline.data.HuggingFaceData"
    assert all(value is None for value in node.values())
    assert own == {*node, "root", "file_limit"}


# --- layouts ---


def laid_out(layout: str, tree: Path, root: Path) -> Path:
    if layout == "class folders":
        return tree
    if layout == "saved":
        three(tree).save_to_disk(str(root))
    elif layout == "parquet":
        write_parquet(root, three(tree))
    elif layout == "parquet in folders":
        for split in ("train", "valid", "test"):
            (root / split).mkdir(parents=True)
            table(rows(tree, split.replace("valid", "val"))).to_parquet(str(root / split / "0000.parquet"))
    elif layout == "card":
        write_parquet(root, three(tree))
        (root / "data").rename(root / "stuff")
        listed = "".join(
            f"  - split: {split}\n    path: stuff/{split}-*\n" for split in ("train", "validation", "test")
        )
        (root / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{listed}---\n# x\n")
    else:
        shutil.copytree(tree, root)
        for split in ("train", "val", "test"):
            files = sorted(file.relative_to(root / split).as_posix() for file in (root / split).rglob("*.jpg"))
            lines = [f"{file},{file.split('/')[0]},p{number // 2}" for number, file in enumerate(files)]
            (root / split / "metadata.csv").write_text("\n".join(["file_name,label,patient", *lines]) + "\n")
    return root


LAYOUTS = ("class folders", "saved", "parquet", "parquet in folders", "card", "metadata")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_pictures_in_every_layout(tree: Path, tmp_path: Path, layout: str) -> None:
    folder = FolderData(str(tree), val_fraction=0.0)
    folder.load()
    data = loaded(laid_out(layout, tree, tmp_path / ("set" if layout == "card" else "set [2]")))
    assert data.classes == folder.classes == CLASSES
    assert counts(data) == counts(folder) == {"train": [6] * 3, "val": [2] * 3, "test": [3] * 3}
    for split in data.splits:
        ours, theirs = data.splits[split], folder.splits[split]
        order, other = np.argsort(ours.digests()), np.argsort(theirs.digests())
        assert (ours.digests()[order] == theirs.digests()[other]).all()
        assert (ours.labels[order] == theirs.labels[other]).all()
        first, same = int(order[0]), int(other[0])
        assert ours.content(first) == theirs.content(same)
        assert np.array_equal(np.asarray(ours.image(first)), np.asarray(theirs.image(same)))
    assert not any("Ignored" in note for note in data.notes)


def test_derived_splits_are_those_of_the_same_pictures_in_folders(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    table(rows(tree, "train")).save_to_disk(str(root))
    settings = {"val_fraction": 0.2, "test_fraction": 0.2, "split_seed": 3}
    data = loaded(root, **settings)
    folder = FolderData(str(tree / "train"), **settings)
    folder.load()
    assert counts(data) == counts(folder)
    for split in ("train", "val", "test"):
        assert set(data.splits[split].digests().tolist()) == set(folder.splits[split].digests().tolist())


def test_a_single_parquet_file_and_a_dataset_without_splits(tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "odd name.parquet"
    table(rows(tree, "test")).to_parquet(str(file))
    assert counts(loaded(file)) == {"train": [3] * 3}
    table(rows(tree, "test")).save_to_disk(str(tmp_path / "saved"))
    assert counts(loaded(tmp_path / "saved")) == {"train": [3] * 3}


def test_plain_parquet_of_another_program(tree: Path, tmp_path: Path) -> None:
    """Binary pictures and class names, and nothing that datasets wrote."""
    found = rows(tree, "train")
    plain = {
        "image": [entry["bytes"] for entry in found["image"]],
        "label": [["10", "9", "é 日本, x=1"][number] for number in found["label"]],
    }
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(plain), tmp_path / "set" / "pictures.parquet")
    data = loaded(tmp_path / "set")
    assert data.classes == ("10", "9", "é 日本, x=1")
    assert data.splits["train"].image(0).size == (12, 10)
    assert names(data, "train")[0] == "train/000000"
    assert loaded(tmp_path / "set", classes=["é 日本, x=1", "9", "10"]).classes[0] == "é 日本, x=1"


def test_names_are_paths_where_they_tell_the_pictures_apart(tree: Path, tmp_path: Path) -> None:
    data = loaded(write_parquet(tmp_path / "a", three(tree)))
    assert names(data, "val")[:2] == ["val/cat/00.jpg", "val/cat/01.jpg"]
    short = rows(tree, "train")
    for entry in short["image"]:
        entry["path"] = Path(entry["path"]).name
    data = loaded(write_parquet(tmp_path / "b", {"train": table(short)}))
    assert names(data, "train")[-1] == "train/000017"
    data = loaded(laid_out("metadata", tree, tmp_path / "c"))
    assert names(data, "val")[0] == "val/cat/00.jpg"
    assert data.splits["val"].path(0) == tmp_path / "c/val/cat/00.jpg"


def test_groups_are_numbered_over_all_splits(tree: Path, tmp_path: Path) -> None:
    data = loaded(write_parquet(tmp_path / "set", three(tree)), group_column="patient")
    train, val = (data.splits[split].groups for split in ("train", "val"))
    assert train is not None
    assert val is not None
    assert train.tolist() == [number // 2 for number in range(18)]
    assert val.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_changed_file_is_read_anew_though_its_time_is_the_same(tree: Path, tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "set", three(tree))
    file = root / "data/train-00000-of-00001.parquet"
    assert counts(loaded(root))["train"] == [6, 6, 6]
    before = file.stat()
    table(rows(tree, "val")).to_parquet(str(file))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert counts(loaded(root))["train"] == [2, 2, 2]


def test_pictures_that_come_to_a_folder_with_metadata_are_seen(tree: Path, tmp_path: Path) -> None:
    root = laid_out("metadata", tree, tmp_path / "set")
    assert counts(loaded(root))["train"] == [6, 6, 6]
    shutil.copy(root / "train/cat/00.jpg", root / "train/cat/new.jpg")
    with (root / "train/metadata.csv").open("a") as file:
        file.write("cat/new.jpg,cat,p\n")
    assert counts(loaded(root))["train"] == [7, 6, 6]


def test_nothing_is_told_to_the_network(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``datasets`` counts what is loaded by a request; neither that nor an address in a card may be asked for."""
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    asked: list[Any] = []
    monkeypatch.setattr("datasets.load.get_session", lambda *_, **__: asked.append("session"))
    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", lambda *_, **__: asked.append("hub"))
    loaded(write_parquet(tmp_path / "a", three(tree)))
    loaded(laid_out("metadata", tree, tmp_path / "b"))
    loaded(laid_out("card", tree, tmp_path / "c"))
    assert asked == []
    assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS is True
    assert datasets.config.HF_HUB_OFFLINE is False


def test_the_table_stays_a_mapped_file(tree: Path, tmp_path: Path) -> None:
    three(tree).save_to_disk(str(tmp_path / "set"))
    before = pa.total_allocated_bytes()
    data = loaded(tmp_path / "set")
    assert pa.total_allocated_bytes() - before < 5_000 < sum(len(data.splits["train"].content(i)) for i in range(18))


# --- splits, labels and classes ---


def test_other_splits_are_named_and_a_single_one_is_train(tree: Path, tmp_path: Path) -> None:
    tables = three(tree)
    tables["dev"] = tables.pop("test")
    tables["extra"] = tables["dev"]
    tables.save_to_disk(str(tmp_path / "a"))
    data = loaded(tmp_path / "a")
    assert list(data.splits) == ["train", "val"]
    assert "Ignored the splits dev, extra." in data.notes
    datasets.DatasetDict({"full": tables["train"]}).save_to_disk(str(tmp_path / "b"))
    data = loaded(tmp_path / "b")
    assert (list(data.splits), data.notes[0]) == (["train"], "The only split, 'full', is taken as train.")


def test_a_test_split_whose_labels_are_kept_secret_is_left_out(tree: Path, tmp_path: Path) -> None:
    tables = three(tree)
    secret = rows(tree, "test")
    secret["label"] = [-1] * len(secret["label"])
    tables["test"] = table(secret)
    data = loaded(write_parquet(tmp_path / "set", tables))
    assert list(data.splits) == ["train", "val"]
    assert "Ignored the test split, which has no labels." in data.notes


def test_a_class_without_pictures_is_left_out_and_classes_can_be_ordered(tree: Path, tmp_path: Path) -> None:
    feature = datasets.ClassLabel(names=[*CLASSES, "unused"])
    columns = rows(tree, "train")
    table(columns, label=feature).save_to_disk(str(tmp_path / "a"))
    data = loaded(tmp_path / "a")
    assert data.classes == CLASSES
    assert "The class 'unused' without a picture in any split is left out." in data.notes
    ordered = loaded(tmp_path / "a", classes=CLASSES[::-1])
    assert ordered.classes == CLASSES[::-1]
    assert ordered.splits["train"].labels.tolist() == (2 - data.splits["train"].labels).tolist()
    assert loaded(tree, classes=CLASSES[::-1]).classes == CLASSES[::-1]


def test_the_order_of_a_class_label_is_kept(tree: Path, tmp_path: Path) -> None:
    table(rows(tree, "train"), label=datasets.ClassLabel(names=["z", "b", "a"])).save_to_disk(str(tmp_path / "a"))
    assert loaded(tmp_path / "a").classes == ("z", "b", "a")


def test_the_label_column_is_found_or_asked_for(tree: Path, tmp_path: Path) -> None:
    columns = rows(tree, "train")
    fine = datasets.ClassLabel(names=list(CLASSES))
    renamed = {"image": columns["image"], "fine_label": columns["label"], "patient": columns["patient"]}
    table(renamed, fine_label=fine).save_to_disk(str(tmp_path / "a"))
    assert loaded(tmp_path / "a").classes == CLASSES
    both = {**renamed, "coarse_label": [0, 1] * 9}
    coarse = datasets.ClassLabel(names=["x", "y"])
    table(both, fine_label=fine, coarse_label=coarse).save_to_disk(str(tmp_path / "b"))
    with pytest.raises(
        DataError, match=r"several columns that may be the label \(fine_label, coarse_label\)"
    ) as caught:
        loaded(tmp_path / "b")
    assert "image, fine_label, patient, coarse_label" in str(caught.value.mend)
    assert loaded(tmp_path / "b", label_column="coarse_label").classes == ("x", "y")
    assert loaded(tmp_path / "b", label_column="patient").classes[:2] == ("p0", "p1")


# --- what cannot be used ---


@pytest.mark.parametrize(
    ("settings", "problem", "mend"),
    [
        ({"label_column": "labell"}, r"data\.label_column=labell, but train of .* has no such column", "'label'"),
        ({"image_column": "nothing"}, r"data\.image_column=nothing", "Columns: image, label, patient."),
        ({"group_column": "patients"}, r"data\.group_column=patients", "Did you mean 'patient'?"),
        ({"revision": "main"}, r"data\.revision is set, but .* is on this machine", "data.revision=null"),
        ({"config": "small"}, "has no configuration 'small'", "data"),
        ({"classes": ["a", "a"]}, "holds 'a' twice", "once"),
    ],
)
def test_faults_of_the_config(tree: Path, tmp_path: Path, settings: dict[str, Any], problem: str, mend: str) -> None:
    root = write_parquet(tmp_path / "set", three(tree))
    with pytest.raises(ConfigError, match=problem) as caught:
        loaded(root, **settings)
    assert mend in str(caught.value.mend)


def test_columns_make_no_sense_for_class_folders(tree: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.group_column is set, but .* has class folders"):
        loaded(tree, group_column="patient")


def changed(tree: Path, change: str) -> Any:
    columns = rows(tree, "train")
    if change == "label":
        columns["label"][4] = None
    elif change == "minus one":
        columns["label"][4] = -1
    elif change == "image":
        columns["image"] = ["text"] * 18
        return table({**columns, "label": columns["label"], "image": list(range(18))}, image=datasets.Value("int64"))
    elif change == "several":
        columns["label"] = [[number] for number in columns["label"]]
        return table(columns, label=datasets.List(datasets.ClassLabel(names=list(CLASSES))))
    elif change == "group":
        columns["patient"][3] = None
    elif change == "no image":
        del columns["image"]
    elif change == "no label":
        del columns["label"]
    return table(columns)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("label", "Row 5 of train has no label"),
        ("minus one", "Row 5 of train has no label"),
        ("image", "column 'image' of .* holds no pictures, but int64"),
        ("several", "'label' of train holds several labels per picture"),
        ("group", "The group of row 4 of train is empty"),
        ("no image", "has no column of pictures"),
        ("no label", "has no column called label"),
    ],
)
def test_what_cannot_be_used_is_named(tree: Path, tmp_path: Path, change: str, problem: str) -> None:
    changed(tree, change).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(DataError, match=problem):
        loaded(tmp_path / "set", group_column="patient")


def test_a_label_outside_the_classes_names_row_and_split(tree: Path, tmp_path: Path) -> None:
    tables = three(tree)
    tables.save_to_disk(str(tmp_path / "a"))
    with pytest.raises(DataError, match="The label 'test tube' of row 13 of train is none of the 2 classes"):
        loaded(tmp_path / "a", classes=["cat", "dev board"])
    other = table(rows(tree, "val"), label=datasets.ClassLabel(names=list(CLASSES[::-1])))
    tables["validation"] = other
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "b"))
    with pytest.raises(DataError, match="classes of 'label' in val are other ones than in train, or in another order"):
        loaded(tmp_path / "b")


def test_splits_in_some_names_alone_and_no_train(tree: Path, tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "a", three(tree))
    (root / "data/train-00000-of-00001.parquet").rename(root / "data/rest.parquet")
    with pytest.raises(DataError, match=r"names splits in some files, but not in data/rest\.parquet"):
        loaded(root)
    (root / "data/rest.parquet").unlink()
    with pytest.raises(DataError, match=r"has no train split, but val, test|but test, val"):
        loaded(root)


def test_limits_and_damage_of_pictures_in_the_table(tree: Path, tmp_path: Path) -> None:
    columns = rows(tree, "train")
    columns["image"][1] = {"bytes": b"no picture", "path": "train/bad.jpg"}
    columns["image"][2] = {"bytes": None, "path": "train/away.jpg"}
    columns["image"][3] = {"bytes": None, "path": "https://example.org/x.jpg"}
    columns["image"][4] = {"bytes": None, "path": None}
    file = tmp_path / "set.parquet"
    pq.write_table(pa.table(columns), file)
    train = loaded(file).splits["train"]
    assert train.image(0).size == (12, 10)
    for index, problem in enumerate((r"bad\.jpg|000001", r"away\.jpg does not exist", "is an address", "is empty"), 1):
        with pytest.raises(DataError, match=problem):
            train.image(index)
    assert [train.path(index) is None for index in range(5)] == [True, True, False, True, True]
    assert len(set(train.digests().tolist())) == 18
    with pytest.raises(DataError, match="limit of 100"):
        loaded(file, pixel_limit=100).splits["train"].image(0)
    with pytest.raises(DataError, match="limit of 50"):
        loaded(file, file_limit=50).splits["train"].image(0)


def test_a_card_in_a_folder_that_datasets_takes_for_a_pattern(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"finds no files below .*set \[2\]"):
        loaded(laid_out("card", tree, tmp_path / "set [2]"))


def test_damaged_files_are_named(tree: Path, tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "a", three(tree))
    (root / "data/train-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"a cannot be read: "):
        loaded(root)
    three(tree).save_to_disk(str(tmp_path / "b"))
    next((tmp_path / "b/train").glob("*.arrow")).write_bytes(b"no")
    with pytest.raises(DataError, match=r"b cannot be read: "):
        loaded(tmp_path / "b")
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(DataError, match=r"x\.csv is no \.parquet file"):
        loaded(tmp_path / "x.csv")


def test_a_missing_folder_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="does not exist"):
        loaded(tmp_path / "nothing")
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="needs the package datasets") as caught:
        loaded(tmp_path)
    assert caught.value.mend == "pip install 'frostline[hf]'"


# --- the hub ---

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOADER = """
import sys
from frostline.data.hf import HuggingFaceData
from frostline.errors import FrostlineError
for argument in sys.argv[1:]:
    name, _, revision = argument.partition("@")
    try:
        data = HuggingFaceData(name, revision=revision or None, val_fraction=0.0)
        data.load()
    except FrostlineError as fault:
        print("FAULT", fault.exit_code, " ".join(str(fault).split()))
    else:
        print("LOADED", data.classes, {name: len(split) for name, split in data.splits.items()}, *data.notes)
"""


class Hub:
    """The files of one data set, ``org/set``, and the requests that came for them."""

    def __init__(self, folder: Path) -> None:
        files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        self.requests: list[tuple[str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.requests.append((self.command, self.path))
                path = self.path.partition("?")[0]
                if path.startswith("/api/datasets/org/set/tree/"):
                    under = path.split("/", 7)[7] if path.count("/") > 6 else ""
                    self.answer_json(listing(files, under))
                elif path.startswith("/api/datasets/org/set"):
                    self.answer_json({"id": "org/set", "sha": COMMIT, "siblings": [], "tags": []})
                elif path.startswith("/datasets/org/set/resolve/"):
                    revision, _, name = path.removeprefix("/datasets/org/set/resolve/").partition("/")
                    known = revision in ("main", COMMIT)
                    self.answer(files.get(name) if known else None, "EntryNotFound" if known else "RevisionNotFound")
                else:
                    self.answer(None, "RepoNotFound")

            def answer_json(self, value: object) -> None:
                self.answer(json.dumps(value).encode(), "", "application/json")

            def answer(self, content: bytes | None, fault: str, kind: str = "application/octet-stream") -> None:
                self.send_response(404 if content is None else 200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content or b"")))
                if content is None:
                    self.send_header("X-Error-Code", fault)
                else:
                    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                    self.send_header("X-Linked-Size", str(len(content)))
                self.end_headers()
                if content is not None and self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


def listing(files: Mapping[str, bytes], under: str) -> list[dict[str, Any]]:
    start = f"{under}/" if under else ""
    below = [name for name in files if name.startswith(start)]
    folders = sorted(
        {start + name.removeprefix(start).partition("/")[0] for name in below if "/" in name[len(start) :]}
    )
    entries: list[dict[str, Any]] = [{"type": "directory", "path": name, "size": 0, "oid": "0"} for name in folders]
    here = [name for name in below if "/" not in name[len(start) :]]
    return entries + [{"type": "file", "path": name, "size": len(files[name]), "oid": "1"} for name in here]


def visit(home: Path, endpoint: str, *wanted: str, **environment: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    kept["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *wanted],
        check=False,
        capture_output=True,
        text=True,
        env={**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **environment},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # neither a traceback nor the client's own retries, nor bars
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_name_on_the_hub(tree: Path, tmp_path: Path) -> None:
    """Beside a server that speaks the hub's protocol, with nothing that answers, and told to stay offline."""
    hub = Hub(write_parquet(tmp_path / "set", three(tree)))
    thread = Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    home = tmp_path / "home"
    try:
        online = visit(home, hub.address, "org/set", f"org/set@{COMMIT}", "org/absent", "org/set@none")
        asked = list(hub.requests)
        offline = visit(home, hub.address, "org/set", "org/other", HF_HUB_OFFLINE="1")
        assert hub.requests == asked
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
    closed = visit(home, "http://127.0.0.1:9", "org/set", "org/other", f"org/set@{'1' * 40}", f"org/set@{COMMIT}")

    found = f"LOADED {CLASSES} {{'train': 18, 'val': 6, 'test': 9}}"
    assert online[0] == f"{found} The hub's 'org/set' at {COMMIT} is the newest one; data.revision keeps it."
    assert online[1] == found
    assert online[2].startswith("FAULT 5 The hub has no data set 'org/absent' that may be read here")
    assert online[3].startswith("FAULT 5 The hub's data set 'org/set' has no revision 'none'")
    downloads = [path for method, path in asked if method == "GET" and path.endswith(".parquet")]
    assert len(downloads) == len(set(downloads)) == 3

    assert offline[0].startswith(f"{found} The hub's 'org/set' at {COMMIT} is the newest one in the cache: HF_HUB_OFF")
    assert "'org/other' is not in the cache" in offline[1]
    assert "HF_HUB_OFFLINE is set" in offline[1]
    assert closed[0].startswith(f"{found} The hub's 'org/set' at {COMMIT} is the newest one in the cache: http://")
    assert closed[1].startswith(
        f"FAULT 5 The data set 'org/other' is not in the cache {home / 'datasets'}, and http://"
    )
    assert "refused" in closed[1]
    assert "Run once with a network" in closed[1]
    assert f"at commit {COMMIT}, not at {'1' * 40}" in closed[2]
    assert closed[3] == found


def test_pictures_in_the_table_are_rgb(tmp_path: Path) -> None:
    columns = {"image": [Image.new(mode, (5, 4)) for mode in ("L", "RGBA", "RGB", "1")], "label": [0, 1, 2, 0]}
    table(columns).save_to_disk(str(tmp_path / "set"))
    train = loaded(tmp_path / "set").splits["train"]
    assert {(train.image(index).mode, train.image(index).size) for index in range(4)} == {("RGB", (5, 4))}
    assert train.stamp(0) != train.stamp(1)
