from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.optim import Lamb, Lion, NAdamW
from torch import nn

from frostline.freezing import apply_phase
from frostline.optim import fastest, parameter_groups, step_in_few_groups
from frostline.specs import FreezeSpec

KINDS: dict[str, Any] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    "fused adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-3, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True, fused=True),
    "lion": lambda groups: Lion(groups, lr=1e-4),
    "nadamw": lambda groups: NAdamW(groups, lr=1e-3),
}


@pytest.mark.parametrize(
    ("optimizer", "settings", "given"),
    [
        (torch.optim.AdamW, {}, {"fused": True}),
        (torch.optim.SGD, {"fused": None}, {"fused": True}),
        (torch.optim.AdamW, {"fused": False}, {}),
        (torch.optim.AdamW, {"foreach": True}, {}),
        (torch.optim.Adam, {"differentiable": True}, {}),
        (Lion, {}, {}),
    ],
)
def test_the_fastest_way_is_taken_where_none_is_named(optimizer: Any, settings: Any, given: Any) -> None:
    assert fastest(optimizer, settings, fused=True) == given
    assert fastest(optimizer, settings, fused=False) == {}


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int = 4) -> nn.Module:
    """After some steps with closures, in every other of which, from the first on, half of the depths are frozen."""
    generator = torch.Generator().manual_seed(0)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    half = max(group["depth"] for group in optimizer.param_groups) / 2
    for step in range(steps):
        learning = [group for group in optimizer.param_groups if step % 2 or group["depth"] > half]
        apply_phase(model, frozenset(name_of[id(it)] for group in learning for it in group["params"]))
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = 1e-3 * (1 + (step + number) % 2)
        images = torch.randn(2, 3, 32, 32, generator=generator)

        def closure(images: torch.Tensor = images) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(images).square().mean()
            loss.backward()
            return loss

        loss: Any = optimizer.step(closure)
        assert loss.detach() > 0
    return model


@pytest.mark.parametrize("name", KINDS)
def test_a_step_in_few_groups_is_the_step_in_many(timm_model: Any, name: str) -> None:
    model, groups = timm_model("test_vit", img_size=32)
    other = copy.deepcopy(model)
    made = [KINDS[name](parameter_groups(one, groups, FreezeSpec(), weight_decay=0.05)) for one in (model, other)]
    labels = [group["name"] for group in made[0].param_groups]
    trained(model, made[0])
    trained(other, step_in_few_groups(made[1]))
    for (parameter, value), same in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(value, same), parameter
    assert [group["name"] for group in made[1].param_groups] == labels
    states = [one.state_dict()["state"] for one in made]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_an_optimizer_sees_one_group_for_each_setting(timm_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, groups = timm_model("test_vit", img_size=32)
    seen: list[int] = []
    optimizer = torch.optim.AdamW(parameter_groups(model, groups, FreezeSpec(), weight_decay=0.05), lr=1e-3)
    optimizer.register_step_pre_hook(lambda it, *_: seen.append(len(it.param_groups)))
    assert len(optimizer.param_groups) > 2
    step_in_few_groups(optimizer)
    apply_phase(model, frozenset())
    optimizer.step()
    apply_phase(model, frozenset(name for name, _ in model.named_parameters()))
    model(torch.zeros(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    # where nothing learns there is nothing to see
    assert seen == [0, 2]


def test_the_groups_are_put_back_after_a_step_that_fails(timm_model: Any) -> None:
    model, groups = timm_model("test_vit", img_size=32)
    optimizer = torch.optim.AdamW(parameter_groups(model, groups, FreezeSpec(), weight_decay=0.05), lr=1e-3)
    before = [id(group) for group in optimizer.param_groups]

    def fail(*_: Any) -> None:
        raise OSError("no more")

    optimizer.register_step_pre_hook(fail)
    with pytest.raises(OSError, match="no more"):
        step_in_few_groups(optimizer).step()
    assert [id(group) for group in optimizer.param_groups] == before


def test_one_that_looks_beyond_a_parameter_keeps_its_groups(timm_model: Any) -> None:
    model, groups = timm_model("test_vit", img_size=32)
    optimizer = Lamb(parameter_groups(model, groups, FreezeSpec(), weight_decay=0.05), lr=1e-3)
    assert step_in_few_groups(optimizer) is optimizer
    assert "step" not in vars(optimizer)


def test_fused_is_the_plain_step_within_rounding(timm_model: Any) -> None:
    model, groups = timm_model("test_vit", img_size=32)
    other = copy.deepcopy(model)
    for one, fused in ((model, True), (other, False)):
        made = parameter_groups(one, groups, FreezeSpec(), weight_decay=0.05)
        trained(one, torch.optim.AdamW(made, lr=1e-3, fused=fused))
    for value, same in zip(model.parameters(), other.parameters(), strict=True):
        # Adam divides by the root of what may be rounding alone
        torch.testing.assert_close(value, same, rtol=1e-3, atol=1e-4)
