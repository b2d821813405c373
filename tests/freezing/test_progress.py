"""A run on its way: what triggers bring about, in which order, and that it survives a checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from frostline.freezing import Decision, Progress, Validation
from frostline.specs import (
    BatchNormAffine,
    BatchNormSpec,
    EachSpec,
    Mode,
    PhaseSpec,
    PlateauSpec,
    SettleSpec,
    ThresholdSpec,
    UntilSpec,
    WalkMode,
    WalkOrder,
    WalkSpec,
)

BOTH = Validation(("val/accuracy", "val/loss"), "val/accuracy", larger_is_better=True)
PROBE = PhaseSpec("head", until=UntilSpec(epochs=5, plateau=PlateauSpec(patience=2)))
UP = ("stem", "blocks.0", "blocks.1", "blocks.2", "head")  # the groups of the hand-made network


def accuracy(*values):
    return [{"val/accuracy": value} for value in values]


def steps_of(transitions):
    return [(t.step, t.position.phase, t.position.stage) for t in transitions]


def drop(**each):
    return PhaseSpec(
        walk=WalkSpec(order=WalkOrder.bottom_up, mode=WalkMode.drop, each=EachSpec(**each) if each else None)
    )


@pytest.fixture
def progress(make_schedule):
    return lambda **options: Progress(make_schedule(**options))


def test_the_clock_brings_about_the_plan(progress, drive):
    run = progress(
        probe=PhaseSpec("head", until=UntilSpec(steps=7)), walk=PhaseSpec(walk=WalkSpec(by=3, each=EachSpec(epochs=2)))
    )
    assert not run.in_last_phase
    found = drive(run)
    assert steps_of(found) == [(7, 1, 0), (27, 1, 1)]
    assert [t.position for t in found] == list(run.schedule.plan()[1:])
    assert [(t.enters_phase, t.thawed, t.frozen) for t in found] == [
        (True, ("blocks.1", "blocks.2"), ()),
        (False, ("stem", "blocks.0"), ()),
    ]
    assert [t.reason for t in found] == ["after 7 steps", "after 20 steps"]
    assert (run.in_last_phase, run.has_arrived, run.is_over) == (True, True, False)


def test_a_transition_says_what_froze(progress, drive):
    run = progress(a=PhaseSpec("all", until=UntilSpec(steps=5)), b=PhaseSpec("head + bottom:1"))
    (found,) = drive(run)
    assert (found.thawed, found.frozen) == ((), ("blocks.0", "blocks.1", "blocks.2"))
    assert run.position.thawed == {"stem": 0, "head": 0}


def test_a_plateau_ends_a_phase_at_the_validation_that_fills_its_patience(progress, drive):
    run = progress(probe=PROBE, full=PhaseSpec("all"))
    (found,) = drive(run, accuracy(0.5, 0.4, 0.5, 0.9))
    assert steps_of([found]) == [(30, 1, 0)]
    assert found.reason == "plateau of val/accuracy at 0.5"
    assert run.schedule.length_at(run.position) == 70


def test_its_cap_ends_a_phase_that_keeps_improving(progress, drive):
    (found,) = drive(progress(probe=PROBE, full=PhaseSpec("all")), accuracy(*(i / 10 for i in range(10))))
    assert (found.step, found.reason) == (50, "after 50 steps")


def test_a_threshold_ends_a_phase_and_is_the_reason_where_both_fire(progress, drive):
    until = UntilSpec(epochs=5, plateau=PlateauSpec(patience=2), threshold=ThresholdSpec("val/loss", below=0.25))
    run = progress(probe=PhaseSpec("head", until=until), full=PhaseSpec("all"), validation=BOTH)
    metrics = [{"val/accuracy": 0.5, "val/loss": loss} for loss in (0.5, 0.3, 0.25)]
    (found,) = drive(run, metrics)
    assert (found.step, found.reason) == (30, "val/loss=0.25")


def test_a_metric_that_is_not_there_does_not_count(progress, drive):
    run = progress(probe=PROBE, full=PhaseSpec("all"), validation=BOTH)
    assert steps_of(drive(run, [*accuracy(0.5), {"val/loss": 1.0}, *accuracy(0.5), {}])) == [(50, 1, 0)]


def test_counters_start_anew_in_each_phase(progress, drive):
    until = UntilSpec(epochs=4, plateau=PlateauSpec(patience=2))
    run = progress(a=PhaseSpec("head", until=until), b=PhaseSpec("top:1", until=until), c=PhaseSpec("all"))
    # a: best 0.9, twice not better; b: 0.1 is a new best, then better, then twice not better
    found = drive(run, accuracy(0.9, 0.8, 0.8, 0.1, 0.2, 0.2, 0.1))
    assert steps_of(found) == [(30, 1, 0), (70, 2, 0)]
    assert found[1].reason == "plateau of val/accuracy at 0.2"


def test_a_plateau_in_the_last_phase_ends_the_run(progress, drive):
    run = progress(full=PhaseSpec("all", until=UntilSpec(plateau=PlateauSpec(patience=1))))
    assert not run.is_over
    assert drive(run, accuracy(0.5, 0.5)) == []
    assert run.is_over
    assert run.decision.reason == "plateau of val/accuracy at 0.5"
    # a trainer that goes on nevertheless, as min_epochs has it, stays where it is
    assert run.advance(20) is None
    assert not run.is_over


@pytest.mark.parametrize("each", [False, True])
def test_a_plateau_of_nothing_but_nan_ends_a_phase(progress, drive, each):
    plateau = PlateauSpec(patience=2)
    if each:
        run = progress(walk=PhaseSpec(walk=WalkSpec(by=3, each=EachSpec(plateau=plateau))))
    else:
        run = progress(probe=PROBE, full=PhaseSpec("all"))
    (found,) = drive(run, accuracy(math.nan, math.nan))
    assert found.step == 20
    assert found.reason.startswith("plateau of val/accuracy")


# --- walks ------------------------------------------------------------------------------------------------------------


def test_a_plateau_moves_a_walk_on_and_counts_from_each_stage(progress, drive):
    walk = WalkSpec(by=2, each=EachSpec(plateau=PlateauSpec(1, metric="val/loss", mode=Mode.min)))
    run = progress(walk=PhaseSpec(walk=walk), validation=BOTH)
    losses = [{"val/loss": value} for value in (0.5, 0.6, 0.7, 0.6, 0.6, 0.6, 0.6)]
    found = drive(run, losses)
    # 0.7 is the first of its stage, and better than nothing
    assert steps_of(found) == [(20, 0, 1), (50, 0, 2)]
    assert [t.reason for t in found] == ["plateau of val/loss at 0.5", "plateau of val/loss at 0.6"]
    assert [t.enters_phase for t in found] == [False, False]
    assert run.has_arrived


def test_a_cap_moves_a_walk_on_where_the_plateau_does_not(progress, drive):
    walk = WalkSpec(by=2, each=EachSpec(steps=25, plateau=PlateauSpec(1)))
    run = progress(walk=PhaseSpec(walk=walk))
    found = drive(run, accuracy(0.5, 0.6, 0.7, 0.7, 0.7, 0.7))
    # by the cap after 25; 0.7 at 30 is the first value of the second stage, and at 40 there is none better
    assert steps_of(found) == [(25, 0, 1), (40, 0, 2)]


def test_the_end_of_a_phase_goes_before_a_move_within_it(progress, drive):
    walk = WalkSpec(by=2, each=EachSpec(plateau=PlateauSpec(1)))
    phase = PhaseSpec(walk=walk, until=UntilSpec(epochs=5, threshold=ThresholdSpec(above=0.9)))
    found = drive(progress(walk=phase, full=PhaseSpec("all")), accuracy(0.95))
    assert steps_of(found) == [(10, 1, 0)]


def test_no_stage_begins_where_its_phase_ends_by_the_clock(progress, drive):
    walk = PhaseSpec(walk=WalkSpec(by=2, each=EachSpec(plateau=PlateauSpec(1))), until=UntilSpec(epochs=2))
    assert steps_of(drive(progress(walk=walk, full=PhaseSpec("all")), accuracy(0.5, 0.5))) == [(20, 1, 0)]


def test_two_changes_may_fall_on_one_step(progress, drive):
    """A phase that is one step long begins and ends between two steps of its neighbors."""
    run = progress(
        a=PhaseSpec("head", until=UntilSpec(steps=10, plateau=PlateauSpec(1))),
        b=PhaseSpec("body", until=UntilSpec(steps=1)),
        c=PhaseSpec("all"),
    )
    assert steps_of(drive(run, accuracy(0.5))) == [(10, 1, 0), (11, 2, 0)]
    assert run.position.thawed["stem"] == 10
    assert run.position.thawed["head"] == 11


# --- gradients --------------------------------------------------------------------------------------------------------

# by interval of ten steps: what each group's norm is; the stem settles first, then two at once
NORMS = (
    {"stem": 1.0, "blocks.0": 1.0, "blocks.1": 1.0, "blocks.2": 1.0, "head": 1.0},
    {"stem": 1.1, "blocks.0": 2.0, "blocks.1": 1.2, "blocks.2": 3.0, "head": 3.0},
    {"blocks.0": 2.2, "blocks.1": 1.2, "blocks.2": 6.0, "head": 6.0},
    {"blocks.2": 6.0, "head": 9.0},
)


def norms(step):
    return NORMS[min(step // 10, len(NORMS) - 1)]


def test_gradients_that_settle_drop_the_prefix(progress, drive):
    run = progress(walk=drop(settle=SettleSpec()))
    found = drive(run, norms=norms)
    # changes: stem 0.1, 1, 0.2, 2, 2: median 1, so that stem, blocks.0 and blocks.1 settle at once; then none of
    # the two that are left: blocks.2 1, head 1 are at the median both, and blocks.2 drops
    assert steps_of(found) == [(20, 0, 3), (30, 0, 4)]
    assert found[0].frozen == ("stem", "blocks.0", "blocks.1")
    assert found[0].reason == "gradients of 3 stages have settled"
    assert not run.watches_gradients


def test_a_lower_percentile_drops_one_at_a_time(progress, drive):
    found = drive(progress(walk=drop(settle=SettleSpec(percentile=25))), norms=norms)
    # quartiles: 0.2 of (0.1, 0.2, 1, 2, 2): the stem, but not blocks.0 and so not blocks.1; then of blocks.0 0.1,
    # blocks.1 0, blocks.2 1, head 1 it is 0.075, and blocks.0 holds blocks.1 back; then 0.375 of blocks.2 0, head 0.5
    # where blocks.0 and blocks.1 give no gradients any more
    assert steps_of(found) == [(20, 0, 1)]


def test_a_stage_of_several_groups_drops_when_all_of_them_have_settled(progress, drive):
    walk = WalkSpec(order=WalkOrder.bottom_up, mode=WalkMode.drop, by=2, each=EachSpec(settle=SettleSpec()))
    found = drive(progress(walk=PhaseSpec(walk=walk)), norms=norms)
    # three groups have settled at 20, which is one stage and a half
    assert steps_of(found)[0] == (20, 0, 1)
    assert found[0].frozen == ("stem", "blocks.0")


def test_an_interval_has_a_length_of_its_own(progress, drive):
    found = drive(progress(walk=drop(settle=SettleSpec(every=5))), norms=norms)
    # changes in 5..10 are all 0 and at the median: everything but the last stage drops
    assert steps_of(found) == [(10, 0, 4)]


def test_gradients_are_watched_only_while_a_walk_may_move(progress):
    run = progress(
        probe=PhaseSpec("head", until=UntilSpec(steps=5)), walk=drop(settle=SettleSpec()), steps_per_epoch=20
    )
    assert not run.watches_gradients
    assert run.observe_gradients({"head": 1.0}) is False
    run.advance(5)
    assert run.watches_gradients
    assert [run.observe_gradients({"head": 1.0}) for _ in range(20)] == [False] * 19 + [True]


def test_a_cap_drops_what_does_not_settle(progress, drive):
    # at the 0th percentile only the head, which does not change, has settled, and it is no prefix
    restless = {name: float(i) for i, name in enumerate(UP)}
    found = drive(
        progress(walk=drop(settle=SettleSpec(percentile=0), epochs=2)),
        norms=lambda step: {name: (1 + i) ** (step // 10) if i < 4 else 1.0 for name, i in restless.items()},
    )
    assert steps_of(found)[1:] == [(40, 0, 2), (60, 0, 3), (80, 0, 4)]


def test_a_group_that_drops_within_an_interval_is_not_held_against_the_others(progress, drive):
    change = {"stem": 0.0, "blocks.0": 0.47, "blocks.1": 0.8, "blocks.2": 0.3, "head": 0.2}
    found = drive(
        progress(walk=drop(settle=SettleSpec(), steps=15)),
        norms=lambda step: {name: 1.0 + by * (step >= 10) + 9 * (step >= 20) for name, by in change.items()},
    )
    # at 20 the median of 0.47, 0.8, 0.3 and 0.2 is 0.385: blocks.0 stays, to its cap at 30
    assert [transition.step for transition in found][:2] == [15, 30]


@pytest.mark.parametrize("keep", ["type:norm", None])
def test_gradients_count_for_groups_that_go_on_learning_in_part(progress, drive, keep):
    walk = WalkSpec(
        order=WalkOrder.bottom_up, mode=WalkMode.drop, keep=keep, each=EachSpec(settle=SettleSpec(percentile=25))
    )
    bn = BatchNormSpec(affine=BatchNormAffine.follow if keep else BatchNormAffine.train)
    found = drive(progress(walk=PhaseSpec(walk=walk), bn=bn), norms=norms)
    assert steps_of(found)[0] == (20, 0, 1)


def test_a_plateau_does_not_hold_back_what_has_settled(progress, drive):
    run = progress(walk=drop(settle=SettleSpec(), plateau=PlateauSpec(patience=1)))
    found = drive(run, accuracy(0.5, 0.5), norms=norms)
    assert steps_of(found)[0] == (20, 0, 3)


# --- checkpoints, and other ranks -------------------------------------------------------------------------------------


def state_of(run):
    return json.loads(json.dumps(run.state_dict()))


def test_a_decision_waits_in_the_checkpoint(make_schedule):
    schedule = make_schedule(probe=PROBE, full=PhaseSpec("all"))
    run, other = Progress(schedule), Progress(schedule)
    for value in (0.5, 0.5, 0.5):
        run.observe({"val/accuracy": value})
    assert run.decision
    other.load_state_dict(state_of(run))
    assert other.decision == run.decision
    assert other.advance(30) == run.advance(30)
    assert other.state_dict() == run.state_dict()


def test_what_was_counted_waits_in_the_checkpoint(make_schedule):
    schedule = make_schedule(
        walk=PhaseSpec(
            walk=WalkSpec(mode=WalkMode.drop, each=EachSpec(settle=SettleSpec(every=2), plateau=PlateauSpec(2))),
            until=UntilSpec(plateau=PlateauSpec(patience=4)),
        )
    )
    run = Progress(schedule)
    run.observe({"val/accuracy": 0.5})
    run.observe({"val/accuracy": 0.4})
    for norm in (1.0, 2.0, 3.0):
        run.observe_gradients({"head": norm})
    assert not run.decision
    other = Progress(schedule)
    other.load_state_dict(state_of(run))
    for each in (run, other):
        assert each.observe_gradients({"head": 2.0})
        each.decision = Decision()
        each.observe({"val/accuracy": 0.4})
        assert each.decision == Decision(stages=1, reason="plateau of val/accuracy at 0.5")
        each.observe({"val/accuracy": 0.4})
        each.observe({"val/accuracy": 0.4})
        assert each.decision.ends_phase
    assert other.state_dict() == run.state_dict()


def test_saving_and_going_on_leave_the_saved_state_alone(make_schedule, drive):
    schedule = make_schedule(walk=drop(steps=10), validation=BOTH)
    run = Progress(schedule)
    saved = run.state_dict()
    kept = json.dumps(saved)
    drive(run)
    assert json.dumps(saved) == kept
    run.load_state_dict(saved)
    drive(run)
    assert json.dumps(saved) == kept


def test_another_rank_obeys_the_decision_it_is_given(make_schedule):
    schedule = make_schedule(walk=drop(settle=SettleSpec()))
    run = Progress(schedule)
    run.decision = Decision(stages=2, reason="told")
    transition = run.advance(3)
    assert (transition.position.stage, transition.step, transition.reason) == (2, 3, "told")
    assert transition.position == replace(transition.position, stage_start=3, phase_start=0)
    assert not run.decision


def test_a_decision_is_no_decision_until_it_asks_for_something():
    assert not Decision()
    assert not Decision(reason="none")
    assert Decision(ends_phase=True)
    assert Decision(stages=1)


def test_what_is_upcoming_is_what_comes_and_changes_nothing(progress):
    run = progress(
        probe=PhaseSpec("head", until=UntilSpec(epochs=5, plateau=PlateauSpec(patience=1))),
        walk=drop(settle=SettleSpec(every=2)),
    )
    run.observe({"val/accuracy": 0.5})
    run.observe({"val/accuracy": 0.5})
    before = run.state_dict()
    assert run.upcoming(20).phase == 1
    assert run.state_dict() == before
    assert run.position.phase == 0
    ahead = run.upcoming(20)
    assert run.advance(20).position == ahead
    while run.advance(20) is not None:
        pass
    norms = dict.fromkeys(UP, 1.0)
    for _ in range(4):
        run.observe_gradients(norms)
    before = json.dumps(run.state_dict())
    ahead = run.upcoming(24)
    assert json.dumps(run.state_dict()) == before
    run.advance(24)
    assert run.position == ahead
