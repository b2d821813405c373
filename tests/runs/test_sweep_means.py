"""Folds and seeds of a sweep, taken together."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from frostline.runs import sweep
from frostline.runs.folder import RunFolder, write_json
from frostline.runs.sweep import Job
from frostline.runs.sweep_means import mean_table, means_of, report_means, title

MakeJob = Callable[..., Job]


@pytest.fixture
def job(tmp_path: Path) -> MakeJob:
    """Makes a job with a run folder of its own and these scores; one without scores has failed."""
    made = []

    def make(overrides: str, *, at: str | None = None, **scores: float) -> Job:
        folder = RunFolder(tmp_path / (at or f"run-{len(made)}"))
        folder.path.mkdir(exist_ok=True)
        if scores:
            write_json(folder.metrics, {name.replace("_", "/", 1): value for name, value in scores.items()})
        made.append(Job(len(made), tuple(overrides.split()), folder, 0 if scores else 3))
        return made[-1]

    return make


def test_a_row_for_each_setting_of_what_is_not_averaged(job: MakeJob) -> None:
    values = {
        (5, "linear_probe"): [0.5, 0.6, 0.7],
        (5, "full"): [0.4, 0.4, 0.4],
        (10, "linear_probe"): [0.8, 0.81, 0.85],
        (10, "full"): [0.9, 0.95, 1.0],
    }
    jobs = [
        job(f"data.labels_per_class={labels} freeze={freeze} seed={seed} trainer=cpu", val_accuracy=value)
        for (labels, freeze), found in values.items()
        for seed, value in enumerate(found)
    ]
    header, rows = mean_table(means_of(jobs))
    assert header == ["data.labels_per_class", "freeze", "runs", "failed", "val/accuracy"]
    assert [row[:4] for row in rows] == [[str(labels), freeze, "3", "0"] for labels, freeze in values]
    for row, found in zip(rows, values.values(), strict=True):
        assert row[4] == f"{statistics.mean(found):.4f} ± {statistics.stdev(found):.4f}"


def test_folds_and_seeds_alone_make_one_row(job: MakeJob) -> None:
    jobs = [
        job(f"data.folds=2 data.fold={fold} seed={seed}", val_accuracy=value, test_accuracy=value / 2, seconds=2.0)
        for fold, seed, value in ((0, 0, 0.2), (0, 1, 0.4), (1, 0, 0.6), (1, 1, 0.8))
    ]
    header, rows = mean_table(means_of(jobs))
    assert header == ["runs", "failed", "val/accuracy", "test/accuracy", "seconds"]
    assert rows == [["4", "0", "0.5000 ± 0.2582", "0.2500 ± 0.1291", "2.0 ± 0.0"]]


def test_what_failed_is_counted_and_not_averaged(job: MakeJob) -> None:
    jobs = [
        job("lr=a seed=0", val_accuracy=0.5),
        job("lr=a seed=1"),
        job("lr=b seed=0"),
        job("lr=b seed=1"),
    ]
    header, rows = mean_table(means_of(jobs))
    assert header == ["lr", "runs", "failed", "val/accuracy"]
    assert rows == [["a", "1", "1", "0.5000"], ["b", "0", "2", ""]]


def test_a_run_that_two_jobs_came_to_counts_once(job: MakeJob) -> None:
    jobs = [
        job("seed=0", at="same", val_accuracy=0.5),
        job("seed=0", at="same", val_accuracy=0.5),
        job("seed=1", val_accuracy=0.7),
    ]
    (found,) = means_of(jobs)
    assert found.runs == 2
    assert found.scores["val/accuracy"] == pytest.approx((0.6, statistics.stdev([0.5, 0.7])))


def test_a_score_that_some_runs_lack_has_no_mean(job: MakeJob) -> None:
    (found,) = means_of([job("seed=0", val_accuracy=0.5, test_accuracy=0.5), job("seed=1", val_accuracy=0.7)])
    assert list(found.scores) == ["val/accuracy"]


def test_without_a_seed_or_a_fold_that_varies_there_is_nothing_to_average(job: MakeJob, tmp_path: Path) -> None:
    assert means_of([job("lr=a seed=0", val_accuracy=0.5), job("lr=b seed=0", val_accuracy=0.6)]) == []
    assert means_of([job("seed=0", val_accuracy=0.5)]) == []
    assert means_of([]) == []
    report_means(tmp_path, [job("seed=0", val_accuracy=0.5)])
    report_means(tmp_path, [job("seed=0"), job("seed=1")])
    assert not (tmp_path / "sweep_mean.csv").exists()


@pytest.mark.parametrize("key", ["seed", "data.fold", "data.split_seed", "data.subset_seed"])
def test_the_keys_that_are_averaged_over(job: MakeJob, key: str) -> None:
    (found,) = means_of([job(f"{key}={value}", val_accuracy=0.5) for value in (0, 1)])
    assert (found.runs, dict(found.setting)) == (2, {})
    assert ("no standard error" in title([key])) == (key == "data.fold")


def test_the_table_is_printed_and_written(job: MakeJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [
        job(f"loss.name=a|b data.fold={fold} freeze={freeze}", val_accuracy=fold / 10, seconds=1.0)
        for freeze in ("full", "head")
        for fold in range(3)
    ]
    sweep.write_table(tmp_path, *sweep.table(jobs))
    report_means(tmp_path, jobs)
    shown = capsys.readouterr().out
    assert "Mean ± standard deviation over data.fold (folds share training pictures: no standard error)" in shown
    assert "0.1000 ± 0.1000" in shown
    with (tmp_path / "sweep_mean.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *["freeze", "runs", "failed", "val/accuracy mean", "val/accuracy sd", "seconds mean", "seconds sd"]
    ]
    assert [row["freeze"] for row in rows] == ["full", "head"]
    assert float(rows[0]["val/accuracy mean"]) == pytest.approx(0.1)
    assert float(rows[0]["val/accuracy sd"]) == pytest.approx(0.1)
    text = (tmp_path / "sweep.md").read_text(encoding="utf-8")
    assert sum(line.startswith("|---|") for line in text.splitlines()) == 2
    assert "| full | 3 | 0 | 0.1000 ± 0.1000 | 1.0 ± 0.0 |" in text
    with (tmp_path / "sweep.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 6
