from __future__ import annotations

import pytest

from frostline.freezing import describe
from frostline.specs import (
    Curve,
    EachSpec,
    LrScaleSpec,
    LrSpec,
    PhaseLrSpec,
    PhaseSpec,
    PlateauSpec,
    SettleSpec,
    ThresholdSpec,
    UntilSpec,
    WalkMode,
    WalkOrder,
    WalkSpec,
    WarmupSpec,
)


@pytest.fixture
def description(make_schedule):
    return describe(
        make_schedule(
            LrSpec(curve=Curve.linear),
            lr_decay=0.5,
            lr_scale=LrScaleSpec(head=2.0, body=0.1),
            probe=PhaseSpec("head", until=UntilSpec(epochs=2)),
            norms=PhaseSpec("head + type:norm", until=UntilSpec(steps=5)),
            full=PhaseSpec("all - bottom:1", lr=PhaseLrSpec(scale=0.1, warmup=WarmupSpec(steps=4))),
        )
    )


def test_depth_table(description):
    rows = description.groups
    assert [row.name for row in rows] == ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert [row.depth for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0].first_parameter == "scale"
    # scale 4, convolution 3 * 4 * 9 + 4, batch norm 4 + 4; block: 4 * 4 * 9 + 4 + 8; head: 4 * 2 + 2
    assert [row.parameters for row in rows] == [124, 156, 156, 156, 10]
    assert [row.lr_factor for row in rows] == pytest.approx([0.1 / 16, 0.1 / 8, 0.1 / 4, 0.1 / 2, 2.0])
    assert [row.phases for row in rows] == [(), ("full",), ("full",), ("full",), ("probe", "norms", "full")]
    assert [row.partly for row in rows] == [("norms",)] * 4 + [()]
    assert [row.learns_in for row in rows[:2]] == [("norms (partly)",), ("norms (partly)", "full")]
    assert rows[-1].learns_in == ("probe", "norms", "full")
    assert rows[0].learning == {"stem.1.weight", "stem.1.bias"}


def test_phase_table(description):
    probe, norms, full = description.phases
    assert (probe.start, probe.end, norms.start, norms.end, full.start, full.end) == (0, 20, 20, 25, 25, 100)
    assert (probe.parameters, norms.parameters, full.parameters) == (10, 10 + 4 * 8, 602 - 124)
    assert probe.share == pytest.approx(10 / 602)
    assert (probe.frost_line, probe.frost_line_name) == (4, "head")
    assert (norms.frost_line, norms.frost_line_name) == (0, "stem")
    assert (full.frost_line, full.frost_line_name) == (1, "blocks.0")
    assert (full.curve, full.warmup) == ("linear", 4)


def test_a_walk_has_a_row_for_each_stage(make_schedule):
    walk = WalkSpec(by=2, each=EachSpec(steps=20))
    rows = describe(make_schedule(thaw=PhaseSpec(walk=walk), lr=LrSpec(warmup=WarmupSpec(steps=4)))).phases
    assert [(row.name, row.phase_name, row.start, row.end) for row in rows] == [
        ("thaw 1/3", "thaw", 0, 20),
        ("thaw 2/3", "thaw", 20, 40),
        ("thaw 3/3", "thaw", 40, 100),
    ]
    assert [row.frost_line_name for row in rows] == ["blocks.2", "blocks.0", "stem"]
    assert [row.parameters for row in rows] == [10 + 156, 10 + 3 * 156, 602]
    # the phase warms up once, as it begins
    assert [row.warmup for row in rows] == [4, 0, 0]


def test_the_depth_table_names_the_stages_that_train_a_group(make_schedule):
    rows = describe(
        make_schedule(
            chain=PhaseSpec(
                walk=WalkSpec(mode=WalkMode.solo, order=WalkOrder.bottom_up, keep="param:bias"),
                until=UntilSpec(steps=50),
            ),
            full=PhaseSpec("all"),
        )
    ).groups
    assert [row.phases for row in rows] == [(f"chain[{i}]", "full") for i in range(1, 6)]
    others = ["2..5", "1,3..5", "1..2,4..5", "1..3,5", "1..4"]
    assert [row.partly for row in rows] == [(f"chain[{i}]",) for i in others]
    assert rows[0].learns_in == ("chain[1]", "chain[2..5] (partly)", "full")
    assert rows[1].learns_in == ("chain[1,3..5] (partly)", "chain[2]", "full")


def test_the_phase_table_says_what_may_end_a_row_earlier(make_schedule):
    until = UntilSpec(epochs=5, plateau=PlateauSpec(patience=2), threshold=ThresholdSpec("val/loss", below=0.25))
    each = EachSpec(settle=SettleSpec(), plateau=PlateauSpec(patience=1))
    rows = describe(
        make_schedule(
            probe=PhaseSpec("head", until=until),
            walk=PhaseSpec(walk=WalkSpec(mode=WalkMode.drop, by=3, each=each)),
        )
    ).phases
    assert [row.until for row in rows] == [
        "val/accuracy no better for 2; val/loss <= 0.25",
        "val/accuracy no better for 1; gradients settled, every 10 steps",
        "",
    ]
    assert [row.stage_until for row in rows] == [
        "",
        "val/accuracy no better for 1; gradients settled, every 10 steps",
        "",
    ]
    # stages without a planned end are spread over the phase
    assert [row.planned for row in rows] == [False, True, True]
    assert [(row.start, row.end) for row in rows] == [(0, 50), (50, 75), (75, 100)]


def test_a_group_that_trains_all_that_may_learn_is_trained_whole(make_schedule):
    allowed = frozenset({"blocks.1.conv.weight", "head.weight", "head.bias"})
    rows = describe(make_schedule(allowed=allowed, full=PhaseSpec("all"))).groups
    assert [row.phases for row in rows] == [(), (), ("full",), (), ("full",)]
    assert not any(row.partly for row in rows)


def test_a_walk_with_a_clock_is_not_only_planned(make_schedule):
    each = EachSpec(steps=20, plateau=PlateauSpec(patience=1))
    rows = describe(make_schedule(thaw=PhaseSpec(walk=WalkSpec(by=2, each=each)))).phases
    assert [(row.stage, row.stages, row.planned) for row in rows] == [(1, 3, False), (2, 3, False), (3, 3, False)]
