from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from frostline.backbones import depth_groups
from frostline.backbones.building import classifier_tensors
from frostline.errors import ConfigError

ARCHITECTURES = [
    "test_vit",
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "test_byobnet",
    "test_maxvit",
    "test_mambaout",
    "test_nfnet",
    "resnet18",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "densenet121",
    "cait_xxs24_224",
    "levit_128s",
    "caformer_s18",
    "pit_ti_224",
    "vgg11",
    "selecsls42",
    "xcit_nano_12_p8_224",
]


def on_meta(name: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=7, **kwargs)


def parameters_of(modules: Any) -> set[int]:
    listed = modules if isinstance(modules, (tuple, list, nn.ModuleList)) else [modules]
    return {id(parameter) for module in listed for parameter in module.parameters()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_groups_of_a_model_are_total_disjoint_ordered_and_end_in_its_classifier(name: str) -> None:
    model: Any = on_meta(name)
    groups = depth_groups(model)
    held = [parameter for group in groups for parameter in group.parameters]
    assert sorted(held) == sorted(parameter for parameter, _ in model.named_parameters())
    assert [group.depth for group in groups] == list(range(len(groups)))
    assert [group.is_head for group in groups] == [False] * (len(groups) - 1) + [True]
    assert {id(model.get_parameter(entry)) for entry in groups[-1].parameters} == parameters_of(model.get_classifier())
    assert len({group.name for group in groups}) == len(groups) >= 4
    assert (groups[0].name, groups[-1].name) == ("stem", "head")
    assert all(group.parameters for group in groups)


def test_blocks_come_in_order_and_carry_their_module_names() -> None:
    groups = depth_groups(on_meta("resnet18"))
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [group.name for group in groups] == ["stem", *blocks, "head"]
    assert groups[0].parameters == ("conv1.weight", "bn1.weight", "bn1.bias")
    assert all(name.startswith("layer3.0.") for name in groups[5].parameters)


def test_stray_tensors_join_the_stem_and_the_last_norm_joins_the_last_block() -> None:
    stem, *_, last, head = depth_groups(on_meta("test_vit", reg_tokens=2))
    assert {"cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight"} <= set(stem.parameters)
    assert last.name == "blocks.5"
    assert {"norm.weight", "norm.bias"} <= set(last.parameters)
    assert head.parameters == ("head.weight", "head.bias")


def test_what_stands_between_the_last_block_and_the_classifier_is_no_part_of_the_head() -> None:
    groups = depth_groups(on_meta("test_convnext"))
    assert "head.norm.weight" in groups[-2].parameters
    assert groups[-1].parameters == ("head.fc.weight", "head.fc.bias")


def test_all_heads_of_a_distilled_model_are_the_head() -> None:
    groups = depth_groups(on_meta("deit_tiny_distilled_patch16_224"))
    assert set(groups[-1].parameters) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_a_model_without_a_classifier_has_no_head_group() -> None:
    with torch.device("meta"):
        model = timm.create_model("test_resnet", num_classes=0)
    groups = depth_groups(model)
    assert not any(group.is_head for group in groups)
    assert sum(len(group.parameters) for group in groups) == len(list(model.parameters()))
    assert classifier_tensors(model) == frozenset()


def test_an_encoder_that_has_no_place_for_a_classifier_is_refused() -> None:
    with pytest.raises(ConfigError, match="DeepseekVitEncoder is an encoder that timm gives no classifier"):
        depth_groups(on_meta("deepseek_vit_412m_enc"))


class Unmatched(nn.Module):
    """A model whose head is not the last thing that it registers, and whose matcher is of no use."""

    def __init__(self, matcher: Any) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 2)
        self.token = nn.Parameter(torch.zeros(1))
        self.entry = nn.Conv2d(3, 4, 1)
        self.steps = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)])
        self.norm = nn.BatchNorm2d(4)
        self.matcher = matcher

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def group_matcher(self, coarse: bool) -> Any:
        if isinstance(self.matcher, Exception):
            raise self.matcher
        return self.matcher


@pytest.mark.parametrize("matcher", [NotImplementedError(), {"stem": "^nothing"}, {"all": "^"}, 5, lambda name: 0])
def test_a_useless_matcher_gives_way_to_the_order_of_the_modules(matcher: Any) -> None:
    groups = depth_groups(Unmatched(matcher))
    assert [(group.name, group.parameters) for group in groups] == [
        ("stem", ("token", "entry.weight", "entry.bias")),
        ("steps.0", ("steps.0.weight", "steps.0.bias")),
        ("steps.1", ("steps.1.weight", "steps.1.bias", "norm.weight", "norm.bias")),
        ("head", ("classifier.weight", "classifier.bias")),
    ]


def test_a_matcher_may_place_a_stray_tensor_elsewhere_than_in_the_stem() -> None:
    groups = depth_groups(Unmatched({"stem": "^entry", "steps": [(r"^steps\.(\d+)", None), ("^token", (99999,))]}))
    assert "token" in groups[2].parameters
    assert groups[0].parameters == ("entry.weight", "entry.bias")
