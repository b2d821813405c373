from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frostline.auditing import HARM, AuditThresholds, Finding, Kind, Place
from frostline.config import absolute_paths, build, compose
from frostline.data.division import read_names
from frostline.errors import ConfigError, DataError
from frostline.runs.audit import audit
from frostline.runs.audit_files import exclude_text, excluded, optional_kinds

pytest.importorskip("cleanlab", reason="the extra audit is not installed")

CLASSES = ("<script>alert(1)", "blue, deep", "gréen=1")


def texture(seed: int, color: int) -> Image.Image:
    """A picture unlike others: coarse random patches with some grain, of one color."""
    generator = np.random.default_rng(seed)
    patches = Image.fromarray(generator.integers(20, 180, (6, 6, 3), dtype=np.uint8)).resize(
        (64, 64), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(patches).astype(int) + generator.integers(-12, 12, (64, 64, 3))
    pixels[..., color] += 60
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def make_set(root: Path) -> Path:
    for split, count in (("train", 14), ("val", 6), ("test", 6)):
        for index, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for picture in range(count):
                seed = 1000 * index + 100 * ("train", "val", "test").index(split) + picture
                texture(seed, index).save(folder / f"{picture}.png")
    return root


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="module")
def faulty(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faulty") / "set"
    shutil.copytree(clean, root)
    first, second, third = (root / "train" / name for name in sorted(path.name for path in (root / "train").iterdir()))
    shutil.copy(first / "0.png", root / "test" / first.name / "copy of a train picture.png")
    shutil.copy(second / "1.png", second / "# copy\nof a picture.png")
    shutil.copy(second / "2.png", third / "under another label.png")
    (third / "unreadable.jpg").write_bytes(b"no picture at all" * 20)
    texture(9, 1).save(third / "truncated.jpg")
    (third / "truncated.jpg").write_bytes((third / "truncated.jpg").read_bytes()[:900])
    Image.new("RGB", (64, 64), (40, 40, 40)).save(third / "blank.png")
    return root


def look(root: Path, output: Path, *overrides: str) -> Path:
    """The folder of an audit without label errors."""
    settings = ["data=folder", f'data.root="{root}"', "data.workers=0", "audit.labels=false", f"output={output}"]
    config = compose("audit", [*settings, *overrides])
    absolute_paths(config)
    audit(config)
    return Path(config.folder)


def kinds(folder: Path) -> set[str]:
    return {finding["kind"] for finding in json.loads((folder / "audit.json").read_text())["findings"]}


HARMFUL = {
    "unreadable",
    "truncated",
    "exact_duplicate",
    "exact_duplicate_across_splits",
    "conflicting_labels",
    "blank",
}


def test_a_clean_set_has_no_findings_and_says_so(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = look(clean, tmp_path, "data.strict=true")
    assert kinds(folder) == set()
    assert "Nothing found." in capsys.readouterr().out
    assert "Nothing found." in (folder / "audit.html").read_text()
    assert read_names(folder / "exclude.txt") == []


def test_every_fault_is_found_and_written(faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = look(faulty, tmp_path)
    assert {path.name for path in folder.iterdir()} == {
        "audit.html",
        "audit.json",
        "config.yaml",
        "exclude.txt",
        "findings.csv",
    }
    about = json.loads((folder / "audit.json").read_text())
    assert kinds(folder) >= HARMFUL
    assert about["pictures"] == {"train": 47, "val": 18, "test": 19}
    assert about["counts"]["unreadable"] == 1
    assert re.fullmatch("[0-9a-f]{64}", about["data"]["fingerprint"])
    assert about["pictures_per_second"] > 0
    with (folder / "findings.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == kinds(folder)
    harms = [float(row["harm"]) for row in rows]
    assert harms == sorted(harms, reverse=True)
    shown = capsys.readouterr().out
    assert "Same picture in two splits" in shown
    assert shown.strip().splitlines()[-1] == f"written: {folder}"
    assert not any(ord(character) < 32 and character != "\n" for character in shown)


def test_the_list_makes_a_second_audit_clean(faulty: Path, tmp_path: Path) -> None:
    listed = tmp_path / "lists" / "bad.txt"
    first = look(faulty, tmp_path, f"audit.exclude={listed}")
    assert listed.read_text() == (first / "exclude.txt").read_text()
    names = read_names(listed)
    assert any(name.endswith("/0.png") and name.startswith("train/") for name in names)
    assert not any("copy of a train picture" in name for name in names)
    assert sum("under another label" in name or name.endswith("blue, deep/2.png") for name in names) == 2
    second = look(faulty, tmp_path, f"data.exclude={listed}", "data.strict=true")
    assert kinds(second).isdisjoint(HARMFUL)


def test_strict_is_exit_code_3_once_all_is_written(faulty: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.strict=true.*unreadable"):
        look(faulty, tmp_path, "data.strict=true")
    (folder,) = (tmp_path / "audit").iterdir()
    assert (folder / "audit.json").is_file()


def test_labels_are_judged_with_the_backbone(clean: Path, tmp_path: Path) -> None:
    overrides = ["audit.labels=true", "backbone.name=test_resnet", "backbone.weights=none", "data.size=32"]
    folder = look(clean, tmp_path, *overrides)
    about = json.loads((folder / "audit.json").read_text())
    assert about["labels"]["judged"] == 78
    assert about["labels"]["folds"] == 5
    assert any("no trained weights" in note for note in about["notes"])


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("audit.exclude_kinds=[label_eror]", "label_error"),
        ("audit.folds=1", "2 folds"),
        ("audit.shown=0", "at least 1"),
        ("audit.thresholds.dark=-1", r"audit\.thresholds\.dark is -1"),
        ("audit.thresholds.drak=1", "dark"),
    ],
)
def test_keys_without_meaning_are_refused_before_anything_is_read(override: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=part):
        look(tmp_path / "absent", tmp_path / "out", override)
    assert not (tmp_path / "out").exists()


def test_the_thresholds_of_the_config_are_the_defaults() -> None:
    assert build(compose("audit").audit.thresholds, "audit.thresholds") == AuditThresholds()
    listed = {key for key in compose("audit").audit.thresholds if key != "_target_"}
    assert listed == {item.name for item in fields(AuditThresholds)}


def test_a_misspelt_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"audit\.label\b"):
        compose("audit", ["audit.label=false"])


def test_data_that_cannot_be_loaded_keeps_its_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        look(tmp_path / "absent", tmp_path)


def finding(kind: Kind, *places: tuple[str, str, str], **detail: object) -> Finding:
    found = tuple(Place(split, at, name, label) for at, (split, name, label) in enumerate(places))
    return Finding(kind, HARM[kind], found, "a problem", "a mend", detail=dict(detail))


def test_of_copies_the_one_of_test_stays() -> None:
    three = finding(
        Kind.NEAR_DUPLICATE_ACROSS_SPLITS,
        ("train", "a", "x"),
        ("val", "b", "x"),
        ("test", "c", "x"),
        ("test", "d", "x"),
    )
    assert set(excluded([three])) == {"a", "b", "d"}
    assert set(excluded([finding(Kind.EXACT_DUPLICATE, ("train", "a", "x"), ("train", "b", "x"))])) == {"b"}


def test_of_two_labels_none_stays_but_for_one_in_test() -> None:
    conflict = Kind.CONFLICTING_LABELS
    assert set(excluded([finding(conflict, ("train", "a", "x"), ("train", "b", "y"))])) == {"a", "b"}
    assert set(excluded([finding(conflict, ("train", "a", "x"), ("test", "b", "y"))])) == {"a"}
    assert set(excluded([finding(conflict, ("test", "a", "x"), ("test", "b", "y"))])) == {"a", "b"}


def test_a_row_that_is_listed_twice_is_not_lost_with_its_copy() -> None:
    assert excluded([finding(Kind.EXACT_DUPLICATE, ("train", "a", "x"), ("train", "a", "x"))]) == {}


def test_other_kinds_are_listed_when_asked_for() -> None:
    found = [finding(Kind.LABEL_ERROR, ("train", "a", "x")), finding(Kind.DARK, ("train", "b", "x"))]
    assert excluded(found) == {}
    assert set(excluded(found, optional_kinds(["label_error"]))) == {"a"}


def test_a_list_holds_any_name(tmp_path: Path) -> None:
    names = ["# a", "b\nc\\n", " d ", b"\xff.png".decode("utf-8", "surrogateescape"), "日本/é.png"]
    (tmp_path / "list.txt").write_text(exclude_text(dict.fromkeys(names, "blank of\n# x")), encoding="utf-8")
    assert read_names(tmp_path / "list.txt") == names
