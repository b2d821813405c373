from __future__ import annotations

import math

import pytest
import torch

from frostline.freezing import Phase, PhaseLr
from frostline.optim import learning_rate, set_learning_rates
from frostline.specs import Curve


def phase(start=0, end=100, **lr):
    return Phase("p", frozenset({"w"}), start, end, PhaseLr(**lr), 0)


def rates(p, base=1.0, factor=1.0):
    return [learning_rate(base, p, factor, step) for step in range(p.start, p.end)]


def test_constant_is_the_product_of_its_factors():
    assert rates(phase(end=3, scale=0.1), base=2.0, factor=0.5) == pytest.approx([0.1] * 3)


def test_linear():
    assert rates(phase(end=4, curve=Curve.linear)) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates(phase(end=4, curve=Curve.linear, floor=0.2)) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_cosine_matches_pytorch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.03)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(phase(end=50, curve=Curve.cosine, floor=0.1), base=0.3) == pytest.approx(expected)


def test_step_falls_at_its_milestones():
    found = rates(phase(end=8, curve=Curve.step, milestones=(0.5, 0.75), gamma=0.1))
    assert found == pytest.approx([1.0] * 4 + [0.1] * 2 + [0.01] * 2)


def test_milestones_that_are_no_binary_fractions_fall_on_their_step():
    found = rates(phase(end=10, curve=Curve.step, milestones=(0.3, 0.6), gamma=0.5))
    assert found == pytest.approx([1.0] * 3 + [0.5] * 3 + [0.25] * 4)


@pytest.mark.parametrize("curve", list(Curve))
def test_warm_up_rises_in_a_line_and_never_is_zero(curve):
    found = rates(phase(end=20, curve=curve, warmup=4, milestones=(0.5,)))
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(found) == pytest.approx(1.0)


def test_a_warm_up_may_fill_its_phase():
    assert rates(phase(end=3, curve=Curve.cosine, warmup=3)) == pytest.approx([0.25, 0.5, 0.75])


@pytest.mark.parametrize("start", [0, 37])
@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_the_closed_form_written_out(start, warmup, floor):
    length, base, scale, factor = 40, 3e-3, 0.1, 0.75**3
    linear, cosine = (
        phase(start, start + length, scale=scale, curve=curve, warmup=warmup, floor=floor)
        for curve in (Curve.linear, Curve.cosine)
    )
    for t in range(length):
        rise = min(1.0, (t + 1) / (warmup + 1))
        p = max(0, t - warmup) / (length - warmup)
        straight = base * scale * factor * rise * (floor + (1 - floor) * (1 - p))
        curved = base * scale * factor * rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * p)))
        assert learning_rate(base, linear, factor, start + t) == pytest.approx(straight, rel=1e-12)
        assert learning_rate(base, cosine, factor, start + t) == pytest.approx(curved, rel=1e-12)


def test_the_clock_is_the_phase_s_own():
    early, late = phase(0, 30, curve=Curve.cosine, warmup=3), phase(70, 100, curve=Curve.cosine, warmup=3)
    assert rates(early) == rates(late)


def test_past_the_end_the_last_rate_holds():
    p = phase(10, 20, curve=Curve.linear)
    assert learning_rate(1.0, p, 1.0, 20) == learning_rate(1.0, p, 1.0, 19) == pytest.approx(0.1)


def test_sets_each_group_of_an_optimizer():
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a], "lr_factor": 1.0}, {"params": [b], "lr_factor": 0.1}], lr=9.0)
    set_learning_rates(optimizer, 0.5, phase(0, 4, curve=Curve.linear), 2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.25, 0.025])
