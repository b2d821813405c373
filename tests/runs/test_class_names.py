"""Class names come out of a run as they went in, whatever YAML, Hydra, CSV or Parquet would make of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

import frostline
from frostline.errors import ConfigError, DataError
from frostline.runs.evaluate import evaluate
from frostline.runs.predict import predict

ODD = (
    "1",
    "10",
    "2",
    "True",
    "1_000",
    "007",
    "1e5",
    "a b",
    "a, b",
    "a=b",
    "é",
    "日本",
    "null",
    "~",
    '"quoted"',
    "[x]",
    "#",
)
NUMBERS = ("1", "2", "10")
SPLITS = {"train": 2, "val": 1, "test": 1}


def typed(names: Sequence[str]) -> str:
    """``data.classes='[...]'`` as a shell hands it on, each name in quotes."""
    quoted = (name.replace('"', '\\"') for name in names)
    return "data.classes=[" + ",".join(f'"{name}"' for name in quoted) + "]"


def make_set(root: Path, classes: Sequence[str]) -> Path:
    """A picture or two of each class in each split, as folders and as tables beside them."""
    generator = np.random.default_rng(0)
    rows = []
    for split, count in SPLITS.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                path = folder / f"{index}.png"
                Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
                rows.append({"path": path.relative_to(root).as_posix(), "label": name, "split": split})
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), root / "labels.parquet")
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["path", "label", "split"])
        writer.writeheader()
        writer.writerows(rows)
    (root / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("odd"), ODD)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("numbers"), NUMBERS)


def data_from(root: Path, source: str) -> list[str]:
    """``folder``, or the name of a table in ``root``."""
    if source == "folder":
        return ["data=folder", f'data.root="{root}"']
    return ["data=table", f'data.table="{root / source}"']


def trained(tiny: list[str], output: Path, *overrides: str) -> frostline.Run:
    own = [f"output={output}", "trainer.max_epochs=1", "data.batch_size=16", "data.workers=0"]
    return frostline.train([*tiny, *own, *overrides])


def read_table(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    found: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return found


def check_round_trip(run: frostline.Run, root: Path, classes: Sequence[str], output: Path) -> None:
    """The names in ``model/config.json``, in the predictions of the run and of ``evaluate``, and in ``predict``'s."""
    config = json.loads((run.path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["label_names"] == list(classes)
    shown = [f"p({name})" for name in classes]

    (run.path / "predictions" / "test.parquet").unlink()
    scores = evaluate(frostline.compose([f"run={run.path}", "trainer=cpu", "split=test"], command="evaluate"))
    assert scores["test/count"] == len(classes)
    table = pyarrow.parquet.read_table(run.path / "predictions" / "test.parquet")
    assert table.column_names[-len(classes) :] == shown
    truth = dict(zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True))
    assert truth == {f"test/{name}/0.png": name for name in classes}
    assert set(table["prediction"].to_pylist()) <= set(classes)

    for suffix in (".csv", ".parquet"):
        file = output / f"found{suffix}"
        own = [f"run={run.path}", f'images="{root / "test"}"', f"output={file}", "device=cpu"]
        predict(frostline.compose(own, command="predict"))
        rows = read_table(file)
        assert len(rows) == len(classes)
        assert list(rows[0])[-len(classes) :] == shown
        for row in rows:
            highest = max(classes, key=lambda name: float(row[f"p({name})"]))
            assert row["prediction"] == highest


@pytest.mark.parametrize("source", ["folder", "labels.csv", "labels.parquet", "labels.jsonl"])
def test_odd_names_survive_the_round_trip(tiny: list[str], odd: Path, tmp_path: Path, source: str) -> None:
    own = (
        ["data=folder", f'data.root="{odd}"'] if source == "folder" else ["data=table", f'data.table="{odd / source}"']
    )
    run = trained(tiny, tmp_path, *own)
    check_round_trip(run, odd, sorted(ODD), tmp_path)


@pytest.mark.parametrize("source", ["folder", "labels.csv"])
def test_numbers_survive_in_their_own_order(tiny: list[str], numbers: Path, tmp_path: Path, source: str) -> None:
    run = trained(tiny, tmp_path, *data_from(numbers, source))
    check_round_trip(run, numbers, NUMBERS, tmp_path)


def test_names_that_are_typed_survive_in_the_order_they_are_typed(tiny: list[str], odd: Path, tmp_path: Path) -> None:
    run = trained(tiny, tmp_path, *data_from(odd, "labels.csv"), typed(ODD[::-1]))
    check_round_trip(run, odd, ODD[::-1], tmp_path)


def test_typed_numbers_need_no_quotes(tiny: list[str], numbers: Path, tmp_path: Path) -> None:
    run = trained(tiny, tmp_path, *data_from(numbers, "labels.csv"), "data.classes=[10,2,1]")
    check_round_trip(run, numbers, ("10", "2", "1"), tmp_path)


def test_what_yaml_reads_otherwise_is_refused_with_how_it_is_typed(tiny: list[str], odd: Path, tmp_path: Path) -> None:
    own = data_from(odd, "labels.csv")
    for read_otherwise in ("True", "null", "1e5"):
        with pytest.raises(ConfigError, match="no class name") as caught:
            trained(tiny, tmp_path, *own, f"data.classes=[{read_otherwise},x]")
        assert """data.classes='["True", "null", "1.0"]'""" in str(caught.value.mend)
    with pytest.raises(DataError, match="label '1_000' of row 9 "):  # which Hydra takes for 1000
        trained(tiny, tmp_path, *own, typed(ODD).replace('"1_000"', "1_000"))
