"""Every file of conf/optimizer, with parameter groups of ours."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from frostline.freezing import apply_phase
from frostline.optim import parameter_groups
from frostline.specs import FreezeSpec

FOLDER = Path(__file__).parents[2] / "conf" / "optimizer"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name):
    node = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    module, _, attribute = node.pop("_target_").rpartition(".")
    partial = node.pop("_partial_")
    return getattr(importlib.import_module(module), attribute), partial, node


def fit(optimizer, model, steps):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        images = torch.randn(4, 3, 32, 32, generator=generator)
        targets = torch.randint(3, (4,), generator=generator)
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def build(timm_model):
    def build(name, **changes):
        torch.manual_seed(0)
        model, groups = timm_model("test_vit", img_size=32)
        constructor, _, arguments = read(name)
        arguments |= changes
        made = parameter_groups(model, groups, FreezeSpec(), weight_decay=arguments["weight_decay"])
        return model, groups, constructor(made, **arguments)

    return build


def test_some_are_there():
    assert {"adamw", "sgd", "adam", "lamb", "lion"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_states_a_partial_with_rate_and_weight_decay(name):
    constructor, partial, arguments = read(name)
    assert partial is True
    assert {"lr", "weight_decay"} <= arguments.keys() <= inspect.signature(constructor).parameters.keys()
    assert (FOLDER / f"{name}.yaml").read_text().startswith("#")


@pytest.mark.parametrize("name", NAMES)
def test_moves_every_parameter_and_keeps_the_keys_of_its_groups(build, name):
    model, groups, optimizer = build(name)
    before = {k: value.detach().clone() for k, value in model.named_parameters()}
    fit(optimizer, model, 2)
    still = [k for k, value in model.named_parameters() if torch.equal(value, before[k])]
    assert not still
    assert all(torch.isfinite(value).all() for value in model.parameters())
    for group in optimizer.param_groups:
        assert {"name", "depth", "is_head", "lr_factor"} <= group.keys()
    assert {group["depth"] for group in optimizer.param_groups} == set(range(len(groups)))


@pytest.mark.parametrize("name", NAMES)
def test_leaves_frozen_parameters_alone_after_they_have_moved(build, name):
    model, groups, optimizer = build(name)
    fit(optimizer, model, 2)
    apply_phase(model, frozenset(groups[-1].parameters))
    before = {k: value.detach().clone() for k, value in model.named_parameters()}
    fit(optimizer, model, 2)
    moved = {k for k, value in model.named_parameters() if not torch.equal(value, before[k])}
    assert moved == set(groups[-1].parameters)


@pytest.mark.parametrize("name", NAMES)
def test_honors_the_rate_of_each_group(build, name):
    model, groups, optimizer = build(name)
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group["depth"] < 3 else 1e-3
    before = {k: value.detach().clone() for k, value in model.named_parameters()}
    fit(optimizer, model, 2)
    moved = {k for k, value in model.named_parameters() if not torch.equal(value, before[k])}
    assert moved == {k for group in groups[3:] for k in group.parameters}


@pytest.mark.parametrize("name", NAMES)
def test_honors_the_weight_decay_of_each_group(build, name):
    """With and without weight decay only parameters that decay may come out different after one step."""
    values, decays = [], set()
    for weight_decay in (0.0, 0.3):
        model, _, optimizer = build(name, weight_decay=weight_decay, lr=1e-2)
        fit(optimizer, model, 1)
        values.append({k: value.detach().clone() for k, value in model.named_parameters()})
        decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
        decays = {k for k, value in model.named_parameters() if id(value) in decayed}
    differ = {k for k in values[0] if not torch.equal(values[0][k], values[1][k])}
    assert differ == decays


@pytest.mark.parametrize("name", NAMES)
def test_its_state_survives_a_checkpoint_with_plain_types(build, name, tmp_path):
    model, _, optimizer = build(name)
    fit(optimizer, model, 2)
    torch.save({"optimizer": optimizer.state_dict(), "model": model.state_dict()}, tmp_path / "state.pt")
    other, _, resumed = build(name)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    fit(optimizer, model, 1)
    fit(resumed, other, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
