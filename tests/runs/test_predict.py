"""``predict``: what it reads, what it writes, and that it goes on where it was stopped."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

import frostline
from frostline.errors import ConfigError, DataError, FrostlineError, Interrupted
from frostline.evaluation import Labeller, Temperature, at_temperature
from frostline.evaluation.predicting import Labelled
from frostline.runs import predict_table
from frostline.runs.folder import RunFolder
from frostline.runs.predict import predict
from frostline.runs.scoring import write_temperature

CLASSES = ("blue, deep", "gréen", "red=1")
COLUMNS = [f"p({name})" for name in CLASSES]


def predicted(run: Path, images: Path | str, output: Path, *overrides: str) -> list[dict[str, Any]]:
    """The rows that the command writes."""
    own = [f"run={run}", f'images="{images}"', f"output={output}", "device=cpu"]
    own += [] if any(item.startswith("workers") for item in overrides) else ["workers=0"]
    predict(frostline.compose([*own, *overrides], command="predict"))
    return read(output)


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    found: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return found


def rows_of(found: list[dict[str, Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([[row[name] for name in COLUMNS] for row in found], np.float32)


@pytest.fixture
def run(finished: frostline.Run, tmp_path: Path) -> Path:
    """A finished run with a temperature that changes something."""
    copied = Path(shutil.copytree(finished.path, tmp_path / "run"))
    write_temperature(RunFolder(copied), Temperature(2.0, 9))
    return copied


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_table, "PART", 8)


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions that a model has labelled since."""
    seen: list[int] = []
    label = Labeller.label

    def noted(self: Labeller, *arguments: Any, **named: Any) -> Iterator[Labelled]:
        for one in label(self, *arguments, **named):
            seen.extend(one.positions)
            yield one

    monkeypatch.setattr(Labeller, "label", noted)
    return seen


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs that are large enough to be decoded at a part of their size."""
    root = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 9)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                coarse = generator.integers(0, 255, (9, 12, 3), dtype=np.uint8)
                picture = Image.fromarray(coarse).resize((300 + number, 200), Image.Resampling.BICUBIC)
                picture.save(root / split / name / f"{number}.jpg")
    return root


@pytest.mark.parametrize("decode", ["fast", "exact"])
def test_pictures_of_the_test_split_get_what_the_run_has_written(
    tiny: list[str], photographs: Path, tmp_path: Path, decode: str
) -> None:
    own = [f"output={tmp_path}", "data=folder", f'data.root="{photographs}"', f"data.decode={decode}"]
    run = frostline.train([*tiny, *own, "trainer.max_epochs=1", "data.workers=0", "speed.channels_last=true"])
    written = pyarrow.parquet.read_table(run.path / "predictions" / "test.parquet")
    listed = photographs / f"{tmp_path.name}.parquet"
    pyarrow.parquet.write_table(written.select(["image", "label"]), listed)
    for workers in (0, 2):
        own = ["image_column=image", "keep_columns=[label]", "calibrated=false", f"workers={workers}"]
        found = predicted(run.path, listed, tmp_path / f"again{workers}.parquet", *own)
        assert len(found) == 27
        assert found == written.to_pylist()


def test_probabilities_are_calibrated_as_in_use_and_the_api_gives_the_same(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = rows_of(predicted(run, pictures / "test", tmp_path / "plain.parquet", "calibrated=false"))
    assert "not calibrated" in capsys.readouterr().out
    found = predicted(run, pictures / "test", tmp_path / "calibrated.parquet")
    assert "probabilities are calibrated (temperature 2)" in capsys.readouterr().out
    assert rows_of(found) == pytest.approx(at_temperature(plain, 2.0), abs=1e-6)
    paths = [row["image"] for row in found]
    for calibrated, rows in ((True, rows_of(found)), (False, plain)):
        own = frostline.load(run).predict(paths, calibrated=calibrated)
        assert np.array([[one.probabilities[name] for name in CLASSES] for one in own], np.float32).tolist() == (
            rows.tolist()
        )
    (run / "calibration.json").unlink()
    assert rows_of(predicted(run, pictures / "test", tmp_path / "none.parquet")).tolist() == plain.tolist()
    assert "the run has no calibration.json" in capsys.readouterr().out


def test_rows_have_the_order_and_the_names_of_a_list(run: Path, pictures: Path, tmp_path: Path) -> None:
    names = ["test/red=1/2.jpg", "test/blue, deep/1.jpg", str(pictures / "val/gréen/0.jpg"), "test/red=1/2.jpg"]
    listed = pictures / f"{tmp_path.name}.txt"
    listed.write_text("\n".join(["", *names, ""]), encoding="utf-8")
    found = predicted(run, listed, tmp_path / "p.csv")
    assert [row["image"] for row in found] == names
    assert found[0] == found[3]
    assert found[0][COLUMNS[0]] != found[1][COLUMNS[0]]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_table_carries_columns_over(run: Path, pictures: Path, tmp_path: Path, kind: str) -> None:
    names = [f"test/{name}/{number}.jpg" for number in (3, 0) for name in CLASSES]
    table = pa.table({"file": names, "id": [f"00{number}" for number in range(6)], "n": range(6), "unused": ["x"] * 6})
    listed = pictures / f"{tmp_path.name}.{kind}"
    if kind == "csv":
        pa.csv.write_csv(table, listed)
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, listed)
    else:
        listed.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")
    found = predicted(run, listed, tmp_path / "p.parquet", "image_column=file", "keep_columns=[n,id]")
    assert list(found[0]) == ["image", "n", "id", "prediction", "confidence", *COLUMNS]
    assert [(row["image"], row["id"], int(row["n"])) for row in found] == [
        (name, f"00{number}", number) for number, name in enumerate(names)
    ]


def test_shards_give_what_their_files_give(run: Path, pictures: Path, tmp_path: Path) -> None:
    files = [pictures / "test" / name / f"{number}.jpg" for number in range(4) for name in CLASSES]
    for shard in range(3):
        with tarfile.open(tmp_path / f"new-{shard:02d}.tar", "w") as tar:
            for at, file in enumerate(files[shard::3]):
                for ending, content in (("JPG", file.read_bytes()), ("cls", b"0")):
                    member = tarfile.TarInfo(f"{at:03d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    found = predicted(run, f"{tmp_path}/new-{{00..02}}.tar", tmp_path / "shards.parquet")
    assert [row["image"] for row in found[:5]] == [
        *(f"{tmp_path}/new-00.tar/{at:03d}.jpg" for at in range(4)),
        f"{tmp_path}/new-01.tar/000.jpg",
    ]
    (tmp_path / "l.txt").write_text("\n".join(str(file) for shard in range(3) for file in files[shard::3]))
    of_files = predicted(run, tmp_path / "l.txt", tmp_path / "files.parquet")
    assert rows_of(found).tolist() == rows_of(of_files).tolist()
    one = predicted(run, tmp_path / "new-01.tar", tmp_path / "one.parquet", "image_key=jpg")
    assert len(one) == 4
    with pytest.raises(DataError, match="member 'png'"):
        predicted(run, tmp_path / "new-01.tar", tmp_path / "png.parquet", "image_key=png")
    with pytest.raises(DataError, match=r"names 2 that are not there: .*new-03.tar"):
        predicted(run, f"{tmp_path}/new-{{00..04}}.tar", tmp_path / "png.parquet")


def test_a_pattern_names_pictures(run: Path, pictures: Path, tmp_path: Path) -> None:
    found = predicted(run, f"{pictures}/test/r*/[01].jpg", tmp_path / "p.csv")
    assert [row["image"] for row in found] == [f"{pictures}/test/red=1/{number}.jpg" for number in (0, 1)]


@pytest.mark.parametrize(
    ("images", "overrides", "part"),
    [
        ("absent", [], "no such file or folder"),
        ("empty", [], "holds no picture"),
        ("empty.txt", [], "is empty"),
        ("empty.csv", [], "has no rows"),
        ("empty.csv", ["image_column=file"], "no column 'file'"),
        ("empty.csv", ["keep_columns=[lable]"], "no column 'lable'"),
        ("absent.txt", [], "names 1 picture that cannot be found: 'absent.jpg'"),
        ("a.png", ["keep_columns=[id]"], "keep_columns is for a table"),
        ("a.png", ["image_key=png"], "image_key is for shards"),
        ("a.png", ["top_k=4"], "top_k is 4"),
        ("a.png", ["workers=-1"], "workers is -1"),
        ("a.png", ["batch_size=0"], "batch_size is 0"),
        ("a.png", ["precision=bf16"], "precision=bf16"),
        ("a.png", ["output=a.txt"], "written as .csv or .parquet"),
        ("l.csv", ["keep_columns=[prediction]"], "two columns 'prediction'"),
    ],
)
def test_what_cannot_be_is_said(run: Path, tmp_path: Path, images: str, overrides: list[str], part: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "empty.csv").write_text("path\n")
    (tmp_path / "l.csv").write_text("path,prediction\na.png,x\n")
    (tmp_path / "absent.txt").write_text("a.png\nabsent.jpg\n")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(FrostlineError) as caught:
        predicted(run, tmp_path / images, tmp_path / "p.csv", *overrides)
    assert part in str(caught.value)
    assert set(tmp_path.rglob("*")) == before


def test_a_result_is_replaced_only_when_told(run: Path, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "p.csv"
    first = predicted(run, pictures / "test", output)
    with pytest.raises(ConfigError, match="is there already"):
        predicted(run, pictures / "val", output)
    assert read(output) == first
    assert len(predicted(run, pictures / "val", output, "overwrite=true")) == 15


def test_the_best_classes_alone(run: Path, pictures: Path, tmp_path: Path) -> None:
    whole = rows_of(predicted(run, pictures / "test", tmp_path / "whole.parquet"))
    found = predicted(run, pictures / "test", tmp_path / "best.parquet", "top_k=2")
    assert list(found[0]) == ["image", "prediction", "confidence", "prediction_2", "confidence_2"]
    for row, shares in zip(found, whole, strict=True):
        order = np.argsort(-shares, kind="stable")
        assert [row["prediction"], row["prediction_2"]] == [CLASSES[at] for at in order[:2]]
        assert [row["confidence"], row["confidence_2"]] == [float(shares[at]) for at in order[:2]]


@pytest.fixture
def damaged(pictures: Path, tmp_path: Path) -> Path:
    """A list of good files and bad ones."""
    good = pictures / "test" / "red=1" / "0.jpg"
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "short.jpg").write_bytes(good.read_bytes()[:500])
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    lines = ["empty.jpg", str(good), "short.jpg", "text.jpg", str(good), "bomb.png", "gone.jpg", "nul\0.jpg", str(good)]
    (tmp_path / "l.txt").write_text("\n".join(lines))
    return tmp_path / "l.txt"


def test_what_cannot_be_read_is_listed_and_the_rest_is_labelled(
    run: Path, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "p.parquet"
    found = predicted(run, damaged, output, "on_error=skip", "batch_size=2", "workers=1")
    assert [Path(row["image"]).name for row in found] == ["0.jpg"] * 3
    listed = read(tmp_path / "p.errors.csv")
    bad = ["empty.jpg", "short.jpg", "text.jpg", "bomb.png", "gone.jpg", "nul\0.jpg"]
    assert [row["image"] for row in listed] == bad
    reasons = {row["image"]: row["reason"] for row in listed}
    assert "more than the limit" in reasons["bomb.png"]
    assert "does not exist" in reasons["gone.jpg"]
    assert "Truncated" in reasons["short.jpg"]
    assert "6 pictures could not be read" in capsys.readouterr().out
    only_good = [line for line in damaged.read_text().splitlines() if line.startswith("/")]
    damaged.write_text("\n".join(only_good))
    predicted(run, damaged, output, "on_error=skip", "overwrite=true")
    assert not (tmp_path / "p.errors.csv").exists()
    damaged.write_text("\n".join(bad))
    with pytest.raises(DataError, match="None of the 6 pictures"):
        predicted(run, damaged, tmp_path / "none.csv", "on_error=skip")


def test_the_first_bad_file_stops_and_once_mended_the_command_goes_on(
    run: Path, pictures: Path, tmp_path: Path, small_parts: None, labelled: list[int]
) -> None:
    good = sorted((pictures / "test").rglob("*.jpg"))
    folder = tmp_path / "new"
    folder.mkdir()
    for number, path in enumerate(good):
        shutil.copy(path, folder / f"{number:02d}.jpg")
    content = (folder / "17.jpg").read_bytes()
    (folder / "17.jpg").write_bytes(content[:400])
    output = tmp_path / "p.csv"
    with pytest.raises(DataError, match=r"17.jpg cannot be read: Truncated") as caught:
        predicted(run, folder, output)
    assert "on_error=skip" in str(caught.value.mend)
    assert not output.exists()
    assert labelled[:16] == list(range(16))
    labelled.clear()
    (folder / "17.jpg").write_bytes(content)
    found = predicted(run, folder, output)
    assert labelled == list(range(16, 21))
    assert found == predicted(run, folder, tmp_path / "straight.csv")
    assert not list(tmp_path.glob("*.parts"))


def test_what_has_changed_is_labelled_anew_and_nothing_else(
    run: Path,
    pictures: Path,
    tmp_path: Path,
    small_parts: None,
    labelled: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, output = Path(shutil.copytree(pictures / "test", tmp_path / "new")), tmp_path / "p.parquet"
    names = sorted(path for path in folder.rglob("*.jpg"))

    def stopped_late(*overrides: str) -> list[int]:
        """What is labelled until everything is, but not put together."""
        labelled.clear()
        with monkeypatch.context() as patch:
            patch.setattr(predict_table, "write_in_pieces", _interrupt)
            with pytest.raises(Interrupted):
                predicted(run, folder, output, *overrides)
        return list(labelled)

    assert stopped_late() == list(range(21))
    assert stopped_late() == []
    # a file with other pixels, a file more at the end
    shutil.copy(names[20], names[9])
    assert stopped_late() == list(range(8, 16))
    shutil.copy(names[0], folder / "zz.jpg")
    assert stopped_late() == list(range(16, 22))
    # a part that was damaged
    (part,) = (tmp_path / "p.parquet.parts").glob("part-*1.arrow")
    part.write_bytes(part.read_bytes()[:-20])
    assert stopped_late() == list(range(8, 16))
    capsys.readouterr()
    assert stopped_late("top_k=1") == list(range(22))
    assert "labelled anew" in capsys.readouterr().out
    write_temperature(RunFolder(run), Temperature(3.0, 9))
    assert stopped_late("top_k=1") == list(range(22))
    assert "temperature was 2.0, is 3.0" in capsys.readouterr().out
    assert len(predicted(run, folder, output, "top_k=1")) == 22
    assert not list(tmp_path.glob("*.parts"))


def _interrupt(*_: object) -> None:
    raise Interrupted("SIGTERM: stopped.")


def started(run: Path, listed: Path, output: Path, code: Callable[[subprocess.Popen[str]], None]) -> tuple[int, str]:
    """Exit code and messages of the command, which ``code`` does something to once a part of the table is there."""
    own = [f"run={run}", f"images={listed}", f"output={output}", "workers=1", "device=cpu"]
    line = [sys.executable, "-m", "frostline.cli", "predict", *own]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parts = output.with_name(output.name + ".parts")
    before = len(list(parts.glob("*.arrow")))
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    give_up = time.monotonic() + 200
    while process.poll() is None and len(list(parts.glob("*.arrow"))) == before and time.monotonic() < give_up:
        time.sleep(0.002)
    code(process)
    out, err = process.communicate(timeout=200)
    return process.returncode, out + err


@pytest.mark.slow
def test_a_command_that_was_killed_or_stopped_goes_on(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(path) for path in sorted((pictures / "test").rglob("*.jpg"))]
    listed, output = tmp_path / "l.txt", tmp_path / "p.csv"
    listed.write_text("\n".join((names * 60)[:1_100]), encoding="utf-8")
    code, said = started(run, listed, output, lambda process: process.terminate())
    assert code == 143, said
    assert "stopping after this step; what is labelled is kept" in said
    assert "of 1,100 pictures." in said
    assert "The same command goes on" in said
    assert "Traceback" not in said
    code, said = started(run, listed, output, lambda process: process.kill())
    assert code == -signal.SIGKILL
    assert not output.exists()
    capsys.readouterr()
    predicted(run, listed, output)
    assert "were labelled before" in capsys.readouterr().out
    straight = tmp_path / "straight.csv"
    predicted(run, listed, straight)
    assert output.read_bytes() == straight.read_bytes()
    assert not list(tmp_path.glob("*.parts"))
