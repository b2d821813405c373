"""Proof 1: two ranks on different batches hold the same tensors, through probe, thaw and freezing again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from going_on import EVERYTHING, assert_same_run, command, rows, stopped_at

from frostline.runs.folder import RunFolder

pytestmark = pytest.mark.slow
RUN = [
    *EVERYTHING,
    "trainer=ddp_cpu",
    "optimizer=sgd",
    "freeze=linear_probe",
    "freeze.phases.probe.until={epochs: 1}",
    "freeze.phases.full={train: all, until: {epochs: 1}, start: best}",
    "freeze.phases.refrozen={train: 'head + top:1'}",
    "trainer.max_epochs=3",
    "data.workers=0",
    "test=false",
]
STEPS = 2  # an epoch: 30 pictures, half for each rank, batches of 4, two to a step


def compared_to(file: Path) -> str:
    return f'+callbacks.compare={{_target_: comparing.CompareRanks, file: "{file}"}}'


def lines_of(file: Path, at: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, file.read_text().splitlines()) if line["at"] == at]


def folder_in(cwd: Path) -> RunFolder:
    (run,) = (cwd / "outputs" / "train").iterdir()
    return RunFolder(run)


@pytest.fixture(scope="module")
def straight(tiny: list[str], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the command has run, with ``ranks.jsonl`` in it."""
    cwd = tmp_path_factory.mktemp("straight")
    own = [*tiny, *RUN, f'data.root="{pictures}"', compared_to(cwd / "ranks.jsonl")]
    done = command("train", *own, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


@pytest.mark.slow
def test_no_tensor_of_two_ranks_diverges_through_thawing_and_freezing_again(straight: Path) -> None:
    steps = lines_of(straight / "ranks.jsonl", "step")
    assert [(line["step"], line["phase"]) for line in steps] == [
        *[(1, "probe"), (2, "probe")],
        *[(3, "full"), (4, "full")],
        *[(5, "refrozen"), (6, "refrozen")],
    ]
    for line in steps:
        assert line["pictures"] == 0  # the ranks have seen other pictures
        apart = {kind: line[kind] for kind in ("parameters", "average", "optimizer", "frozen")}
        assert not any(apart.values()), (line["step"], apart)
        # a batch norm that learns has each rank's own statistics from its forward pass to the next, before which the
        # ranks are given the first's; in the probe none learns
        assert bool(line["learning"]) == (line["phase"] != "probe")
        assert all(name.rpartition(".")[2] in ("running_mean", "running_var") for name in line["learning"])
    # what is scored is one model, statistics included
    for line in lines_of(straight / "ranks.jsonl", "validation"):
        assert not any(line[kind] for kind in ("parameters", "learning", "frozen"))
    record = rows(folder_in(straight).schedule)
    assert [(row["phase"], row["step"]) for row in record] == [("probe", "0"), ("full", "2"), ("refrozen", "4")]


@pytest.mark.slow
def test_without_the_new_wrapper_they_diverge(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    """The negative control: the same run and the same look, with the re-wrap left out."""
    without = "+callbacks.without={_target_: comparing.WithoutRewrap}"
    own = [*tiny, *RUN, f'data.root="{pictures}"', compared_to(tmp_path / "ranks.jsonl"), without]
    done = command("train", *own, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = lines_of(tmp_path / "ranks.jsonl", "step")
    assert [bool(line["parameters"]) for line in steps] == [False, False, True, True, True, True]
    # the head alone is still reduced, but over another network on each rank
    assert steps[3]["farthest"] > 1e-6


@pytest.mark.slow
def test_stopped_in_a_later_phase_two_ranks_go_on_the_same(
    straight: Path, tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    """A resumed run is wrapped for its first phase before it knows that it is in another."""
    own = [*tiny, *RUN, f'data.root="{pictures}"', compared_to(tmp_path / "ranks.jsonl")]
    done = command("train", *own, stopped_at(tmp_path / "marks", ["on_train_batch_end:3"]), cwd=tmp_path)
    assert done.returncode == 143, done.stderr
    run = folder_in(tmp_path)
    done = command("train", f"run={run.path}", "resume=true", "trust=[stopping,comparing]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(folder_in(straight), run)
    steps = lines_of(tmp_path / "ranks.jsonl", "step")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert steps == lines_of(straight / "ranks.jsonl", "step")
