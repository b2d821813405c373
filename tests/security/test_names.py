"""Names that strangers chose, of classes and files: they are text, and lead nowhere."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

import frostline
from frostline.runs.evaluate import evaluate
from frostline.runs.predict import predict

NASTY = [
    "../../escaped",
    "/tmp/escaped",
    "a\nb",
    "a\r\nb,c",
    '"quoted", and more',
    "<script>alert(1)</script>",
    "\x1b[2J\x1b]0;owned\x07",
    "${oc.env:HOME}",
    "%s {0} {x!r}",
    "\u202egnp.exe",
]


def test_labels_of_a_foreign_model_are_text(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "label_names": NASTY}))
    Image.new("RGB", (8, 8)).save(tmp_path / "digit.png")
    before = set(tmp_path.rglob("*"))
    output = tmp_path / "predictions.csv"
    overrides = [f"run={run}", f"images={tmp_path}/digit.png", f"output={output}"]
    predict(frostline.compose(overrides, command="predict"))
    assert set(tmp_path.rglob("*")) - before == {output}
    with output.open(newline="", encoding="utf-8") as file:
        header, row = csv.reader(file)
    assert header[3:] == [f"p({name})" for name in NASTY]
    assert row[header.index("prediction")] in NASTY
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\nb" not in shown
    assert "\u202e" not in shown


def test_class_folders_with_odd_names_are_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # no name of a folder holds a slash, and one that begins with a dot is hidden
    names = sorted(name.replace("/", "\\").lstrip(".") for name in NASTY)
    root = tmp_path / "set"
    for split in ("train", "val"):
        for number, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(root / split / name / f"{index}\n.png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tiny = ["backbone.name=test_resnet", "backbone.weights=none", "data.size=32", "data.batch_size=8", "data.workers=0"]
    own = ["data=folder", f"data.root={root}", f"output={tmp_path}/out"]
    run = frostline.train([*tiny, *own, "trainer=cpu", "trainer.max_epochs=1", "logger=csv"])
    assert list(run.labels) == names
    evaluate(frostline.compose([f"run={run.path}", "trainer=cpu", "split=val"], command="evaluate"))
    assert {path.name for path in tmp_path.iterdir()} == {"set", "out", "here"}
    assert list((tmp_path / "here").iterdir()) == []
    assert "\x1b" not in capsys.readouterr().out
