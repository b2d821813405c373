"""The page of a run and of a sweep: that it says what the files say, and what becomes of runs that lack some."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from finished_runs import finished_run
from hydra.types import RunMode
from pages import Page, assert_loads_nothing

import frostline
from frostline.config import compose, hydra_session
from frostline.errors import ConfigError
from frostline.reports import PAGE_BYTES
from frostline.runs import report as command
from frostline.runs.folder import write_json
from frostline.runs.report import report
from frostline.runs.report_pictures import _reduction
from frostline.runs.sweep import unreported


@pytest.fixture(scope="module")
def run(tiny: list[str], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> frostline.Run:
    output = tmp_path_factory.mktemp("reported")
    own = ["data=folder", f'data.root="{pictures}"', f"output={output}", "freeze=lp_ft", "report=true", "data.size=64"]
    return frostline.train([*tiny, *own, "optimizer.lr=3e-3"])


def reported(run: Path, *overrides: str) -> Page:
    """The page that the command writes."""
    config = compose("report", ["run=x", "device=cpu", *overrides])
    config.run = str(run)
    return Page(report(config))


def copied(run: frostline.Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.path, tmp_path / "run"))


def test_a_run_ends_with_its_page(run: frostline.Run) -> None:
    found = Page(run.folder.report)
    assert_loads_nothing(found)
    assert len(found.source) < PAGE_BYTES
    record = json.loads(run.folder.evaluation("test").read_text())
    accuracy = record["scores"]["accuracy"]
    assert accuracy["value"] == pytest.approx(run.metrics["test/accuracy"], abs=1e-6)
    assert f"{100 * accuracy['value']:.1f} % [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]" in found.text
    assert "test split scored once" in found.text
    assert f"{run.metrics['gap/accuracy']:+.3f}" in found.text
    for fact in (
        "probe, then full",
        "train 30, val 15, test 21",
        "blue, deep",
        "gréen",
        "Temperature",
    ):
        assert fact in found.text, fact
    provenance = json.loads(run.folder.provenance.read_text())
    assert provenance["data_fingerprint"] in found.text
    assert provenance["packages"]["timm"] in found.text
    # the thaw plot, and pictures beside what the model looked at
    assert any(str(one["src"]).startswith("data:image/svg+xml") for one in found.all("img"))
    assert sum(str(one["alt"]).startswith("what the model looked at") for one in found.all("img")) >= 12
    assert "Grad-CAM of its last feature map" in found.text


def test_the_confusion_of_the_page_is_that_of_the_file_and_leads_to_pictures(run: frostline.Run) -> None:
    found = Page(run.folder.report)
    counts = json.loads(run.folder.evaluation("test").read_text())["confusion"]
    links = re.findall(r'href="#cell-(\d+)-(\d+)"[^>]*>(\d+)</a>', found.source)
    assert {(int(row), int(column)): int(count) for row, column, count in links} == {
        (row, column): count for row, line in enumerate(counts) for column, count in enumerate(line) if count
    }


def test_the_command_writes_it_again_and_counts_later_looks(run: frostline.Run, tmp_path: Path) -> None:
    path = copied(run, tmp_path)
    (path / "report.html").unlink()
    ledger = run.path.parents[1] / "test_looks.jsonl"
    line = json.loads(ledger.read_text().splitlines()[0])
    lines = [{**line, "run": "run"}, {**line, "run": "run", "command": "evaluate"}, {**line, "run": "other"}]
    (tmp_path / "test_looks.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    found = reported(path)
    assert "test split scored 3 times, by this run and 1 other" in found.text
    assert (path / "report.html").is_file()
    assert "Grad-CAM" in found.text


def test_without_its_pictures_there_is_a_page_that_says_so(run: frostline.Run, tmp_path: Path) -> None:
    path = copied(run, tmp_path)
    found = reported(path, f"root={tmp_path / 'nowhere'}", f"output={tmp_path / 'page.html'}")
    assert "Without pictures" in found.text
    assert not any(str(one["src"]).startswith("data:image/jpeg") for one in found.all("img"))
    assert "Wrong, and sure of it" in found.text or "Least certain" in found.text


def test_other_pictures_are_not_shown_as_those_of_the_run(run: frostline.Run, pictures: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(pictures, tmp_path / "other"))
    victim = next((other / "test").rglob("*.jpg"))
    shutil.copy(next((other / "train").rglob("*.jpg")), victim)
    found = reported(copied(run, tmp_path), f'root="{other}"')
    assert "not the ones that the run had" in found.text


def test_a_run_without_evaluations_or_predictions_has_what_is_left(run: frostline.Run, tmp_path: Path) -> None:
    path = copied(run, tmp_path)
    for name in ("evaluation", "predictions"):
        shutil.rmtree(path / name)
    for name in ("metrics.csv", "schedule.csv", "splits.csv", "calibration.json", "thaw.svg", "thaw.png"):
        (path / name).unlink()
    found = reported(path)
    assert "cannot be read" in found.text
    assert "probe, then full" in found.text


def test_a_fault_of_the_page_is_told_and_leaves_the_run_as_it_is(
    run: frostline.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(command, "run_page", fail)
    command.report_at_end(run.folder, None)  # type: ignore[arg-type]  # the fault comes before or after
    assert "no report was written" in capsys.readouterr().err


@pytest.mark.parametrize("made_by", ["pretrain", "probe"])
def test_a_run_of_another_command_is_refused(made_by: str, run: frostline.Run, tmp_path: Path) -> None:
    path = copied(run, tmp_path)
    record = json.loads((path / "provenance.json").read_text())
    write_json(path / "provenance.json", {**record, "command": made_by})
    with pytest.raises(ConfigError, match=f"is of `{made_by}`"):
        reported(path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run"):
        reported(tmp_path)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two schedules, three learning rates and two seeds, and a job that failed."""
    root = tmp_path_factory.mktemp("outputs") / "train" / "sweep"
    number = 0
    for freeze, best in (("full", 0.9), ("linear_probe", 0.7)):
        for rate in ("0.001", "0.01", "0.1"):
            for seed in (0, 1):
                own = [f"freeze={freeze}", f"optimizer.lr={rate}", f"seed={seed}"]
                score = best - (0.1 if rate == "0.1" else 0) + 0.01 * seed
                run = finished_run(
                    root / f"{number:03d}", *own, scores={"val/accuracy": score, "val/macro_f1": 1 - score}
                )
                record = {"number": number, "overrides": own, "folder": str(run), "exit_code": 0}
                write_json(root / f".job-{number:05d}.json", {**record, "before": False, "message": ""})
                number += 1
    record = {"number": number, "overrides": ["optimizer.lr=1e9"], "folder": str(root), "exit_code": 4}
    write_json(root / f".job-{number:05d}.json", {**record, "before": False, "message": "the loss is nan"})
    (root / "000" / "report.html").write_text("-")
    return root


def test_the_page_of_a_sweep_ranks_its_runs_and_names_what_failed(sweep: Path) -> None:
    found = reported(sweep)
    assert_loads_nothing(found)
    assert "12 finished, 1 without results" in found.text
    assert "the loss is nan" in found.text
    assert "0.9100, 00" in found.text
    for column in ("freeze", "optimizer.lr", "seed", "val/accuracy"):
        assert column in found.text
    assert len([one for one in found.all("polyline") if "data-run" in one]) == 12
    # the learning rate is on a logarithmic scale: its middle value is in the middle
    dots = sorted({float(str(one["cx"])) for one in found.all("circle")})
    assert len(dots) == 3
    assert dots[1] - dots[0] == pytest.approx(dots[2] - dots[1], abs=0.2)
    assert [one["href"] for one in found.all("a")] == ["000/report.html"]


def test_metric_and_axis_of_a_sweep_can_be_chosen(sweep: Path, tmp_path: Path) -> None:
    found = reported(sweep, "metric=val/macro_f1", "axis=seed", f"output={tmp_path / 'page.html'}")
    assert "compared by" in found.text
    assert len({one["cx"] for one in found.all("circle")}) == 2
    with pytest.raises(ConfigError, match="axis=freeze"):
        reported(sweep, "axis=freeze")
    with pytest.raises(ConfigError, match="no run has it"):
        reported(sweep, "metric=val/nothing", "mode=max")


def test_jobs_of_a_sweep_write_no_page_unless_it_is_asked_for() -> None:
    for overrides, wanted in ((["seed=0,1"], ["report=false"]), (["seed=0,1", "report=true"], [])):
        with hydra_session() as hydra:
            settings = hydra.compose_config("train", [], run_mode=RunMode.RUN)
            assert unreported(hydra, overrides, settings) == wanted


@pytest.mark.parametrize(
    ("size", "factor"), [((4000, 3000), 8), ((3000, 4000), 8), ((600, 500), 2), ((500, 400), 1), ((30, 20), 1)]
)
def test_a_large_picture_is_decoded_small_for_its_thumbnail(size: tuple[int, int], factor: int) -> None:
    assert _reduction(128, *size) == factor
