from __future__ import annotations

import re

import pytest

from frostline.errors import ConfigError
from frostline.freezing import FreezeSchedule
from frostline.specs import Curve, FreezeSpec, LrScaleSpec, LrSpec, PhaseLrSpec, PhaseSpec, UntilSpec, WarmupSpec
from frostline.types import DepthGroup


def test_one_phase_takes_the_whole_run(make_schedule):
    schedule = make_schedule(full=PhaseSpec(train="all"))
    (phase,) = schedule.phases
    assert (phase.name, phase.start, phase.end, phase.steps, phase.frost_line) == ("full", 0, 100, 100, 0)
    assert schedule.total_steps == 100


def test_phases_follow_each_other_and_the_last_takes_the_rest(make_schedule):
    schedule = make_schedule(
        probe=PhaseSpec(train="head", until=UntilSpec(epochs=2)),
        top=PhaseSpec(train="head + top:1", until=UntilSpec(steps=7)),
        refrozen=PhaseSpec(train="bottom:1"),
    )
    assert [(p.name, p.start, p.end, p.frost_line) for p in schedule.phases] == [
        ("probe", 0, 20, 4),
        ("top", 20, 27, 3),
        ("refrozen", 27, 100, 0),
    ]
    assert "head.weight" not in schedule.phases[2].trainable


def test_the_first_of_two_ends_counts(make_schedule):
    def end(**until):
        return make_schedule(a=PhaseSpec("head", UntilSpec(**until)), b=PhaseSpec("all")).phases[0].end

    assert end(epochs=2, steps=15) == 15
    assert end(epochs=2, steps=25) == 20


def test_phase_at_covers_each_step_once(make_schedule):
    schedule = make_schedule(a=PhaseSpec("head", UntilSpec(steps=3)), b=PhaseSpec("all"))
    names = [schedule.phase_at(step).name for step in range(101)]
    assert names == ["a"] * 3 + ["b"] * 98
    with pytest.raises(ValueError, match="from 0"):
        schedule.phase_at(-1)


def test_a_last_phase_may_state_the_end_of_the_run(make_schedule):
    schedule = make_schedule(a=PhaseSpec("head", UntilSpec(epochs=3)), b=PhaseSpec("all", UntilSpec(epochs=7)))
    assert schedule.phases[-1].end == 100


FAULTS = {
    "no until": (
        {"a": PhaseSpec("head"), "b": PhaseSpec("all")},
        "freeze.phases.a.until is missing.*Only the last.*freeze.phases.a.until.epochs",
    ),
    "empty until": ({"a": PhaseSpec("head", UntilSpec()), "b": PhaseSpec("all")}, "freeze.phases.a.until is missing"),
    "zero": ({"a": PhaseSpec("head", UntilSpec(epochs=0)), "b": PhaseSpec("all")}, "freeze.phases.a.until.epochs is 0"),
    "negative": (
        {"a": PhaseSpec("head", UntilSpec(steps=-1)), "b": PhaseSpec("all")},
        "freeze.phases.a.until.steps is -1",
    ),
    "beyond the run": (
        {"a": PhaseSpec("head", UntilSpec(epochs=11)), "b": PhaseSpec("all")},
        "freeze.phases.a.until ends phase 'a' after optimizer step 110, but the run has 100.*trainer.max_epochs",
    ),
    "sum beyond the run": (
        {"a": PhaseSpec("head", UntilSpec(epochs=6)), "b": PhaseSpec("all", UntilSpec(epochs=5))},
        "freeze.phases.b.until ends phase 'b' after optimizer step 110",
    ),
    "never starts": (
        {"a": PhaseSpec("head", UntilSpec(epochs=10)), "b": PhaseSpec("all")},
        "freeze.phases.b can never start.*Shorten freeze.phases.a.until",
    ),
    "last too short": (
        {"a": PhaseSpec("head", UntilSpec(epochs=2)), "b": PhaseSpec("all", UntilSpec(epochs=2))},
        "freeze.phases.b.until ends the last phase 'b' after optimizer step 40.*freeze.phases.b.until=null",
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
        make_schedule(LrSpec(warmup=WarmupSpec(steps=30)), a=PhaseSpec("head", UntilSpec(epochs=2)), b=PhaseSpec("all"))


def test_reports_all_faults_at_once(make_schedule):
    with pytest.raises(ConfigError) as caught:
        make_schedule(
            LrSpec(gamma=0.0, floor=2.0, milestones=[1.5]),
            lr_decay=1.5,
            lr_scale=LrScaleSpec(head=0.0, body=-1.0),
            a=PhaseSpec("haed"),
            b=PhaseSpec("path:nowhere", UntilSpec(epochs=0)),
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
            LrSpec(warmup=WarmupSpec(steps=1, epochs=1)), a=PhaseSpec("head", UntilSpec(epochs=2)), b=PhaseSpec("all")
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
        make_schedule(LrSpec(warmup=warmup), a=PhaseSpec("head", UntilSpec(epochs=4)), b=PhaseSpec("all")),
        make_schedule(LrSpec(), a=PhaseSpec("head", UntilSpec(epochs=4), own), b=PhaseSpec("all")),
    ):
        assert schedule.phases[0].lr.warmup == steps


def test_a_phase_states_its_own_curve_or_takes_the_run_s(make_schedule):
    schedule = make_schedule(
        LrSpec(curve=Curve.step, warmup=WarmupSpec(steps=2), floor=0.1, milestones=[0.3], gamma=0.5),
        a=PhaseSpec("head", UntilSpec(epochs=2)),
        b=PhaseSpec("all", lr=PhaseLrSpec(scale=0.1, curve=Curve.linear, warmup=WarmupSpec())),
    )
    first, second = (phase.lr for phase in schedule.phases)
    assert (first.scale, first.curve, first.warmup, first.milestones, first.gamma) == (1.0, Curve.step, 2, (0.3,), 0.5)
    assert (second.scale, second.curve, second.warmup, second.floor) == (0.1, Curve.linear, 0, 0.1)


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
