"""The learning rate of each group at each step is the closed form, which is written out here once more."""

from __future__ import annotations

import math

import pytest
import torch

from frostline.freezing import FreezeSchedule, PhaseLr, Warmup
from frostline.optim import LearningRates, curve_factor, learning_rate, warmup_factor
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
    WalkOrder,
    WalkSpec,
    WarmupSpec,
)

NAMES = ("g0", "g1", "g2", "g3", "g4", "head")
EXACT = {"rel": 1e-12, "abs": 0.0}


def rates(grouped, lr, length=100, start=0, base=1.0, factor=1.0, phase_lr=None):
    """The head's rate at each step of a phase that begins at ``start``."""
    model, groups = grouped
    phases = (
        {"before": PhaseSpec("all", until=UntilSpec(steps=start), lr=PhaseLrSpec(warmup=WarmupSpec()))} if start else {}
    )
    phases["p"] = PhaseSpec("head", lr=phase_lr or PhaseLrSpec())
    schedule = FreezeSchedule(
        FreezeSpec(phases=phases), lr, groups, model, steps_per_epoch=10, total_steps=start + length
    )
    return [
        learning_rate(schedule, schedule.position_at(step), base, step, "head", factor)
        for step in range(start, start + length)
    ]


# --- one curve ---


def test_constant_is_the_product_of_its_factors(small):
    lr = LrSpec(Curve.constant)
    assert rates(small, lr, 3, base=2.0, factor=0.5, phase_lr=PhaseLrSpec(0.1)) == pytest.approx([0.1] * 3)


def test_linear(small):
    assert rates(small, LrSpec(Curve.linear), 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates(small, LrSpec(Curve.linear, floor=0.2), 4) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_cosine_matches_pytorch(small):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.03)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(small, LrSpec(Curve.cosine, floor=0.1), 50, base=0.3) == pytest.approx(expected)


def test_step_falls_at_its_milestones(small):
    found = rates(small, LrSpec(Curve.step, milestones=[0.5, 0.75], gamma=0.1), 8)
    assert found == pytest.approx([1.0] * 4 + [0.1] * 2 + [0.01] * 2)


def test_milestones_that_are_no_binary_fractions_fall_on_their_step(small):
    found = rates(small, LrSpec(Curve.step, milestones=[0.3, 0.6], gamma=0.5), 10)
    assert found == pytest.approx([1.0] * 3 + [0.5] * 3 + [0.25] * 4)


@pytest.mark.parametrize("curve", list(Curve))
def test_warm_up_rises_in_a_line_and_never_is_zero(small, curve):
    found = rates(small, LrSpec(curve, WarmupSpec(steps=4), milestones=[0.5]), 20)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(found) == pytest.approx(1.0)


def test_a_warm_up_may_fill_its_phase(small):
    assert rates(small, LrSpec(Curve.cosine, WarmupSpec(steps=3)), 3) == pytest.approx([0.25, 0.5, 0.75])


@pytest.mark.parametrize("start", [0, 37])
@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_the_closed_form_of_a_curve(small, start, warmup, floor):
    length, base, scale, factor = 40, 3e-3, 0.1, 0.75**3
    straight, curved = (
        rates(small, LrSpec(curve, WarmupSpec(steps=warmup), floor), length, start, base, factor, PhaseLrSpec(scale))
        for curve in (Curve.linear, Curve.cosine)
    )
    for t in range(length):
        shared = base * scale * factor * min(1.0, (t + 1) / (warmup + 1))
        p = max(0, t - warmup) / (length - warmup)
        assert straight[t] == pytest.approx(shared * (floor + (1 - floor) * (1 - p)), rel=1e-12)
        cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * p))
        assert curved[t] == pytest.approx(shared * cosine, rel=1e-12)


def test_the_clock_is_the_phase_s_own(small):
    lr = LrSpec(Curve.cosine, WarmupSpec(steps=3))
    assert rates(small, lr, 30) == rates(small, lr, 30, start=70)


def test_past_the_end_the_last_rate_holds(small):
    model, groups = small
    spec = FreezeSpec(phases={"p": PhaseSpec("all")})
    schedule = FreezeSchedule(spec, LrSpec(Curve.linear), groups, model, steps_per_epoch=1, total_steps=10)
    late = [learning_rate(schedule, schedule.start, 1.0, step, "head") for step in (9, 10, 99)]
    assert late == pytest.approx([0.1] * 3)


def test_the_factors_by_themselves():
    assert [warmup_factor(t, 3) for t in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert warmup_factor(0, 0) == 1.0
    lr = PhaseLr(curve=Curve.linear, warmup=Warmup(fraction=0.2), floor=0.5)
    assert [curve_factor(lr, t, 10) for t in (0, 1, 2, 6)] == pytest.approx([1.0, 1.0, 1.0, 0.75])


# --- whole runs, with the optimizer's groups ---


def shape(curve, t, length, warmup=0, floor=0.0, milestones=(0.5, 0.75), gamma=0.1):
    """Warm-up and curve at step ``t`` of a phase, as DESIGN and the docstring have them."""
    if t < warmup:
        return (t + 1) / (warmup + 1)
    p = (t - warmup) / (length - warmup)
    return {
        "constant": 1.0,
        "linear": floor + (1 - floor) * (1 - p),
        "cosine": floor + (1 - floor) * (1 + math.cos(math.pi * p)) / 2,
        "step": gamma ** len([m for m in milestones if t >= m * length]),
    }[curve]


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("warmup", ["none", "steps", "fraction"])
@pytest.mark.parametrize("curve", [curve.name for curve in Curve])
def test_each_group_at_each_step_of_three_phases_of_which_a_metric_ends_the_first(small, go, curve, warmup, floor):
    spec = {"none": WarmupSpec(), "steps": WarmupSpec(steps=3), "fraction": WarmupSpec(fraction=0.2)}[warmup]
    gone = go(
        small,
        {
            "probe": PhaseSpec("head", until=UntilSpec(epochs=3, plateau=PlateauSpec(1))),
            "top": PhaseSpec("top:2", until=UntilSpec(steps=10), lr=PhaseLrSpec(0.1)),
            "full": PhaseSpec("all - bottom:1", lr=PhaseLrSpec(2.0)),
        },
        LrSpec(Curve[curve], spec, floor, [0.3, 0.6], 0.5),
        metrics=[0.5, 0.4],
        lr_decay=0.8,
        lr_scale=LrScaleSpec(head=3.0, body=0.25),
    )
    # the probe has a cap of 12 and ends at 8; the last phase has 22 steps in place of 18
    assert gone.starts == [0, 8, 18]
    for t, found in enumerate(gone.rates):
        scale, learning, begin, length = (
            (1.0, ["head"], 0, 12) if t < 8 else (0.1, ["g3", "g4"], 8, 10) if t < 18 else (2.0, NAMES[1:], 18, 22)
        )
        rise = {"none": 0, "steps": 3, "fraction": {12: 2, 10: 2, 22: 4}[length]}[warmup]
        shared = 3e-3 * scale * shape(curve, t - begin, length, rise, floor, (0.3, 0.6), 0.5)
        for depth, name in enumerate(NAMES):
            factor = 3.0 if name == "head" else 0.25 * 0.8 ** (5 - depth)
            expected = shared * factor if name in learning else 0.0
            assert found[name] == pytest.approx(expected, **EXACT), (t, name)
            assert found[f"{name}/no_decay"] == found[name]


def test_a_threshold_that_ends_the_last_phase_changes_no_rate(small, go):
    until = UntilSpec(threshold=ThresholdSpec(above=0.9))
    gone = go(small, {"full": PhaseSpec("all", until=until)}, LrSpec(Curve.cosine), metrics=[0.5, 0.95])
    assert len(gone.rates) == 8
    assert gone.of("g2") == pytest.approx([shape("cosine", t, 40) for t in range(8)], **EXACT)


def test_a_walk_is_one_phase_with_one_curve_and_what_thaws_warms_up(small, go):
    walk = WalkSpec(by=2, each=EachSpec(epochs=2))
    phase = PhaseSpec(walk=walk, rewarm=WarmupSpec(steps=4), lr=PhaseLrSpec(0.5, warmup=WarmupSpec(fraction=0.05)))
    gone = go(small, {"thaw": phase}, LrSpec(Curve.linear), lr_decay=0.5)
    assert gone.stages == [0, 8, 16]
    thaws = {"head": 0, "g4": 0, "g3": 8, "g2": 8, "g1": 16, "g0": 16}
    for t, found in enumerate(gone.rates):
        for depth, name in enumerate(NAMES):
            since = t - thaws[name]
            rewarm = min(1.0, (since + 1) / 5) if since >= 0 else 0.0
            expected = 3e-3 * 0.5 * 0.5 ** (5 - depth) * shape("linear", t, 40, 2) * rewarm
            assert found[name] == pytest.approx(expected, **EXACT), (t, name)


def test_a_walk_that_a_metric_moves(small, go):
    walk = WalkSpec(order=WalkOrder.bottom_up, by=3, each=EachSpec(plateau=PlateauSpec(1)))
    gone = go(small, {"thaw": PhaseSpec("all", walk=walk, rewarm=WarmupSpec(steps=3))}, metrics=[0.1, 0.2, 0.2])
    assert gone.stages == [0, 12]
    for t, found in enumerate(gone.rates):
        for depth, name in enumerate(NAMES):
            since = t - (0 if depth < 3 else 12)
            expected = 3e-3 * shape("cosine", t, 40) * (min(1.0, (since + 1) / 4) if since >= 0 else 0.0)
            assert found[name] == pytest.approx(expected, **EXACT), (t, name)


@pytest.mark.parametrize("order", list(WalkOrder))
def test_a_chain_thaws_one_after_the_other(small, go, order):
    gone = go(small, {"chain": PhaseSpec(walk=WalkSpec(order=order, mode=WalkMode.solo, each=EachSpec(steps=6)))})
    assert gone.stages == [0, 6, 12, 18, 24, 30]
    for t, found in enumerate(gone.rates):
        now = min(t // 6, 5)
        alone = NAMES[now] if order is WalkOrder.bottom_up else NAMES[5 - now]
        expected = {name: 3e-3 * shape("cosine", t, 40) if name == alone else 0.0 for name in NAMES}
        assert {name: found[name] for name in NAMES} == pytest.approx(expected, **EXACT), t


def test_what_drops_keeps_its_curve_until_then(small, go):
    walk = WalkSpec(order=WalkOrder.bottom_up, mode=WalkMode.drop, by=2, each=EachSpec(steps=10))
    gone = go(small, {"drop": PhaseSpec(walk=walk)})
    for t, found in enumerate(gone.rates):
        for depth, name in enumerate(NAMES):
            drops = {0: 10, 1: 20}.get(depth // 2, 40)
            assert found[name] == pytest.approx(3e-3 * shape("cosine", t, 40) * (t < drops), **EXACT), (t, name)


@pytest.mark.parametrize("curve", [Curve.constant, Curve.linear])
def test_what_is_annealed_reaches_zero_at_its_drop(small, go, curve):
    """Half a cosine over the time that each group has, in place of the phase's curve."""
    walk = WalkSpec(order=WalkOrder.bottom_up, mode=WalkMode.drop, each=EachSpec(steps=6), anneal=True)
    phase = PhaseSpec(walk=walk, lr=PhaseLrSpec(0.5, warmup=WarmupSpec(steps=2)))
    gone = go(
        small, {"first": PhaseSpec("head", until=UntilSpec(steps=3)), "out": phase}, LrSpec(curve), total_steps=43
    )
    assert gone.stages == [0, 3, 9, 15, 21, 27, 33]
    for t in range(40):
        for depth, name in enumerate(NAMES):
            rise = min(1.0, (t + 1) / 3)
            if name == "head":
                expected = rise * (1.0 if t < 2 else shape(curve.name, t, 40, 2))
            else:
                drop = 6 * (depth + 1)
                p = min(1.0, max(0, t - 2) / (drop - 2))
                expected = rise * (1 + math.cos(math.pi * p)) / 2 if t < drop else 0.0
            assert gone.rates[t + 3][name] == pytest.approx(3e-3 * 0.5 * expected, **EXACT), (t, name)


def test_annealing_by_shares_follows_a_phase_that_comes_out_longer(small, go):
    walk = WalkSpec(order=WalkOrder.bottom_up, mode=WalkMode.drop, by=3, each=EachSpec(fraction=0.5), anneal=True)
    probe = PhaseSpec("head", until=UntilSpec(epochs=5, plateau=PlateauSpec(1)))
    gone = go(small, {"probe": probe, "out": PhaseSpec(walk=walk)}, metrics=[0.5, 0.5])
    # the probe ends at 8 in place of 20, and half of what is left is 16 in place of 10
    assert gone.stages == [0, 8, 24]
    expected = [0.0] * 8 + [(1 + math.cos(math.pi * t / 16)) / 2 for t in range(16)] + [0.0] * 16
    assert gone.of("g0") == pytest.approx(expected, abs=1e-15)
    assert gone.of("head")[8:] == pytest.approx([shape("cosine", t, 32) for t in range(32)], **EXACT)


def test_what_freezes_and_thaws_again_warms_up_again(small, go):
    gone = go(
        small,
        {
            "all": PhaseSpec("all", until=UntilSpec(steps=10)),
            "head": PhaseSpec("head", until=UntilSpec(steps=10)),
            "again": PhaseSpec("all", rewarm=WarmupSpec(steps=4)),
        },
        LrSpec(Curve.constant),
    )
    assert gone.of("g2") == pytest.approx([1.0] * 10 + [0.0] * 10 + [0.2, 0.4, 0.6, 0.8] + [1.0] * 16)
    assert gone.of("head") == pytest.approx([1.0] * 40)


def test_a_group_that_learned_before_the_phase_does_not_warm_up_in_it(small, go):
    gone = go(
        small,
        {
            "head": PhaseSpec("head", until=UntilSpec(steps=2)),
            "full": PhaseSpec("all", rewarm=WarmupSpec(steps=9)),
        },
        LrSpec(Curve.constant),
    )
    assert gone.of("head") == pytest.approx([1.0] * 40)
    assert gone.of("g0") == pytest.approx([0.0] * 2 + [i / 10 for i in range(1, 10)] + [1.0] * 29)


def test_a_group_of_the_optimizer_in_which_nothing_learns_has_no_rate(small, go):
    """Biases learn, weights do not: they are in groups of their own, as they have no weight decay."""
    gone = go(small, {"biases": PhaseSpec("head + param:bias")})
    assert {name for name, rate in gone.rates[0].items() if rate} == {"head"} | {f"{name}/no_decay" for name in NAMES}
    assert {rate for rate in gone.rates[0].values() if rate} == {3e-3}


def test_the_rate_of_a_step_is_a_function_of_its_position_alone(small):
    """In any order, and a second time, the same: there is no state."""
    model, groups = small
    walk = WalkSpec(each=EachSpec(steps=5))
    spec = FreezeSpec(phases={"a": PhaseSpec(walk=walk, until=UntilSpec(steps=30)), "b": PhaseSpec("head")})
    schedule = FreezeSchedule(spec, LrSpec(), groups, model, steps_per_epoch=4, total_steps=40)
    optimizer = torch.optim.SGD(
        [{"params": list(model.get_submodule(name).parameters()), "group": name, "lr_factor": 1.0} for name in NAMES]
    )

    def at(step):
        LearningRates(schedule).set(optimizer, 1.0, schedule.position_at(step), step)
        return [group["lr"] for group in optimizer.param_groups]

    forward = [at(step) for step in range(40)]
    assert [at(step) for step in reversed(range(40))] == forward[::-1]


def test_sets_each_group_of_an_optimizer(small):
    model, groups = small
    a, b, c = (torch.zeros(1, requires_grad=needed) for needed in (True, True, False))
    optimizer = torch.optim.SGD(
        [
            {"params": [a], "group": "head", "lr_factor": 1.0},
            {"params": [b], "group": "g1", "lr_factor": 0.1},
            {"params": [c], "group": "g1", "lr_factor": 0.1},
        ],
        lr=9.0,
    )
    spec = FreezeSpec(phases={"p": PhaseSpec("all")})
    schedule = FreezeSchedule(spec, LrSpec(Curve.linear), groups, model, steps_per_epoch=4, total_steps=4)
    LearningRates(schedule).set(optimizer, 0.5, schedule.start, 2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.25, 0.025, 0.0])
