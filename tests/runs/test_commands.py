"""The public commands, each in a process of its own."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import pytest

import frostline


def frostline_command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(cwd)}
    line = [sys.executable, "-m", "frostline.cli", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=cwd, env=environment, timeout=300)


def folder_of(text: str, word: str = "run") -> Path:
    last = text.strip().splitlines()[-1]
    assert last.startswith(f"{word}: ")
    return Path(last.removeprefix(f"{word}: "))


def table_of(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_train_ends_with_its_folder(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    own = ["data=folder", f'data.root="{os.path.relpath(pictures, tmp_path)}"']
    done = frostline_command("train", *tiny, *own, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    run = folder_of(done.stdout)
    assert run.parent == tmp_path / "outputs" / "train"
    assert json.loads((run / "metrics.json").read_text())["test/count"] == 21
    for part in ("3 classes", "train 30, val 15, test 21", "test_resnet at 32x32x3", "parameters learn", "epoch 2/2"):
        assert part in done.stdout


@pytest.mark.slow
def test_two_processes_score_every_picture_once(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    own = ["data=folder", f'data.root="{pictures}"', "trainer=ddp_cpu"]
    done = frostline_command("train", *tiny, *own, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    run = frostline.load(folder_of(done.stdout))
    assert run.metrics["test/count"] == 21
    assert run.metrics["val/count"] == 15
    table = pyarrow.parquet.read_table(run.path / "predictions" / "test.parquet").to_pydict()
    assert len(set(table["image"])) == 21
    validated = pyarrow.parquet.read_table(run.path / "predictions" / "val.parquet").to_pydict()
    assert len(set(validated["image"])) == 15
    right = [label == said for label, said in zip(validated["label"], validated["prediction"], strict=True)]
    assert sum(right) / 15 == pytest.approx(run.metrics["val/accuracy"])
    alone = frostline_command("evaluate", f"run={run.path}", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    again = pyarrow.parquet.read_table(run.path / "predictions" / "test.parquet").to_pydict()
    assert again["image"] == table["image"]
    assert again["prediction"] == table["prediction"]


@pytest.mark.slow
def test_a_sweep_names_the_job_that_failed_and_finishes_the_others(
    tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    own = ["data=folder", f'data.root="{pictures}"', "optimizer=sgd", "lr=constant"]
    done = frostline_command("train", "-m", *tiny, *own, "optimizer.lr=0.01,1e30", "seed=0,1", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("failed: job") == 2
    assert "optimizer.lr=1e+30" in done.stderr
    sweep = folder_of(done.stdout, "sweep")
    rows = table_of(sweep)
    assert [row["optimizer.lr"] for row in rows] == ["0.01", "0.01", "1e+30", "1e+30"]
    assert [row["status"][:6] for row in rows] == ["done", "done", "failed", "failed"]
    assert "the loss is" in rows[2]["status"]
    assert len({row["folder"] for row in rows}) == 4
    assert all(Path(row["folder"]).parent == sweep for row in rows)
    assert "test/accuracy" not in rows[0]
    assert float(rows[0]["val/accuracy"]) >= 0
    jobs, _, means = (sweep / "sweep.md").read_text().partition("Mean ± standard deviation over seed")
    assert jobs.count("| done |") == 2
    assert "| 1e+30 | 0 | 2 |" in means
    assert all(row["folder"] in done.stdout for row in rows)
    assert not (Path(rows[0]["folder"]) / "predictions" / "test.parquet").exists()
    assert not list((tmp_path / "outputs").rglob("test_looks.jsonl"))


@pytest.mark.slow
def test_a_sweep_scores_the_test_split_when_asked(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    own = ["data=folder", f'data.root="{pictures}"', "trainer.max_epochs=1", "test=true", "trainer=ddp_cpu"]
    done = frostline_command("train", "-m", *tiny, *own, "freeze=linear_probe,full", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = table_of(folder_of(done.stdout, "sweep"))
    assert all(0 <= float(row["test/accuracy"]) <= 1 for row in rows)
    # two processes each, and one look each
    looks = (tmp_path / "outputs" / "test_looks.jsonl").read_text().splitlines()
    assert {json.loads(line)["run"] for line in looks} == {
        os.path.relpath(row["folder"], tmp_path / "outputs") for row in rows
    }
    assert len(looks) == 2
    assert "test split scored 2 times, by this run and 1 other" in done.stdout


@pytest.mark.slow
def test_predict_labels_a_folder(finished: frostline.Run, pictures: Path, tmp_path: Path) -> None:
    done = frostline_command(
        "predict", f"run={finished.path}", f'images="{pictures}/test"', "output=p.csv", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    table = pyarrow.csv.read_csv(tmp_path / "p.csv").to_pydict()
    assert len(table["image"]) == 21
    right = [Path(image).parent.name == label for image, label in zip(table["image"], table["prediction"], strict=True)]
    assert sum(right) / 21 == pytest.approx(finished.metrics["test/accuracy"])
    sums = [sum(table[f"p({name})"][row] for name in ("blue, deep", "gréen", "red=1")) for row in range(21)]
    assert sums == pytest.approx([1.0] * 21)


@pytest.mark.slow
def test_inspect_writes_what_it_shows_and_trains_nothing(tmp_path: Path) -> None:
    done = frostline_command("inspect", "freeze=last_n", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "frost line" in done.stdout
    assert "frozen" in done.stdout
    assert "head" in done.stdout
    (written,) = (tmp_path / "outputs").iterdir()
    (folder,) = written.iterdir()
    assert written.name == "inspect"
    files = {"config.yaml", "classes.csv", "depth.csv", "phases.csv", "pictures.png", "thaw_plan.png", "thaw_plan.svg"}
    assert {path.name for path in folder.iterdir()} == files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "code", "part"),
    [
        (["data=folder", "data.root=absent"], 3, "absent"),
        (["backbone.name=resnet5"], 2, "resnet50"),
        (["+trainer.max_epoch=3"], 2, "max_epochs"),
        (["loss._target_=torch.nn.CrossEntropyLos"], 2, "CrossEntropyLos"),
        (
            ["optimizer.lr=1e30", "optimizer=sgd", "lr=constant", "backbone.name=test_resnet", "backbone.weights=none"],
            4,
            "nan",
        ),
        (["backbone.weights=absent.pth"], 5, "absent.pth"),
    ],
)
def test_faults_are_one_message_and_no_whole_folder(overrides: list[str], code: int, part: str, tmp_path: Path) -> None:
    done = frostline_command("train", *overrides, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "error: " in done.stderr
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("metrics.json"))
    assert not list(tmp_path.rglob("model"))
    # what a look at the config alone finds comes before the folder
    assert len(list(tmp_path.rglob("failure.json"))) == (part != "resnet50")


@pytest.mark.slow
def test_a_fault_on_another_rank_names_the_picture(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pictures, broken)
    victim = broken / "val" / "blue, deep" / "1.jpg"
    victim.write_bytes(victim.read_bytes()[:100])
    own = ["data=folder", "data.root=broken", "trainer=ddp_cpu", "output=out"]
    done = frostline_command("train", *tiny, *own, cwd=tmp_path)
    assert "1.jpg" in done.stderr
    (failure,) = tmp_path.rglob("failure.json")
    assert "1.jpg" in failure.read_text()
    assert done.returncode == 3, done.stderr


@pytest.mark.slow
def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = frostline_command("train", "data=folder", "data.root=absent", "debug=true", cwd=tmp_path)
    assert done.returncode == 3
    assert "Traceback" in done.stderr
