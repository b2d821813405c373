"""The thaw plot's figures: the plan and the fact of a schedule, without a Trainer."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import OmegaConf

from frostline.backbones import depth_groups
from frostline.freezing import FreezeSchedule, Progress
from frostline.runs.thaw import (
    COLUMNS,
    column_edges,
    draw_fact,
    draw_plan,
    plan_note,
    planned_rates,
    plot_name,
    rates,
    read_positions,
)
from frostline.specs import (
    Curve,
    EachSpec,
    FreezeSpec,
    LrSpec,
    PhaseSpec,
    PlateauSpec,
    SettleSpec,
    UntilSpec,
    WalkMode,
    WalkSpec,
    WarmupSpec,
)


@pytest.fixture(scope="module")
def schedule() -> FreezeSchedule:
    with torch.device("meta"):
        model = timm.create_model("test_resnet", num_classes=3)
    phases = {
        "probe": PhaseSpec("head", until=UntilSpec(epochs=4, plateau=PlateauSpec(patience=1))),
        "walk": PhaseSpec("body", WalkSpec(by=2, mode=WalkMode.solo), until=UntilSpec(epochs=3)),
        "full": PhaseSpec("all"),
    }
    groups = depth_groups(model)
    return FreezeSchedule(
        FreezeSpec(phases=phases), LrSpec(curve=Curve.constant), groups, model, steps_per_epoch=4, total_steps=40
    )


def record(path: Path, progress: Progress, schedule: FreezeSchedule) -> None:
    """What a run writes that the probe's plateau ends after two epochs."""
    rows = [[0, "probe", 0]]
    for step in range(40):
        while (transition := progress.advance(step)) is not None:
            position = transition.position
            rows.append([step, schedule.phase_of(position).name, position.stage])
        if (step + 1) % 4 == 0:
            progress.observe({"val/accuracy": 0.5})
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["step", "phase", "stage"], *rows])


def test_the_fact_is_read_back_from_the_record(schedule: FreezeSchedule, tmp_path: Path) -> None:
    progress = Progress(schedule)
    record(tmp_path / "schedule.csv", progress, schedule)
    positions = read_positions(tmp_path / "schedule.csv", schedule)
    assert [(position.phase, position.stage, position.stage_start) for position in positions] == [
        (0, 0, 0),
        (1, 0, 8),
        (1, 1, 12),
        (1, 2, 16),
        (2, 0, 20),
    ]
    assert positions[-1] == progress.position


def test_a_cell_is_the_rate_of_its_group_and_0_where_it_is_frozen(schedule: FreezeSchedule) -> None:
    found = rates(schedule, schedule.plan(), 0.1, range(40))
    names = [group.name for group in schedule.groups]
    for name, row in zip(names, found, strict=True):
        for step, rate in enumerate(row):
            learns = name in schedule.stage_of(schedule.position_at(step)).groups
            assert rate == pytest.approx(0.1 if learns else 0.0), (name, step)


def test_edges_hold_each_transition_and_no_more_than_a_plot_can_show() -> None:
    assert column_edges([0, 3, 7], 10) == list(range(11))
    edges = column_edges([0, 12_345, 99_999], 100_000)
    assert {0, 12_345, 99_999, 100_000} <= set(edges)
    assert len(edges) <= COLUMNS + 4
    assert column_edges([0, 8], 8) == list(range(9))


def test_plan_and_fact_are_drawn(schedule: FreezeSchedule, tmp_path: Path) -> None:
    record(tmp_path / "schedule.csv", Progress(schedule), schedule)
    plan = draw_plan(tmp_path, schedule, 0.1, "test_resnet")
    fact = draw_fact(tmp_path, tmp_path / "schedule.csv", schedule, 33, 0.1, "test_resnet")
    assert "test_resnet, as planned" in plan[1].read_text(encoding="utf-8")
    assert "test_resnet, as it was" in fact[1].read_text(encoding="utf-8")
    assert [path.name for path in (*plan, *fact)] == ["thaw_plan.png", "thaw_plan.svg", "thaw.png", "thaw.svg"]
    assert all(path.stat().st_size > 1000 for path in (*plan, *fact))


def walking(each: EachSpec) -> FreezeSchedule:
    with torch.device("meta"):
        model = timm.create_model("test_resnet", num_classes=3)
    spec = FreezeSpec(phases={"walk": PhaseSpec(walk=WalkSpec(mode=WalkMode.drop, each=each))})
    lr = LrSpec(curve=Curve.linear, warmup=WarmupSpec(steps=7001))
    return FreezeSchedule(spec, lr, depth_groups(model), model, steps_per_epoch=1000, total_steps=50_000)


@pytest.mark.parametrize(
    ("each", "note"),
    [
        (EachSpec(settle=SettleSpec()), "stages end when gradients settle: spread evenly here"),
        (EachSpec(plateau=PlateauSpec(patience=1)), "stages end when val/accuracy stops improving: spread evenly here"),
        (EachSpec(fraction=0.1, settle=SettleSpec()), ""),
        (EachSpec(steps=1000), ""),
    ],
)
def test_the_plan_says_where_it_is_an_even_spread(each: EachSpec, note: str) -> None:
    assert plan_note(walking(each)) == note


def test_no_peak_lies_between_the_columns_of_a_long_run() -> None:
    edges, found = planned_rates(walking(EachSpec(fraction=0.1)), 0.1)
    assert max(found[0]) == 0.1
    assert edges[found[0].index(0.1)] == 7001


@pytest.mark.parametrize(
    ("backbone", "shown"),
    [("vit_tiny", "digits, vit_tiny"), ("hf-hub:timm/resnet18", "digits, resnet18"), ("local-dir:/a/b", "digits, b")],
)
def test_plan_and_fact_have_one_name_without_a_path(backbone: str, shown: str) -> None:
    assert plot_name(OmegaConf.create({"name": "digits", "backbone": {"name": backbone}})) == shown
