from __future__ import annotations

import pytest
from torch import nn

from frostline.errors import ConfigError
from frostline.optim import parameter_groups
from frostline.specs import FreezeSpec, LrScaleSpec
from frostline.types import DepthGroup


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_every_parameter_is_in_one_group(timm_model, name):
    model, groups = timm_model(name)
    made = parameter_groups(model, groups, FreezeSpec(), weight_decay=0.1)
    held = [id(parameter) for group in made for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert len({group["name"] for group in made}) == len(made)
    assert [group["depth"] for group in made] == sorted(group["depth"] for group in made)
    assert {group["name"] for group in made if group["is_head"]} == {"head", "head/no_decay"}


def test_frozen_parameters_are_in_as_well(timm_model):
    model, groups = timm_model("test_resnet")
    model.requires_grad_(False)
    made = parameter_groups(model, groups, FreezeSpec(), weight_decay=0.1)
    assert sum(len(group["params"]) for group in made) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_only_weights_of_convolutions_and_linear_layers_decay(timm_model, name):
    model, groups = timm_model(name)
    decayed = {
        id(parameter)
        for group in parameter_groups(model, groups, FreezeSpec(), weight_decay=0.1)
        if group["weight_decay"] == 0.1
        for parameter in group["params"]
    }
    weights = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert decayed == weights


def test_weight_decay_skips_what_the_model_names_and_norms_of_any_shape():
    class ChannelNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(nn.Linear(3, 2).weight.detach().clone())

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Linear(2, 2)
            self.table = nn.Embedding(2, 2)
            self.channel_norm = ChannelNorm()
            self.head = nn.Linear(2, 2)

        def no_weight_decay(self) -> set[str]:
            return {"table.weight", "pos_*"}

    model = Net()
    names = tuple(name for name, _ in model.named_parameters() if not name.startswith("head"))
    groups = (DepthGroup(0, "body", names), DepthGroup(1, "head", ("head.weight", "head.bias"), is_head=True))
    made = parameter_groups(model, groups, FreezeSpec(), weight_decay=0.1)
    assert [(group["name"], group["weight_decay"], len(group["params"])) for group in made] == [
        ("body/no_decay", 0.0, 4),
        ("head", 0.1, 1),
        ("head/no_decay", 0.0, 1),
    ]


def test_factors_are_scale_times_decay(timm_model):
    model, groups = timm_model("test_vit")
    spec = FreezeSpec(lr_decay=0.75, lr_scale=LrScaleSpec(head=3.0, body=0.2))
    made = parameter_groups(model, groups, spec, weight_decay=0.1)
    head = len(groups) - 1
    for group in made:
        expected = 3.0 if group["depth"] == head else 0.2 * 0.75 ** (head - group["depth"])
        assert group["lr_factor"] == pytest.approx(expected, rel=1e-12)


def test_the_same_groups_without_weight_decay(timm_model):
    """A saved optimizer state must fit whatever ``optimizer.weight_decay`` was."""
    model, groups = timm_model("test_vit")
    names = [
        [group["name"] for group in parameter_groups(model, groups, FreezeSpec(), weight_decay=wd)] for wd in (0.0, 0.1)
    ]
    assert names[0] == names[1]


def test_a_parameter_without_a_group_is_refused(timm_model):
    model, groups = timm_model("test_resnet")
    with pytest.raises(ConfigError, match=r"no depth group holds 'fc\.bias', 'fc\.weight'"):
        parameter_groups(model, groups[:-1], FreezeSpec(), weight_decay=0.1)
