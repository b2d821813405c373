"""Every file of conf/freeze and conf/lr, composed by Hydra over the schema."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from frostline.config import register, spec_of
from frostline.freezing import FreezeSchedule
from frostline.specs import FreezeSpec, LrSpec

CONF = Path(__file__).parents[2] / "conf"
FREEZE = sorted(path.stem for path in (CONF / "freeze").glob("*.yaml"))
LR = sorted(path.stem for path in (CONF / "lr").glob("*.yaml"))
EPOCHS, STEPS = 20, 7


def compose_specs(*overrides: str) -> tuple[FreezeSpec, LrSpec]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+{o}" if o.partition("=")[0] in ("freeze", "lr") else o for o in overrides])
    return spec_of(config.freeze, FreezeSpec), spec_of(config.lr, LrSpec)


def resolve(grouped, *overrides: str) -> FreezeSchedule:
    model, groups = grouped
    return FreezeSchedule(*compose_specs(*overrides), groups, model, steps_per_epoch=STEPS, total_steps=EPOCHS * STEPS)


def test_some_are_there():
    assert {"full", "linear_probe", "last_n", "lp_ft"} <= set(FREEZE)
    assert {"cosine", "linear", "constant", "step"} <= set(LR)


@pytest.mark.parametrize("group", ["freeze", "lr"])
def test_each_says_what_it_is(group):
    for path in (CONF / group).glob("*.yaml"):
        assert path.read_text().startswith("# "), path


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("freeze", FREEZE)
def test_each_schedule_resolves_on_each_model(timm_model, freeze, name):
    schedule = resolve(timm_model(name), f"freeze={freeze}", "lr=cosine")
    assert schedule.phases[0].start == 0
    assert schedule.total_steps == EPOCHS * STEPS
    assert all(one.end == next_.start for one, next_ in zip(schedule.phases, schedule.phases[1:], strict=False))


@pytest.mark.parametrize("lr", LR)
def test_each_curve_resolves(small, lr):
    (phase,) = resolve(small, "freeze=full", f"lr={lr}").phases
    assert phase.lr.curve.name == lr
    assert phase.lr.warmup == (7 if lr in ("cosine", "linear") else 0)


def test_full_probe_and_last_n(small):
    model, groups = small
    (full,) = resolve(small, "freeze=full", "lr=cosine").phases
    (probe,) = resolve(small, "freeze=linear_probe", "lr=cosine").phases
    (two,) = resolve(small, "freeze=last_n", "lr=cosine").phases
    (three,) = resolve(small, "freeze=last_n", "lr=cosine", "freeze.phases.last_n.train='head + top:3'").phases
    assert full.trainable == {name for name, _ in model.named_parameters()}
    assert probe.trainable == set(groups[-1].parameters)
    assert two.trainable == {name for group in groups[2:] for name in group.parameters}
    assert three.trainable == {name for group in groups[1:] for name in group.parameters}


def test_lp_ft_probes_and_then_trains_all_at_a_tenth(small):
    probe, full = resolve(small, "freeze=lp_ft", "lr=cosine").phases
    assert (probe.end, full.end) == (5 * STEPS, EPOCHS * STEPS)
    assert (probe.lr.scale, full.lr.scale) == (1.0, 0.1)
    assert len(full.trainable) > len(probe.trainable)
    probe, _ = resolve(small, "freeze=lp_ft", "lr=cosine", "freeze.phases.probe.until.epochs=2").phases
    assert probe.end == 2 * STEPS


def test_a_phase_may_be_added_from_the_command_line(small):
    schedule = resolve(
        small,
        "freeze=linear_probe",
        "lr=cosine",
        "freeze.phases.probe.until={steps: 3}",
        "freeze.phases.rest={train: all}",
    )
    assert [phase.name for phase in schedule.phases] == ["probe", "rest"]
