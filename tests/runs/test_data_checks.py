from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import frostline
from frostline.data import FolderData
from frostline.errors import ConfigError, DataError
from frostline.runs import data_checks
from frostline.runs.data_checks import check_data
from frostline.runs.evaluate import evaluate

TINY = ["data=folder", "data.size=32", "backbone.name=test_resnet", "backbone.weights=none", "trainer=cpu"]
SHORT = ["trainer.max_epochs=1", "data.batch_size=4", "data.workers=0", "freeze=linear_probe"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    number = 0
    for split, count in {"train": 6, "val": 3, "test": 3}.items():
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{index}.jpg")
                number += 1
    return folder


def evaluated(run: Path, *overrides: str) -> dict[str, float]:
    return evaluate(frostline.compose([f"run={run}", "trainer=cpu", *overrides], command="evaluate"))


def checked(root: Path, **settings: Any) -> data_checks.DataChecks:
    data = FolderData(str(root), **settings)
    data.load()
    return check_data(data, list(data.splits))


def test_a_derived_split_is_what_it_was_whatever_has_been_added(root: Path, tmp_path: Path, capfd: Any) -> None:
    shutil.rmtree(root / "val")
    run = frostline.train([*TINY, *SHORT, f"data.root={root}", f"output={tmp_path / 'runs'}", "data.val_fraction=0.4"])
    for index in range(6):
        pixels = np.random.default_rng(100 + index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "train" / "cat" / f"new {index}.jpg")
    assert evaluated(run.path, "split=val")["val/loss"] == pytest.approx(run.metrics["val/loss"], abs=1e-6)
    rows = [line.split(",") for line in (run.path / "splits.csv").read_text().splitlines()[1:]]
    trained = next(name for split, _, _, name in rows if split == "train")
    shutil.rmtree(root / "test" / "dog")
    (root / "test" / "dog").mkdir()
    shutil.copy(root / trained, root / "test" / "dog" / "seen.jpg")
    capfd.readouterr()
    evaluated(run.path, f"root={root}")
    assert "are not those that the run had" in capfd.readouterr().out


def test_digits_have_no_root(tmp_path: Path) -> None:
    arguments = ["backbone.name=test_resnet", "backbone.weights=none", "trainer=cpu", *SHORT, "data.labels_per_class=2"]
    run = frostline.train([*arguments, f"output={tmp_path}"])
    with pytest.raises(ConfigError, match="lies in no folder"):
        evaluated(run.path, f"root={tmp_path}")
    assert evaluated(run.path)["test/accuracy"] == run.metrics["test/accuracy"]


def said(found: list[DataError]) -> str:
    return " | ".join(error.problem for error in found)


def test_a_clean_set_has_no_findings_and_is_looked_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        checks = checked(root)
        assert not checks.faults + checks.findings
        monkeypatch.setattr(data_checks, "picture_size", None)  # nobody asks again


def test_the_same_picture_in_two_splits_and_under_two_labels(root: Path) -> None:
    shutil.copy(root / "train/cat/0.jpg", root / "test/cat/copy.jpg")
    shutil.copy(root / "train/cat/1.jpg", root / "val/dog/copy.jpg")
    found = said(checked(root).findings)
    assert "1 picture of the test split is also in train, byte for byte: test/cat/copy.jpg is train/cat/0.jpg" in found
    assert "1 picture of the val split is also in train, byte for byte: val/dog/copy.jpg is train/cat/1.jpg" in found
    assert "1 picture has two labels: train/cat/1.jpg ('cat') is val/dog/copy.jpg ('dog')" in found


def test_headers_that_cannot_be_read(root: Path) -> None:
    (root / "train/cat/0.jpg").write_bytes(b"no picture")
    (root / "test/dog/0.jpg").write_bytes(b"none either")
    checks = checked(root)
    assert "A picture of the train split cannot be read" in said(checks.faults)
    assert "test/dog/0.jpg" in said(checks.faults)
    skipping = checked(root, on_error="skip")
    assert "is left out" in said(skipping.findings)
    assert "test/dog/0.jpg" in said(skipping.faults)
    assert checked(root).faults, "what was found is not forgotten"


def test_train_says_what_it_sees_and_strict_stops_it(root: Path, tmp_path: Path, capfd: Any) -> None:
    shutil.copy(root / "train/cat/0.jpg", root / "test/cat/copy.jpg")
    arguments = [*TINY, *SHORT, f"data.root={root}", f"output={tmp_path / 'runs'}"]
    run = frostline.train(arguments)
    assert "note: 1 picture of the test split is also in train" in capfd.readouterr().out
    rows = (run.path / "splits.csv").read_text().splitlines()
    assert rows[0] == "split,label,key,name"
    assert len(rows) == 26
    with pytest.raises(DataError, match="is also in train") as caught:
        frostline.train([*arguments, "data.strict=true"])
    assert caught.value.exit_code == 3
    assert "audit" in str(caught.value)


@pytest.mark.slow
def test_evaluate_sees_other_pictures(root: Path, tmp_path: Path, capfd: Any) -> None:
    run = frostline.train([*TINY, *SHORT, f"data.root={root}", f"output={tmp_path / 'runs'}"])
    first = evaluated(run.path)
    assert first["test/accuracy"] == run.metrics["test/accuracy"]
    Image.new("RGB", (20, 20), (200, 0, 0)).save(root / "test/cat/0.jpg")
    with pytest.raises(DataError, match="not those that the run had") as caught:
        evaluated(run.path)
    assert "root=FOLDER" in str(caught.value)
    evaluated(run.path, "split=val")
    capfd.readouterr()
    evaluated(run.path, f"root={root}")
    assert "note: the pictures or labels of the test split are not those" in capfd.readouterr().out
