"""Shards of the webdataset package, written by it, by tar and by enemies."""

from __future__ import annotations

import gc
import gzip
import inspect
import io
import json
import os
import pickle
import shutil
import tarfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from omegaconf import OmegaConf
from PIL import Image

from frostline.data import Augmentation
from frostline.data.shard_files import _opened
from frostline.data.shard_index import Shard, kept_arrays, read_index
from frostline.data.shard_patterns import expand_braces
from frostline.data.shards import ShardData, ShardSplit
from frostline.errors import ConfigError, DataError, FrostlineError, StorageError
from frostline.types import Preprocessing

CONF = Path(__file__).parents[2] / "conf" / "data"
Sample = dict[str, Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "frostline" / "shards"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "my shards"
    made.mkdir()
    return made


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def samples(count: int, start: int = 0, **more: Any) -> list[Sample]:
    """Samples of two classes in turn, as the package takes them."""
    return [
        {"__key__": f"{number:06d}", "jpg": jpeg(number), "cls": number % 2, **more}
        for number in range(start, start + count)
    ]


def write(path: Path, content: Iterable[Sample]) -> Path:
    """A shard as the package writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=True) as writer:
        for sample in content:
            writer.write(sample)
    return path


def tar(path: Path, members: Mapping[str, bytes] | Iterable[tuple[str, bytes]], **options: Any) -> Path:
    """An archive of any members, in order."""
    with tarfile.open(path, "w", **options) as opened:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return path


def pair(key: str, label: bytes = b"0", picture: str = "jpg", kind: str = "cls") -> list[tuple[str, bytes]]:
    return [(f"{key}.{picture}", jpeg(0)), (f"{key}.{kind}", label)]


def loaded(root: Path, **settings: Any) -> ShardData:
    data = ShardData(str(root), **settings)
    data.load()
    return data


def refused(root: Path, match: str, **settings: Any) -> FrostlineError:
    with pytest.raises(DataError, match=match) as caught:
        loaded(root, **settings)
    assert caught.value.exit_code == 3
    assert caught.value.mend
    return caught.value


def names(data: ShardData, split: str = "train") -> list[str]:
    return [data.splits[split].name(index) for index in range(len(data.splits[split]))]


def by_the_package(*paths: Path) -> list[tuple[str, bytes, int]]:
    """Key, picture and label of each sample, as the package reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files open
        read = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False)
        found = [(sample["__key__"], sample["jpg"], int(sample["cls"])) for sample in read]
        del read
        gc.collect()
    return found


def test_config_names_every_argument_with_its_default() -> None:
    own: Any = OmegaConf.to_container(OmegaConf.load(CONF / "webdataset.yaml"))
    files: Any = OmegaConf.to_container(OmegaConf.load(CONF / "common" / "files.yaml"))
    base: Any = OmegaConf.to_container(OmegaConf.load(CONF / "common" / "base.yaml"))
    assert own.pop("_target_") == "frostline.data.ShardData"
    node = {**base, **files, **own}
    node.pop("defaults")
    assert node.pop("root") == "???"
    signature = inspect.signature(ShardData).parameters.values()
    assert node == {each.name: each.default for each in signature if each.name != "root"}


def test_it_reads_what_the_package_reads(root: Path) -> None:
    with webdataset.ShardWriter(str(root / "train-%04d.tar"), maxcount=7, verbose=0) as writer:
        for sample in samples(30):
            writer.write(sample)
    shards = sorted(root.glob("*.tar"))
    assert len(shards) == 5
    data = loaded(root, val_fraction=0.0)
    split = data.splits["train"]
    expected = by_the_package(*shards)
    assert [(split.content(index), int(split.labels[index])) for index in range(30)] == [one[1:] for one in expected]
    assert names(data) == [f"train-{number // 7:04d}.tar/{one[0]}.jpg" for number, one in enumerate(expected)]
    assert data.classes == ("0", "1")
    with Image.open(io.BytesIO(expected[11][1])) as picture:
        assert split.image(11).tobytes() == picture.convert("RGB").tobytes()
    assert split.path(0) is None


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_it_reads_archives_of_tar(root: Path, form: int) -> None:
    deep = "d" * 90 + "/" + "k" * 80
    members = [pair(key, label) for key, label in [("./a/1", b"0"), ("a.b/é1", b"1"), (deep, b"1\n"), ("狐/2", b" 0")]]
    path = tar(root / "train.tar", [member for each in members for member in each], format=form)
    keys = ["./a/1", "a.b/é1", deep, "狐/2"]
    assert [key for key, _, _ in by_the_package(path)] == keys
    data = loaded(root, val_fraction=0.0)
    assert names(data) == [f"train.tar/{key}.jpg" for key in keys]
    assert data.splits["train"].labels.tolist() == [0, 1, 1, 0]


def test_what_is_no_sample_is_passed_over_as_the_package_does(root: Path) -> None:
    foreign = [("README", b"x"), (".hidden.jpg", b"x"), ("._0.jpg", b"x"), ("__info__", b"{}"), ("__a__/0.cls", b"7")]
    path = tar(root / "train.tar", [*foreign, *pair("0"), *pair("1", b"1")])
    with tarfile.open(path, "a") as opened:
        folder = tarfile.TarInfo("folder.d")
        folder.type = tarfile.DIRTYPE
        opened.addfile(folder)
    assert [key for key, _, _ in by_the_package(path)] == ["0", "1"]
    assert names(loaded(root, val_fraction=0.0)) == ["train.tar/0.jpg", "train.tar/1.jpg"]


def test_members_of_a_sample_need_not_be_neighbors(root: Path) -> None:
    apart = [(f"{key}.{kind}", content) for kind in ("cls", "JPG") for key, content in (("a", b"1"), ("b", b"0"))]
    apart = [(name, jpeg(0) if name.endswith("JPG") else content) for name, content in apart]
    tar(root / "train.tar", apart)
    data = loaded(root, val_fraction=0.0)
    assert data.splits["train"].labels.tolist() == [1, 0]
    assert data.splits["train"].image(1).size == (12, 10)


def test_official_splits_by_name(root: Path) -> None:
    write(root / "set-train-0.tar", samples(6))
    write(root / "set-train-1.tar", samples(6, 6))
    write(root / "Validation-0.tar", samples(4, 20))
    write(root / "test" / "0.tar", samples(2, 30))
    write(root / "extra.tar", samples(2, 40))
    (root / "notes.json").write_text("{}")
    data = loaded(root)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "val": 4, "test": 2}
    assert names(data, "test") == ["test/0.tar/000030.jpg", "test/0.tar/000031.jpg"]
    assert data.notes == ["Passed over 1 shard whose name says no split: extra.tar."]
    assert "extra.tar/000040.jpg" in names(loaded(root, train=["set-train-{0..1}.tar", "extra.tar"]))


def test_absent_splits_are_derived_and_an_empty_list_takes_none(root: Path) -> None:
    write(root / "a.tar", samples(40))
    assert {name: len(split) for name, split in loaded(root).splits.items()} == {"train": 34, "val": 6}
    write(root / "b.tar", samples(10, 50))
    assert [len(loaded(root, val=val).splits["train"]) for val in (None, "b.tar")] == [42, 40]
    (root / "a.tar").rename(root / "train-a.tar")
    (root / "b.tar").rename(root / "val-b.tar")
    assert len(loaded(root).splits["val"]) == 10
    assert len(loaded(root, val=[]).splits["val"]) == 6


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("t-{0008..0011}.tar", ["t-0008.tar", "t-0009.tar", "t-0010.tar", "t-0011.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{00..10..5}", ["00", "05", "10"]),
        ("{a,b{1..2}}.tar", ["a.tar", "b1.tar", "b2.tar"]),
        ("{x}-{}.tar", ["{x}-{}.tar"]),
        ("{a,b}{1,2}", ["a1", "a2", "b1", "b2"]),
        ("{x{1,2}}", ["{x1}", "{x2}"]),
        ("{a,}b", ["ab", "b"]),
    ],
)
def test_braces(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected
    braceexpand = pytest.importorskip("braceexpand")
    assert list(braceexpand.braceexpand(pattern)) == expected


def test_a_brace_that_does_not_end_is_a_character() -> None:
    assert expand_braces("a{b") == ["a{b"]


@pytest.mark.parametrize("pattern", ["{0..99999999999}", "{0..9999}{0..9999}", "{1..9}" * 9])
def test_braces_that_stand_for_too_much(pattern: str) -> None:
    with pytest.raises(ConfigError, match="more than 100,000"):
        expand_braces(pattern)


def test_names_are_taken_literally_first(root: Path) -> None:
    write(root / "train [1].tar", samples(4))
    assert len(loaded(root, train="train [1].tar", val=[], val_fraction=0.0).splits["train"]) == 4


@pytest.mark.parametrize(
    ("settings", "problem", "mend"),
    [
        ({"train": "trian-*.tar"}, r"No shard in .* matches data\.train=trian-\*\.tar", "train-0.tar"),
        ({"train": "train-{0..3}.tar"}, r"2 of 4 shards .* are not in .*: train-2\.tar, train-3\.tar\.", "Copy them"),
        ({"train": "*.tar"}, r"val-0\.tar of .* is in two splits, train and val by its name", "data.val='[]'"),
        (
            {"train": "train-*.tar", "val": "train-1.tar"},
            r"train-1\.tar of .* is in two splits, train and val\.",
            "Narrow",
        ),
        ({"test": "val-0.tar"}, r"val-0\.tar of .* is in two splits, val and test", "data.test"),
        ({"train": []}, "but none for train", "data.train="),
        ({"train": "*.json"}, r"is no \.tar file", "end in .tar"),
        ({"image_key": "npy"}, "No sample has a member 'npy'", "Set data.image_key. Members: cls, jpg."),
        ({"label_key": "clas"}, "No sample has a member 'clas'", "Did you mean 'cls'?"),
        ({"group_key": "json:patient"}, "No sample has a member 'json'", "data.group_key"),
        ({"classes": ["zero"]}, r"label '1' of '000001' in .*train-0\.tar \(cls\)", "positions 0 to 0"),
    ],
)
def test_what_the_config_has_wrong(root: Path, settings: dict[str, Any], problem: str, mend: str) -> None:
    for number, name in enumerate(("train-0.tar", "train-1.tar", "val-0.tar")):
        write(root / name, samples(4, 10 * number))
    (root / "sizes.json").write_text("{}")
    assert mend in str(refused(root, problem, **settings).mend)


@pytest.mark.parametrize("place", ["https://host/train-{0..9}.tar", "pipe:cat train.tar", "s3://bucket/t.tar"])
def test_urls_are_refused(root: Path, place: str) -> None:
    with pytest.raises(ConfigError, match="random access"):
        loaded(root, train=place)
    for typed in (place, str(root / place)):  # a run makes paths absolute
        with pytest.raises(ConfigError, match=rf"data\.root={place.partition(':')[0]}:.* is no path"):
            ShardData(typed).load()
    with pytest.raises(ConfigError, match="absolute"):
        loaded(root, train=str(root / "train.tar"))


def test_a_root_that_is_no_folder(root: Path) -> None:
    path = write(root / "train.tar", samples(4))
    assert "data.train=train.tar" in str(refused(path, "is a file").mend)
    refused(root / "nothing", "does not exist")
    refused(root.parent / "my shard", "does not exist")
    path.unlink()
    refused(root, r"has no \.tar file")


def test_the_same_file_by_two_names(root: Path) -> None:
    write(root / "train-0.tar", samples(4))
    (root / "train-1.tar").symlink_to("train-0.tar")
    refused(root, r"train-0\.tar and train-1\.tar of .* is twice in the train split")
    assert len(loaded(root, train=["train-0.tar", "train-0.*"], val_fraction=0.0).splits["train"]) == 4


@pytest.mark.parametrize("name", ["train-0.tar.gz", "train-0.tgz", "train-0.tar"])
def test_compressed_shards_are_refused(root: Path, name: str) -> None:
    plain = write(root / "x", samples(4))
    (root / name).write_bytes(gzip.compress(plain.read_bytes()))
    error = refused(root, f"{name} is compressed")
    assert "Decompress" in str(error.mend)
    refused(root, "is compressed", train="train-*")


def damaged(content: bytes, how: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(content)) as opened:
        second = opened.getmember("000001.cls").offset
    return {
        "cut in a picture": content[: second + 700],
        "cut in a header": content[: second + 100],
        "cut between members": content[:second],
        "without an end": content.rstrip(b"\0") + bytes(-len(content.rstrip(b"\0")) % 512),
        "hole": content[:second] + bytes(1024) + content[second + 1024 :],
        "reserved": content[:second] + bytes(2**21),
        "two archives": content + content,
        "flipped bit": content[: second + 130] + bytes([content[second + 130] ^ 1]) + content[second + 131 :],
        "no archive": b"PK\3\4" + bytes(5000),
    }[how]


@pytest.mark.parametrize(
    "how",
    [
        "cut in a picture",
        "cut in a header",
        "cut between members",
        "without an end",
        "hole",
        "reserved",
        "two archives",
        "flipped bit",
        "no archive",
    ],
)
def test_damaged_shards_are_named(root: Path, how: str) -> None:
    write(root / "train-0.tar", samples(6))
    path = write(root / "train-1.tar", samples(6))
    path.write_bytes(damaged(path.read_bytes(), how))
    error = refused(root, "is damaged or truncated")
    assert str(path) in error.problem
    assert error.mend == "Copy or download it again."


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo("1.jpg")
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("kind", "match"),
    [(tarfile.SYMTYPE, "is a link"), (tarfile.LNKTYPE, "is a link"), (tarfile.FIFOTYPE, "special file")],
)
def test_links_and_devices_are_refused(root: Path, kind: bytes, match: str) -> None:
    path = tar(root / "train.tar", pair("0"))
    with tarfile.open(path, "a") as opened:
        opened.addfile(special(kind, "/etc/passwd"))
    assert "'1.jpg'" in refused(root, match).problem


def test_sparse_files_and_negative_sizes_are_refused(root: Path) -> None:
    sparse = special(tarfile.GNUTYPE_SPARSE)
    with tarfile.open(root / "train.tar", "w", format=tarfile.GNU_FORMAT) as opened:
        opened.addfile(sparse)
    refused(root, "sparse")
    sparse_map = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1"}
    for extra, match in ((sparse_map, "is a sparse file"), ({"size": "-512"}, "goes beyond the end of the file")):
        info = tarfile.TarInfo("1.jpg")
        info.pax_headers = extra
        with tarfile.open(root / "train.tar", "w", format=tarfile.PAX_FORMAT) as opened:
            opened.addfile(info)
        refused(root, match)


def test_a_shard_is_empty_or_has_no_sample(root: Path) -> None:
    (root / "train-0.tar").touch()
    refused(root, r"train-0\.tar is an empty file")
    tar(root / "train-0.tar", {})
    refused(root, r"train-0\.tar has no sample")
    tar(root / "train-0.tar", {"README": b""})
    refused(root, r"train-0\.tar has no sample")


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ([*pair("a"), *pair("b", b"1"), *pair("a")], r"train\.tar cannot be used: 'a\.(jpg|cls)' is there twice.* 'a'"),
        ([*pair("a"), ("b.jpg", jpeg(1))], r"sample 'b' of .*train\.tar has no label \(cls\); its members are jpg"),
        ([*pair("a"), ("b.cls", b"1")], r"sample 'b' of .*train\.tar has no picture \(jpg\)"),
        ([("a.cls", b"0"), ("a.npy", b"")], r"samples of .*train\.tar have no picture, but cls, npy"),
        ([("a.jpg", b""), ("a.npy", b"")], r"samples of .*train\.tar have no label, but jpg, npy"),
        ([*pair("a"), *pair("b", picture="png")], "Several members of the samples are pictures: jpg, png"),
        ([*pair("a"), *pair("b"), ("b.json", b"{}")], r"unequal members: 'b' of .*train\.tar has cls, jpg, json"),
        ([*pair("a"), *pair("b", b"")], r"The cls of sample 'b' in .*train\.tar is empty"),
        ([*pair("a"), *pair("b", b"\xff")], r"The cls of sample 'b' in .*train\.tar is no UTF-8"),
        ([*pair("a"), *pair("b", b"1" * 2**21)], r"The cls of sample 'b' .* has 2097152 bytes"),
        (pair("a", b"{", kind="json"), r"The json of sample 'a' in .*train\.tar is no JSON"),
        (pair("a", b"[]", kind="json"), "is no JSON object"),
        (pair("a", b"[" * 100_000, kind="json"), "is no JSON"),
        (pair("a", b'{"label": "\\ud800"}', kind="json"), "is no UTF-8 text"),
        ([*pair("a", b'{"label": 1}', kind="json"), *pair("b", b'{"labels": 1}', kind="json")], "has no key 'label'"),
        (pair("a", b'{"label": [1]}', kind="json"), r"The json:label of sample 'a' .* is \[1\], neither text nor"),
        ([("a.jpg", b""), ("a.txt", b"x"), ("a.json", b'{"label": 1}')], "may be their txt or the label of their json"),
        ([(f"a.{number}", b"") for number in range(70)], "one of more than 60 kinds"),
    ],
)
def test_bad_samples_are_named(root: Path, members: list[tuple[str, bytes]], match: str) -> None:
    tar(root / "train.tar", members)
    refused(root, match)


def test_shards_with_unequal_members_are_named(root: Path) -> None:
    write(root / "train-0.tar", samples(6))
    write(root / "train-1.tar", samples(4, txt="a caption"))
    error = refused(
        root, r"'000000' of .*train-1\.tar has cls, jpg, txt, and 6 others have cls, jpg \(3 more like it\)"
    )
    assert "data.label_key" in str(error.mend)
    assert len(loaded(root, image_key="jpg", label_key="cls", val_fraction=0.0).splits["train"]) == 10


def test_pictures_of_several_formats(root: Path) -> None:
    tar(root / "train.tar", [*pair("a"), *pair("b", b"1", picture="png"), *pair("c", b"1")])
    assert names(loaded(root, image_key="jpg;png", val_fraction=0.0)) == [
        f"train.tar/{n}" for n in ("a.jpg", "b.png", "c.jpg")
    ]
    tar(root / "train.tar", [*pair("a"), *pair("b", b"1"), ("b.png", b"")])
    refused(root, "has several of jpg, png", image_key="jpg;png")
    tar(root / "train.tar", [*pair("a", picture="left.jpg"), *pair("b", b"1", picture="left.jpg")])
    assert names(loaded(root, val_fraction=0.0))[0] == "train.tar/a.left.jpg"


@pytest.mark.parametrize(
    ("members", "settings", "classes", "labels"),
    [
        ({"cls": [b"10", b"2", b"10"]}, {}, ("2", "10"), [1, 0, 1]),
        ({"cls": [b"1", b"0", b"1"]}, {"classes": ["cat", "dog"]}, ("cat", "dog"), [1, 0, 1]),
        ({"txt": [b"dog\n", b"a=1, b", "Blüte".encode()]}, {}, ("Blüte", "a=1, b", "dog"), None),
        ({"label": [b"a", b"b", b"a"], "txt": [b"x", b"y", b"z"]}, {}, ("a", "b"), [0, 1, 0]),
        ({"txt": [b"a", b"b", b"a"], "cls": [b"1", b"0", b"0"]}, {"label_key": "txt"}, ("a", "b"), [0, 1, 0]),
        ({"json": [b'{"label": "b"}', b'{"label": "a"}', b'{"label": "b"}']}, {}, ("a", "b"), [1, 0, 1]),
        ({"json": [b'{"y": 1}', b'{"y": 0}', b'{"y": 1}']}, {"label_key": "json:y"}, ("0", "1"), [1, 0, 1]),
        ({"json": [b'{"y": true}', b'{"y": false}', b'{"y": true}']}, {"label_key": "json:y"}, ("False", "True"), None),
    ],
)
def test_labels(
    root: Path,
    members: dict[str, list[bytes]],
    settings: dict[str, Any],
    classes: tuple[str, ...],
    labels: list[int] | None,
) -> None:
    content = [("jpg", [jpeg(number) for number in range(3)]), *members.items()]
    tar(root / "train.tar", [(f"{n}.{kind}", values[n]) for n in range(3) for kind, values in content])
    data = loaded(root, val_fraction=0.0, **settings)
    assert set(data.classes) == set(classes)
    if labels is not None:
        assert data.classes == classes
        assert data.splits["train"].labels.tolist() == labels


def test_the_source_of_a_guessed_label_is_said(root: Path) -> None:
    write(root / "train.tar", [{"__key__": str(n), "jpg": jpeg(n), "txt": "ab"[n % 2]} for n in range(4)])
    assert loaded(root, val_fraction=0.0).notes[0] == "The label of a sample is its txt; data.label_key says otherwise."


def test_a_list_of_classes_beside_the_shards(root: Path) -> None:
    write(root / "train.tar", samples(4))
    (root / "classes.txt").write_text("zwei\nein s\n\n")
    assert loaded(root, val_fraction=0.0).classes == ("zwei", "ein s")
    assert loaded(root, val_fraction=0.0, classes=["a", "b"]).classes == ("a", "b")
    for content, match in (
        ("a\nb\na\n", "line 3: 'a' is there twice"),
        ("\n", "no class names"),
        ("x\n", "'1' of '000001'"),
    ):
        (root / "classes.txt").write_text(content)
        refused(root, match, val_fraction=0.0)
    (root / "classes.txt").write_bytes(b"\xff\xfe")
    refused(root, "cannot be read")


def test_groups_hold_over_splits(root: Path) -> None:
    write(root / "train-0.tar", [{**one, "json": {"who": f"p{n % 3}"}} for n, one in enumerate(samples(6))])
    write(root / "train-1.tar", [{**one, "json": {"who": "p2"}} for one in samples(2)])
    write(root / "val-0.tar", [{**one, "json": {"who": "p1"}} for one in samples(2)])
    data = loaded(root, group_key="json:who")
    train, val = data.splits["train"].groups, data.splits["val"].groups
    assert train is not None
    assert val is not None
    assert (train[:3] == train[3:6]).all()
    assert train[6] == train[7] == train[2]
    assert (val == train[1]).all()
    assert len(set(train.tolist())) == 3


def test_limits_reach_the_pictures(root: Path) -> None:
    write(root / "train.tar", samples(4))
    with pytest.raises(DataError, match=r"000001\.jpg in .*train\.tar has \d+ bytes, more than the limit of 50"):
        loaded(root, file_limit=50, val_fraction=0.0).splits["train"].image(1)
    with pytest.raises(DataError, match=r"000001\.jpg in .*train\.tar has 12 x 10 pixels"):
        loaded(root, pixel_limit=50, val_fraction=0.0).splits["train"].image(1)


def test_a_damaged_picture_is_named(root: Path) -> None:
    tar(root / "train.tar", [("a.jpg", b"no picture"), ("a.cls", b"0"), *pair("b", b"1")])
    with pytest.raises(DataError, match=r"picture a\.jpg in .*train\.tar cannot be read"):
        loaded(root, val_fraction=0.0).splits["train"].image(0)


class Spied:
    """Counts how often archives are opened for their headers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        original = tarfile.open

        def spying(name: Any = None, *arguments: Any, **named: Any) -> Any:
            self.opened += [Path(name).name] if name else []
            return original(name, *arguments, **named)

        monkeypatch.setattr(tarfile, "open", spying)


def test_headers_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    for number in range(3):
        write(root / f"train-{number}.tar", samples(4, 10 * number))
    spied = Spied(monkeypatch)
    first = loaded(root, val_fraction=0.0)
    assert len(spied.opened) == 3
    second = loaded(root, val_fraction=0.0)
    assert len(spied.opened) == 3
    assert names(first) == names(second)
    assert (first.splits["train"].labels == second.splits["train"].labels).all()
    write(root / "train-1.tar", samples(6, 100))
    assert len(names(loaded(root, val_fraction=0.0))) == 14
    assert spied.opened[3:] == ["train-1.tar"]
    for kept in cache.iterdir():
        kept.write_bytes(kept.read_bytes()[:100])
    assert len(names(loaded(root, val_fraction=0.0))) == 14
    assert len(spied.opened) == 7


def test_a_cache_that_cannot_be_written_is_done_without(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "file"))
    write(root / "train.tar", samples(4))
    assert len(names(loaded(root, val_fraction=0.0))) == 4


def test_nothing_half_written_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert kept_arrays(("x",), lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
    assert list(cache.iterdir()) == []


def test_a_shard_that_changes_under_way_is_an_error(root: Path) -> None:
    path = write(root / "train.tar", samples(4))
    split = loaded(root, val_fraction=0.0).splits["train"]
    stamp = split.stamp(0)
    _opened.cache_clear()
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(StorageError, match="has changed since"):
        split.image(0)
    path.unlink()
    with pytest.raises(StorageError, match="cannot be opened: No such file"):
        split.image(0)
    write(path, samples(4))
    assert loaded(root, val_fraction=0.0).splits["train"].stamp(0) != stamp


def test_a_shard_that_is_cut_while_it_is_open_is_an_error(root: Path) -> None:
    path = write(root / "train.tar", samples(4))
    split = loaded(root, val_fraction=0.0).splits["train"]
    split.content(0)
    os.truncate(path, 1000)
    with pytest.raises(StorageError, match="has changed since"):
        split.content(3)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_few_shards_are_open_at_once(root: Path) -> None:
    for number in range(100):
        tar(root / f"train-{number:03d}.tar", [*pair("a"), *pair("b", b"1")])
    _opened.cache_clear()
    before = open_files()
    split = loaded(root, val_fraction=0.0).splits["train"]
    for index in range(len(split)):
        split.content(index)
    assert 32 <= open_files() - before <= 64
    _opened.cache_clear()
    assert open_files() == before


def test_threads_read_while_shards_are_given_up(root: Path) -> None:
    content = {}
    for number in range(80):
        content[number] = jpeg(number)
        tar(root / f"train-{number:03d}.tar", [("a.jpg", content[number]), ("a.cls", str(number % 2).encode())])
    split = loaded(root, val_fraction=0.0).splits["train"]
    wrong: list[int] = []

    def reading(start: int) -> None:
        for index in np.random.default_rng(start).integers(0, 80, 300).tolist():
            wrong.extend([index] if split.content(index) != content[index] else [])

    threads = [threading.Thread(target=reading, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_split_goes_to_other_processes_by_pickle_as_well(root: Path) -> None:
    write(root / "train.tar", samples(4))
    split = loaded(root, val_fraction=0.0).splits["train"]
    split.content(0)
    assert isinstance(split, ShardSplit)
    assert pickle.loads(pickle.dumps(split)).content(3) == split.content(3)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_picture_once_by_any_number_of_workers(root: Path, preprocessing: Preprocessing, workers: int) -> None:
    for number in range(3):
        write(root / f"train-{number}.tar", samples(7, 10 * number))
    data = loaded(root, val_fraction=0.0, batch_size=4, workers=workers)
    data.prepare(preprocessing, Augmentation(), seed=0)
    loader = data.loader("train", train=True)
    assert len(loader) == data.batches_per_epoch() == 5
    seen = [index for batch in loader for index in batch.indices.tolist()]
    assert len(seen) == len(set(seen))
    valid = [index for batch in data.loader("train") for index in batch.indices[batch.valid].tolist()]
    assert sorted(valid) == list(range(21))


def test_the_index_of_many_samples_is_small(root: Path) -> None:
    path = tar(root / "train.tar", [(f"{n:06d}.{kind}", b"0") for n in range(5000) for kind in ("jpg", "cls")])
    index = read_index(Shard.at(path))
    arrays = (index.ends, index.text, index.offsets, index.sizes)
    assert sum(array.nbytes for array in arrays) < 50 * 5000
    shutil.rmtree(root)


def test_json_metadata_of_the_package(root: Path) -> None:
    write(root / "train.tar", [{"__key__": str(n), "jpg": jpeg(n), "json": {"label": f"c{n % 2}"}} for n in range(4)])
    assert json.loads(next(iter(raw_members(root / "train.tar", ".json")))) == {"label": "c0"}
    assert loaded(root, val_fraction=0.0).classes == ("c0", "c1")


def raw_members(path: Path, suffix: str) -> Iterator[bytes]:
    with tarfile.open(path) as opened:
        for member in opened:
            if member.name.endswith(suffix):
                file = opened.extractfile(member)
                assert file is not None
                yield file.read()
