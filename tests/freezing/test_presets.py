"""Every file of conf/freeze and conf/lr, composed by Hydra over the schema."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from frostline.backbones.depth import depth_of
from frostline.config import register, spec_of
from frostline.freezing import FreezeSchedule
from frostline.freezing.phase import Plateau, Settle, Warmup
from frostline.optim import learning_rate
from frostline.specs import BatchNormAffine, BatchNormMode, Curve, DepthSpec, FreezeSpec, LrSpec

CONF = Path(__file__).parents[2] / "conf"
FREEZE = sorted(path.stem for path in (CONF / "freeze").glob("*.yaml"))
LR = sorted(path.stem for path in (CONF / "lr").glob("*.yaml"))
EPOCHS, STEPS = 10, 20
TOTAL = EPOCHS * STEPS
MODELS = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")


@cache
def compose_specs(*overrides: str) -> tuple[FreezeSpec, LrSpec]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+{o}" if o.partition("=")[0] in ("freeze", "lr") else o for o in overrides])
    return spec_of(config.freeze, FreezeSpec), spec_of(config.lr, LrSpec)


def resolve(grouped, *overrides: str) -> FreezeSchedule:
    model, groups = grouped
    return FreezeSchedule(*compose_specs(*overrides), groups, model, steps_per_epoch=STEPS, total_steps=TOTAL)


@cache
def grouped(name: str, bins: int | None = None):
    """A model without values, and its depth groups as a run makes them."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=3)
    return model, depth_of(model, DepthSpec(bins=bins)).groups


def preset(freeze: str, name: str, *overrides: str) -> FreezeSchedule:
    """A preset on a model, over the depth groups that it asks for."""
    selected = (f"freeze={freeze}", "lr=cosine", *overrides)
    return resolve(grouped(name, compose_specs(*selected)[0].depth.bins), *selected)


def parameters(schedule: FreezeSchedule, *positions: int | slice) -> set[str]:
    """All parameters of the depth groups at ``positions``."""
    names = set()
    for at in positions:
        groups = schedule.groups[at] if isinstance(at, slice) else [schedule.groups[at]]
        names |= {name for group in groups for name in group.parameters}
    return names


def phases_of(schedule: FreezeSchedule) -> list[tuple[str, int, int]]:
    """Name, first step and the step after the last of each phase."""
    plan = [position for position in schedule.plan() if position.stage == 0]
    return [(schedule.phase_of(at).name, at.phase_start, schedule.phase_end(at)) for at in plan]


def stages_of(schedule: FreezeSchedule) -> list[tuple[int, frozenset[str]]]:
    """The first step of each stage, and what it trains."""
    return [(position.stage_start, schedule.stage_of(position).trainable) for position in schedule.plan()]


def test_some_are_there():
    assert set(FREEZE) >= {
        "adaptive",
        "bitfit",
        "chain_thaw",
        "discriminative",
        "freeze_embed",
        "freeze_out",
        "full",
        "gradual",
        "gradual_bottom",
        "last_n",
        "linear_probe",
        "llrd",
        "lp_ft",
        "norm_only",
        "plateau",
        "surgical",
        "ulmfit",
    }
    assert {"cosine", "linear", "constant", "step"} <= set(LR)


@pytest.mark.parametrize("group", ["freeze", "lr"])
def test_each_says_what_it_is(group):
    for path in (CONF / group).glob("*.yaml"):
        assert path.read_text().startswith("# "), path


@pytest.mark.parametrize("freeze", FREEZE)
def test_each_names_its_source(freeze):
    text = (CONF / "freeze" / f"{freeze}.yaml").read_text()
    assert freeze == "full" or "arXiv:" in text or "doi:" in text


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("freeze", FREEZE)
def test_each_schedule_resolves_on_each_model(freeze, name):
    schedule = preset(freeze, name)
    found = phases_of(schedule)
    assert found[0][1] == 0
    assert found[-1][2] == TOTAL
    assert all(end == start for (_, _, end), (_, start, _) in pairwise(found))
    # the head learns in all of them at some time
    assert any("head" in stage.groups for phase in schedule.phases for stage in phase.stages)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("freeze", "held"),
    [
        ("full", [slice(None)]),
        ("linear_probe", [-1]),
        ("last_n", [slice(-3, None)]),
        ("freeze_embed", [slice(1, None)]),
        ("surgical", [0, 1, -1]),
        ("llrd", [slice(None)]),
    ],
)
def test_presets_of_one_set_of_groups(freeze, held, name):
    schedule = preset(freeze, name)
    assert stages_of(schedule) == [(0, parameters(schedule, *held))]
    assert schedule.phases[0].lr.scale == 1.0


@pytest.mark.parametrize("name", MODELS)
def test_bitfit_trains_the_head_and_all_biases(name):
    schedule = preset("bitfit", name)
    ((_, trainable),) = stages_of(schedule)
    assert trainable == parameters(schedule, -1) | {key for key in schedule.sizes if key.endswith("bias")}
    # Ben Zaken et al.: under a hundredth or so of the parameters of a transformer
    assert name != "test_vit" or sum(schedule.sizes[key] for key in trainable) < 0.02 * sum(schedule.sizes.values())


@pytest.mark.parametrize("name", MODELS)
def test_norm_only_trains_the_head_and_all_norms(name):
    model, _ = grouped(name)
    schedule = preset("norm_only", name)
    norms = {
        f"{path}.{key}"
        for path, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)
        for key, _ in module.named_parameters(recurse=False)
    }
    assert len(norms) > 10
    assert stages_of(schedule) == [(0, parameters(schedule, -1) | norms)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("freeze", ["gradual", "ulmfit"])
def test_gradual_unfreezing_adds_the_next_group_below(freeze, name):
    schedule = preset(freeze, name)
    count = len(schedule.groups)
    assert count == (4 if freeze == "ulmfit" else 6 if name == "test_resnet" else 7)
    # a tenth of the run each, an epoch of these ten; the last has the rest
    expected = [(STEPS * k, parameters(schedule, slice(count - 1 - k, None))) for k in range(count)]
    assert stages_of(schedule) == expected
    assert schedule.phases[0].rewarm.length(TOTAL) == 4
    assert phases_of(schedule) == [("thaw", 0, TOTAL)]


@pytest.mark.parametrize("name", MODELS)
def test_gradual_bottom_adds_the_next_group_above_to_the_head(name):
    schedule = preset("gradual_bottom", name)
    count = len(schedule.groups) - 1
    assert stages_of(schedule) == [(STEPS * k, parameters(schedule, slice(k + 1), -1)) for k in range(count)]


def test_one_group_an_epoch_is_an_override_away():
    """As its header says."""
    epochs = "freeze.phases.thaw.walk.each={epochs: 1, fraction: null}"
    schedule = preset("gradual", "test_vit", epochs)
    assert schedule.phases[0].pace.steps == STEPS
    assert stages_of(schedule) == stages_of(preset("gradual", "test_vit"))


@pytest.mark.parametrize("name", MODELS)
def test_ulmfit_divides_the_rate_by_2_6_for_each_group_below(name):
    schedule = preset("ulmfit", name)
    factors = [schedule.lr_factors[group.name] for group in schedule.groups]
    assert factors == pytest.approx([1 / 2.6**3, 1 / 2.6**2, 1 / 2.6, 1.0], rel=2e-4)


@pytest.mark.parametrize("name", MODELS)
def test_llrd_decays_by_three_quarters(name):
    schedule = preset("llrd", name)
    deepest = len(schedule.groups) - 1
    for group in schedule.groups:
        assert schedule.lr_factors[group.name] == pytest.approx(0.75 ** (deepest - group.depth))


@pytest.mark.parametrize("name", MODELS)
def test_discriminative_is_fastai_s_fine_tune(name):
    """One part for the head and the batch norms, then all at half the rate, over rate / 100 to rate."""
    schedule = preset("discriminative", name)
    affine = {
        f"{path}.{key}"
        for path, module in grouped(name)[0].named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key in ("weight", "bias")
    }
    assert phases_of(schedule) == [("probe", 0, 20), ("full", 20, TOTAL)]
    assert stages_of(schedule) == [(0, parameters(schedule, -1) | affine), (20, set(schedule.sizes))]
    assert [schedule.lr_factors[group.name] for group in schedule.groups] == pytest.approx([0.01, 0.1, 1.0])
    assert [phase.lr.scale for phase in schedule.phases] == [1.0, 0.5]
    assert {(phase.bn.affine, phase.bn.frozen) for phase in schedule.phases} == {
        (BatchNormAffine.train, BatchNormMode.batch)
    }


@pytest.mark.parametrize("name", MODELS)
def test_chain_thaw_trains_what_is_new_then_each_group_alone_then_all(name):
    schedule = preset("chain_thaw", name)
    count = len(schedule.groups) - 1
    assert phases_of(schedule) == [("probe", 0, 40), ("chain", 40, 140), ("full", 140, TOTAL)]
    starts, sets = zip(*stages_of(schedule), strict=True)
    assert sets == (
        parameters(schedule, -1),
        *(parameters(schedule, k) for k in range(count)),
        set(schedule.sizes),
    )
    assert starts == (0, *(40 + round(100 * k / count) for k in range(count)), 140)
    assert not any(phase.starts_from_best for phase in schedule.phases)
    assert schedule.phases[1].lr.curve is Curve.constant


@pytest.mark.parametrize("name", MODELS)
def test_lp_ft_goes_on_from_the_best_head_at_a_tenth_of_the_rate(name):
    schedule = preset("lp_ft", name)
    assert phases_of(schedule) == [("probe", 0, 100), ("full", 100, TOTAL)]
    assert stages_of(schedule) == [(0, parameters(schedule, -1)), (100, set(schedule.sizes))]
    assert [(phase.lr.scale, phase.starts_from_best) for phase in schedule.phases] == [(1.0, False), (0.1, True)]


@pytest.mark.parametrize("name", MODELS)
def test_plateau_goes_on_when_the_monitor_does_not_improve(name):
    schedule = preset("plateau", name)
    count = len(schedule.groups)
    assert phases_of(schedule) == [("probe", 0, 70), ("upper", 70, 140), ("full", 140, TOTAL)]
    assert [trainable for _, trainable in stages_of(schedule)] == [
        parameters(schedule, -1),
        parameters(schedule, slice(count // 2, None)),
        set(schedule.sizes),
    ]
    watched = Plateau("val/accuracy", True, 2)
    assert [phase.plateau for phase in schedule.phases] == [watched, watched, None]
    assert [phase.starts_from_best for phase in schedule.phases] == [False, True, True]


@pytest.mark.parametrize("name", MODELS)
def test_adaptive_drops_the_front_by_its_gradients(name):
    schedule = preset("adaptive", name)
    (phase,) = schedule.phases
    count = len(schedule.groups)
    assert [stage.trainable for stage in phase.stages] == [parameters(schedule, slice(k, None)) for k in range(count)]
    # the median of changes, once an epoch, and nothing but the gradients moves it
    assert (phase.settle, phase.pace, phase.stage_plateau) == (Settle(50.0, STEPS), None, None)


@pytest.mark.parametrize("name", MODELS)
def test_freeze_out_takes_each_rate_to_zero_before_the_group_drops(name):
    schedule = preset("freeze_out", name)
    (phase,) = schedule.phases
    count = len(schedule.groups)
    starts, sets = zip(*stages_of(schedule), strict=True)
    assert list(sets) == [parameters(schedule, slice(k, None)) for k in range(count)]
    assert phase.anneal
    assert phase.lr.warmup == Warmup(fraction=0.05)
    for k, group in enumerate(schedule.groups[:-1]):
        found = [learning_rate(schedule, schedule.position_at(step), 1.0, step, group.name) for step in range(TOTAL)]
        drop = starts[k + 1]
        assert found[10:drop] == sorted(found[10:drop], reverse=True)
        assert found[10] == pytest.approx(1.0)
        assert 0 < found[drop - 1] < 1e-3
        assert set(found[drop:]) == {0.0}


@pytest.mark.parametrize("name", MODELS)
def test_freeze_out_spaces_its_drops_from_t_0_to_the_end(name):
    schedule = preset("freeze_out", name)
    last = len(schedule.groups) - 1
    drops = [start for start, _ in stages_of(schedule)[1:]]
    assert drops == [round(TOTAL * (0.5 + 0.5 * i / last)) for i in range(last)]


@pytest.mark.parametrize("lr", LR)
def test_each_curve_resolves(small, lr):
    (phase,) = resolve(small, "freeze=full", f"lr={lr}").phases
    assert phase.lr.curve.name == lr
    assert phase.lr.warmup.length(TOTAL) == (10 if lr in ("cosine", "linear") else 0)


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
    schedule = resolve(small, "freeze=lp_ft", "lr=cosine")
    probe, full = schedule.phases
    assert [end for _, _, end in phases_of(schedule)] == [TOTAL // 2, TOTAL]
    assert (probe.lr.scale, full.lr.scale) == (1.0, 0.1)
    assert len(full.trainable) > len(probe.trainable)
    shorter = resolve(small, "freeze=lp_ft", "lr=cosine", "freeze.phases.probe.until.fraction=0.2")
    assert phases_of(shorter)[0] == ("probe", 0, 40)
    by_epochs = resolve(small, "freeze=lp_ft", "lr=cosine", "freeze.phases.probe.until={epochs: 2, fraction: null}")
    assert phases_of(by_epochs)[0] == ("probe", 0, 40)


def test_a_phase_may_be_added_from_the_command_line(small):
    schedule = resolve(
        small,
        "freeze=linear_probe",
        "lr=cosine",
        "freeze.phases.probe.until={steps: 3}",
        "freeze.phases.rest={train: all}",
    )
    assert [phase.name for phase in schedule.phases] == ["probe", "rest"]
