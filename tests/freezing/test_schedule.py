from __future__ import annotations

import re

import pytest

from frostline.errors import ConfigError
from frostline.freezing import FreezeSchedule, Position
from frostline.specs import (
    Curve,
    EachSpec,
    FreezeSpec,
    LrScaleSpec,
    LrSpec,
    PhaseLrSpec,
    PhaseSpec,
    PlateauSpec,
    ThresholdSpec,
    UntilSpec,
    WalkMode,
    WalkSpec,
    WarmupSpec,
)
from frostline.types import DepthGroup

PLATEAU = PlateauSpec(patience=2)


def places(schedule):
    """Name, first step and the step after the last of each planned phase."""
    starts = [position for position in schedule.plan() if position.stage == 0]
    ends = [schedule.phase_end(position) for position in starts]
    assert [position.phase_start for position in starts[1:]] == ends[:-1]
    return [(schedule.phase_of(p).name, p.phase_start, end) for p, end in zip(starts, ends, strict=True)]


def test_one_phase_takes_the_whole_run(make_schedule):
    schedule = make_schedule(full=PhaseSpec(train="all"))
    (phase,) = schedule.phases
    (position,) = schedule.plan()
    assert places(schedule) == [("full", 0, 100)]
    assert (phase.length, schedule.length_at(position), phase.frost_line, phase.ends_by_metric) == (None, 100, 0, False)
    assert schedule.total_steps == 100


def test_phases_follow_each_other_and_the_last_takes_the_rest(make_schedule):
    schedule = make_schedule(
        probe=PhaseSpec(train="head", until=UntilSpec(epochs=2)),
        top=PhaseSpec(train="head + top:1", until=UntilSpec(steps=7)),
        refrozen=PhaseSpec(train="bottom:1"),
    )
    assert places(schedule) == [("probe", 0, 20), ("top", 20, 27), ("refrozen", 27, 100)]
    assert [phase.frost_line for phase in schedule.phases] == [4, 3, 0]
    assert "head.weight" not in schedule.phases[2].trainable


def test_the_first_of_several_ends_counts(make_schedule):
    def end(**until):
        schedule = make_schedule(a=PhaseSpec("head", until=UntilSpec(**until)), b=PhaseSpec("all"))
        return places(schedule)[0][2]

    assert end(epochs=2, steps=15) == 15
    assert end(epochs=2, steps=25) == 20
    assert end(epochs=2, fraction=0.3) == 20
    assert end(epochs=2, fraction=0.1, steps=11) == 11


@pytest.mark.parametrize(("fraction", "steps"), [(0.5, 50), (0.104, 10), (0.106, 11), (0.001, 1), (0.99, 99)])
def test_a_fraction_is_of_the_whole_run(make_schedule, fraction, steps):
    schedule = make_schedule(
        first=PhaseSpec("head", until=UntilSpec(fraction=fraction)), rest=PhaseSpec("all", until=None)
    )
    assert places(schedule) == [("first", 0, steps), ("rest", steps, 100)]


def test_a_cap_stands_for_a_phase_that_a_metric_may_end(make_schedule):
    schedule = make_schedule(
        a=PhaseSpec("head", until=UntilSpec(epochs=3, plateau=PLATEAU)),
        b=PhaseSpec("body", until=UntilSpec(steps=5, threshold=ThresholdSpec(above=0.9))),
        c=PhaseSpec("all", until=UntilSpec(plateau=PLATEAU)),
    )
    assert places(schedule) == [("a", 0, 30), ("b", 30, 35), ("c", 35, 100)]
    assert [phase.ends_by_metric for phase in schedule.phases] == [True, True, True]
    assert [phase.length for phase in schedule.phases] == [30, 5, None]


def test_a_walk_that_counts_its_stages_is_as_long_as_they_are(make_schedule):
    schedule = make_schedule(walk=PhaseSpec(walk=WalkSpec(by=2, each=EachSpec(epochs=2))), full=PhaseSpec("all"))
    assert places(schedule) == [("walk", 0, 60), ("full", 60, 100)]
    assert [(p.stage, p.stage_start) for p in schedule.plan()] == [(0, 0), (1, 20), (2, 40), (0, 60)]


def test_a_position_covers_each_step_once(make_schedule):
    schedule = make_schedule(
        a=PhaseSpec("head", until=UntilSpec(steps=3)), b=PhaseSpec(walk=WalkSpec(by=3, each=EachSpec(steps=7)))
    )
    found = [schedule.position_at(step) for step in range(101)]
    assert [schedule.phase_of(position).name for position in found] == ["a"] * 3 + ["b"] * 98
    assert [position.stage for position in found] == [0] * 10 + [1] * 91
    assert schedule.stage_of(found[9]).frost_line == 2
    assert schedule.stage_of(found[10]).frost_line == 0
    with pytest.raises(ValueError, match="from 0"):
        schedule.position_at(-1)


def test_a_position_tells_since_when_each_group_learns(make_schedule):
    schedule = make_schedule(
        probe=PhaseSpec("head", until=UntilSpec(steps=10)),
        top=PhaseSpec("head + top:1", until=UntilSpec(steps=10)),
        body=PhaseSpec("body", until=UntilSpec(steps=10)),
        walk=PhaseSpec(walk=WalkSpec(mode=WalkMode.solo, by=2, each=EachSpec(steps=10))),
    )
    assert [dict(position.thawed) for position in schedule.plan()] == [
        {"head": 0},
        {"blocks.2": 10, "head": 0},
        {"stem": 20, "blocks.0": 20, "blocks.1": 20, "blocks.2": 10},
        {"blocks.2": 10, "head": 30},
        {"blocks.0": 40, "blocks.1": 40},
        {"stem": 50},
    ]
    assert schedule.start == schedule.plan()[0]


def test_the_last_phase_takes_what_an_earlier_one_leaves(make_schedule):
    schedule = make_schedule(
        a=PhaseSpec("head", until=UntilSpec(epochs=5, plateau=PLATEAU)),
        b=PhaseSpec("body", until=UntilSpec(epochs=1)),
        c=PhaseSpec(walk=WalkSpec(by=2, hold=0.1)),
    )
    b = schedule.next_phase(schedule.start, 20)
    assert b is not None
    assert (b.phase_start, schedule.phase_end(b)) == (20, 30)
    c = schedule.next_phase(b, 30)
    assert c is not None
    assert (schedule.length_at(c), schedule.phase_end(c)) == (70, 100)
    # three stages: the first has a tenth of the phase, the others share the rest
    assert schedule.stage_end(c) == 30 + 7
    second = schedule.next_stage(c, 37)
    assert second is not None
    assert schedule.stage_end(second) == 30 + 38
    last = schedule.next_stage(second, 68)
    assert last is not None
    assert (schedule.stage_end(last), schedule.next_stage(last, 90), schedule.next_phase(last, 100)) == (
        100,
        None,
        None,
    )


def test_what_is_due_by_the_clock(make_schedule):
    schedule = make_schedule(
        a=PhaseSpec(walk=WalkSpec(by=3, each=EachSpec(steps=5))), b=PhaseSpec("head", until=UntilSpec(steps=90))
    )
    start = schedule.start
    assert schedule.after(start, 4) is None
    second = schedule.after(start, 5)
    assert second == Position(0, 0, 1, 5, {"stem": 5, "blocks.0": 5, "blocks.1": 0, "blocks.2": 0, "head": 0})
    assert schedule.after(second, 9) is None
    third = schedule.after(second, 10)
    assert third == Position(1, 10, 0, 10, {"head": 0})
    assert schedule.after(third, 100) is None


def test_a_stage_may_be_passed_over(make_schedule):
    schedule = make_schedule(a=PhaseSpec(walk=WalkSpec()))
    jumped = schedule.next_stage(schedule.start, 13, count=2)
    assert (jumped.stage, jumped.stage_start, jumped.phase_start) == (2, 13, 0)
    assert schedule.next_stage(schedule.start, 13, count=99).stage == 4


def test_a_last_phase_may_state_the_end_of_the_run(make_schedule):
    schedule = make_schedule(
        a=PhaseSpec("head", until=UntilSpec(epochs=3)), b=PhaseSpec("all", until=UntilSpec(epochs=7))
    )
    assert places(schedule) == [("a", 0, 30), ("b", 30, 100)]


FAULTS = {
    "no until": (
        {"a": PhaseSpec("head"), "b": PhaseSpec("all")},
        "freeze.phases.a.until is missing.*Only the last.*freeze.phases.a.until.epochs",
    ),
    "empty until": (
        {"a": PhaseSpec("head", until=UntilSpec()), "b": PhaseSpec("all")},
        "freeze.phases.a.until is missing",
    ),
    "zero": (
        {"a": PhaseSpec("head", until=UntilSpec(epochs=0)), "b": PhaseSpec("all")},
        "freeze.phases.a.until.epochs is 0",
    ),
    "negative": (
        {"a": PhaseSpec("head", until=UntilSpec(steps=-1)), "b": PhaseSpec("all")},
        "freeze.phases.a.until.steps is -1",
    ),
    "beyond the run": (
        {"a": PhaseSpec("head", until=UntilSpec(epochs=11)), "b": PhaseSpec("all")},
        "freeze.phases.a.until ends phase 'a' after optimizer step 110, but the run has 100.*trainer.max_epochs",
    ),
    "sum beyond the run": (
        {"a": PhaseSpec("head", until=UntilSpec(epochs=6)), "b": PhaseSpec("all", until=UntilSpec(epochs=5))},
        "freeze.phases.b.until ends phase 'b' after optimizer step 110",
    ),
    "never starts": (
        {"a": PhaseSpec("head", until=UntilSpec(epochs=10)), "b": PhaseSpec("all")},
        "freeze.phases.b can never start.*Shorten freeze.phases.a.until",
    ),
    "last too short": (
        {"a": PhaseSpec("head", until=UntilSpec(epochs=2)), "b": PhaseSpec("all", until=UntilSpec(epochs=2))},
        "freeze.phases.b.until ends the last phase 'b' after optimizer step 40.*freeze.phases.b.until=null",
    ),
    "fraction of nothing": (
        {"a": PhaseSpec("head", until=UntilSpec(fraction=0.0)), "b": PhaseSpec("all")},
        "freeze.phases.a.until.fraction is 0.0.*share of the run",
    ),
    "fraction beyond 1": (
        {"a": PhaseSpec("head", until=UntilSpec(fraction=1.01)), "b": PhaseSpec("all")},
        "freeze.phases.a.until.fraction is 1.01",
    ),
    "fractions beyond the run": (
        {
            "a": PhaseSpec("head", until=UntilSpec(fraction=0.6)),
            "b": PhaseSpec("body", until=UntilSpec(fraction=0.5)),
            "c": PhaseSpec("all"),
        },
        "freeze.phases.b.until ends phase 'b' after optimizer step 110, but the run has 100",
    ),
    "no cap for a plateau": (
        {"a": PhaseSpec("head", until=UntilSpec(plateau=PLATEAU)), "b": PhaseSpec("all")},
        "freeze.phases.a.until has no cap: the metric may never end phase 'a'.*freeze.phases.a.until.epochs",
    ),
    "no cap for a threshold": (
        {"a": PhaseSpec("head", until=UntilSpec(threshold=ThresholdSpec(above=0.9))), "b": PhaseSpec("all")},
        "freeze.phases.a.until has no cap: the metric may never end phase 'a'.*freeze.phases.a.until.epochs",
    ),
    "a duration after a metric": (
        {
            "a": PhaseSpec("head", until=UntilSpec(epochs=3, plateau=PLATEAU)),
            "b": PhaseSpec("all", until=UntilSpec(epochs=7)),
        },
        "freeze.phases.b.until states a duration, but a metric may end phase 'a' early.*freeze.phases.b.until.epochs",
    ),
    "a duration long after a metric": (
        {
            "a": PhaseSpec("head", until=UntilSpec(epochs=3, threshold=ThresholdSpec(above=0.9))),
            "b": PhaseSpec("body", until=UntilSpec(epochs=3)),
            "c": PhaseSpec("all", until=UntilSpec(fraction=0.4)),
        },
        "freeze.phases.c.until states a duration, but a metric may end phase 'a' early",
    ),
    "a walk that only a metric moves, without an end": (
        {"a": PhaseSpec(walk=WalkSpec(each=EachSpec(plateau=PLATEAU))), "b": PhaseSpec("all")},
        "freeze.phases.a.until is missing: phase 'a' would never end",
    ),
    "a walk by shares, without an end": (
        {"a": PhaseSpec(walk=WalkSpec(each=EachSpec(fraction=0.1))), "b": PhaseSpec("all")},
        "freeze.phases.a.until is missing",
    ),
    "selector": ({"a": PhaseSpec("heads")}, "freeze.phases.a.train: Unknown selector 'heads'.*Did you mean 'head'"),
    "no phase": ({}, "freeze.phases is empty"),
    "scale": ({"a": PhaseSpec("head", lr=PhaseLrSpec(scale=0.0))}, "freeze.phases.a.lr.scale is 0"),
    "two warm-ups": (
        {"a": PhaseSpec("head", lr=PhaseLrSpec(warmup=WarmupSpec(steps=1, fraction=0.1)))},
        "freeze.phases.a.lr.warmup states steps and fraction.*freeze.phases.a.lr.warmup.steps=null",
    ),
    "negative warm-up": (
        {"a": PhaseSpec("head", lr=PhaseLrSpec(warmup=WarmupSpec(steps=-1)))},
        "freeze.phases.a.lr.warmup.steps is -1",
    ),
    "long warm-up": (
        {"a": PhaseSpec("head", lr=PhaseLrSpec(warmup=WarmupSpec(epochs=10.1)))},
        "freeze.phases.a.lr.warmup.epochs=10.1 is 101 optimizer steps, but phase 'a' has 100",
    ),
    "long fraction": (
        {"a": PhaseSpec("head", lr=PhaseLrSpec(warmup=WarmupSpec(fraction=1.5)))},
        "warmup.fraction=1.5 is 150 optimizer steps",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_refuses(make_schedule, case):
    phases, says = FAULTS[case]
    with pytest.raises(ConfigError) as caught:
        make_schedule(**phases)
    assert re.search(says, str(caught.value), re.DOTALL), str(caught.value)
    assert "faults in" not in str(caught.value)


def test_a_warm_up_of_the_run_that_outlasts_a_phase_names_both(make_schedule):
    with pytest.raises(ConfigError, match=r"lr\.warmup\.steps=30 is 30 .* phase 'a' has 20"):
        make_schedule(
            LrSpec(warmup=WarmupSpec(steps=30)), a=PhaseSpec("head", until=UntilSpec(epochs=2)), b=PhaseSpec("all")
        )


def test_reports_all_faults_at_once(make_schedule):
    with pytest.raises(ConfigError) as caught:
        make_schedule(
            LrSpec(gamma=0.0, floor=2.0, milestones=[1.5]),
            lr_decay=1.5,
            lr_scale=LrScaleSpec(head=0.0, body=-1.0),
            a=PhaseSpec("haed"),
            b=PhaseSpec("path:nowhere", until=UntilSpec(epochs=0)),
            c=PhaseSpec("all"),
        )
    text = str(caught.value)
    for key in (
        "lr.gamma",
        "lr.floor",
        "lr.milestones",
        "freeze.lr_decay",
        "freeze.lr_scale.head",
        "freeze.lr_scale.body",
        "freeze.phases.a.until",
        "freeze.phases.a.train",
        "freeze.phases.b.until.epochs",
        "freeze.phases.b.train",
    ):
        assert text.count(key + " ") + text.count(key + ":") == 1, text
    assert text.startswith("10 faults")


def test_one_fault_of_the_run_is_said_once(make_schedule):
    with pytest.raises(ConfigError) as caught:
        make_schedule(
            LrSpec(warmup=WarmupSpec(steps=1, epochs=1)),
            a=PhaseSpec("head", until=UntilSpec(epochs=2)),
            b=PhaseSpec("all"),
        )
    assert str(caught.value).startswith("lr.warmup states steps and epochs")


def test_a_run_without_steps_is_refused(make_schedule):
    with pytest.raises(ConfigError, match="0 optimizer steps"):
        make_schedule(total_steps=0, full=PhaseSpec("all"))


@pytest.mark.parametrize(
    ("warmup", "steps"),
    [
        (WarmupSpec(), 0),
        (WarmupSpec(steps=3), 3),
        (WarmupSpec(epochs=0.5), 5),
        (WarmupSpec(fraction=0.05), 2),
        (WarmupSpec(steps=40), 40),
        (WarmupSpec(steps=0), 0),
    ],
)
def test_warm_up_resolves_to_steps_of_the_phase(make_schedule, warmup, steps):
    own = PhaseLrSpec(warmup=warmup)
    for schedule in (
        make_schedule(LrSpec(warmup=warmup), a=PhaseSpec("head", until=UntilSpec(epochs=4)), b=PhaseSpec("all")),
        make_schedule(LrSpec(), a=PhaseSpec("head", until=UntilSpec(epochs=4), lr=own), b=PhaseSpec("all")),
    ):
        phase = schedule.phases[0]
        assert phase.lr.warmup.length(schedule.length_at(schedule.start)) == steps


def test_a_warm_up_s_share_is_of_the_phase_as_it_comes_out(make_schedule):
    """A metric that ends the phase before makes the last one longer."""
    schedule = make_schedule(
        a=PhaseSpec("head", until=UntilSpec(epochs=5, plateau=PLATEAU)),
        b=PhaseSpec("all", lr=PhaseLrSpec(warmup=WarmupSpec(fraction=0.1))),
    )
    planned, early = schedule.next_phase(schedule.start, 50), schedule.next_phase(schedule.start, 20)
    warmup = schedule.phases[1].lr.warmup
    assert (warmup.length(schedule.length_at(planned)), warmup.length(schedule.length_at(early))) == (5, 8)


def test_a_phase_states_its_own_curve_or_takes_the_run_s(make_schedule):
    schedule = make_schedule(
        LrSpec(curve=Curve.step, warmup=WarmupSpec(steps=2), floor=0.1, milestones=[0.3], gamma=0.5),
        a=PhaseSpec("head", until=UntilSpec(epochs=2)),
        b=PhaseSpec("all", lr=PhaseLrSpec(scale=0.1, curve=Curve.linear, warmup=WarmupSpec())),
    )
    first, second = (phase.lr for phase in schedule.phases)
    assert (first.scale, first.curve, first.milestones, first.gamma) == (1.0, Curve.step, (0.3,), 0.5)
    assert (second.scale, second.curve, second.floor) == (0.1, Curve.linear, 0.1)
    assert (first.warmup.length(20), second.warmup.length(80)) == (2, 0)


def test_a_parameter_in_no_group_or_in_two_is_refused(small):
    model, groups = small
    stem, *rest = groups
    without = (DepthGroup(0, "stem", stem.parameters[1:]), *rest)
    twice = (*groups, DepthGroup(9, "again", ("scale", "foreign.weight")))
    spec = FreezeSpec(phases={"full": PhaseSpec("all")})
    with pytest.raises(ConfigError, match="no depth group holds 'scale'"):
        FreezeSchedule(spec, LrSpec(), without, model, steps_per_epoch=1, total_steps=1)
    with pytest.raises(ConfigError, match=r"(?s)several depth groups hold 'scale'.*the model lacks 'foreign.weight'"):
        FreezeSchedule(spec, LrSpec(), twice, model, steps_per_epoch=1, total_steps=1)


def test_a_run_that_goes_on_must_still_reach_every_phase(make_schedule):
    phases = {"a": PhaseSpec("head", until=UntilSpec(epochs=2)), "b": PhaseSpec("body"), "c": PhaseSpec("all")}
    phases["b"].until = UntilSpec(epochs=3)
    schedule = make_schedule(**phases)
    middle = schedule.next_phase(schedule.start, 20)
    schedule.check_rest(middle, 45)
    late = schedule.next_phase(schedule.start, 75)
    with pytest.raises(ConfigError, match=r"(?s)phases\.c can never start: the run is at step 80 of 100.*max_epochs"):
        schedule.check_rest(late, 80)
    assert [place.phase_start for place in schedule.plan(middle)] == [20, 50]
