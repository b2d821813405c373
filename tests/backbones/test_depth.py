from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from frostline.backbones import depth_groups
from frostline.backbones.building import classifier_tensors
from frostline.backbones.depth import Depth, depth_of
from frostline.errors import ConfigError
from frostline.specs import DepthSource, DepthSpec

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


def test_an_encoder_that_has_no_place_for_a_classifier_has_no_head_group() -> None:
    depth = depth_of(on_meta("deepseek_vit_412m_enc"))
    assert not any(group.is_head for group in depth.groups)
    assert depth.source == "matcher"


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


def test_a_matcher_that_cannot_be_checked_is_taken_and_a_useless_one_too_but_both_are_told() -> None:
    told = depth_of(Unmatched({"stem": "^entry", "steps": r"^steps\.(\d+)"}))
    assert told.source == "matcher"
    assert "the order of timm's matcher is not checked: no forward pass can be traced" in told.corrections[0]
    untold = depth_of(Unmatched(NotImplementedError()))
    assert untold.source == "modules"
    assert untold.corrections[0] == "timm's matcher is not followed: it fails (NotImplementedError)"
    assert "in the order of their registration" in untold.corrections[1]


class Steps(Unmatched):
    """Runs its steps from the last to the first, and adds a token between them."""

    def __init__(self, matcher: Any, *, forward: bool = False) -> None:
        super().__init__(matcher)
        self.steps = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(3))
        self.order = self.steps if forward else [*self.steps][::-1]

    def forward(self, images: Tensor) -> Tensor:
        first, *others = self.order
        features = first(self.entry(images)) + self.token
        for step in others:
            features = step(features)
        return self.classifier(self.norm(features).mean((2, 3)))


MATCHER = {"stem": "^entry|^token", "steps": r"^steps\.(\d+)"}


def test_a_matcher_that_the_forward_pass_contradicts_gives_way_to_the_order_of_first_use() -> None:
    depth = depth_of(Steps(MATCHER))
    assert [group.name for group in depth.groups] == ["stem", "steps.2", "steps.1", "steps.0", "head"]
    assert depth.source == "trace"
    assert depth.corrections[0].startswith("timm's matcher is not followed: it has steps.")


def test_a_stray_tensor_moves_to_where_it_is_first_used_and_is_told() -> None:
    depth = depth_of(Steps(MATCHER, forward=True))
    assert depth.source == "matcher"
    assert depth.corrections == ("token moved from stem to steps.1 (first used there)",)
    assert "token" in depth.groups[2].parameters


def test_what_the_matcher_leaves_to_the_end_is_told_where_it_is_used_before() -> None:
    depth = depth_of(Steps({"stem": "^entry", "steps": r"^steps\.(\d+)"}, forward=True))
    assert depth.corrections == ("token moved from the end to steps.1 (first used there)",)
    assert "norm.weight" in depth.groups[3].parameters


@pytest.mark.parametrize(
    ("name", "source", "corrections"),
    [
        ("convit_tiny", "matcher", ["cls_token moved from stem to blocks.10 (first used there)"]),
        ("xcit_nano_12_p8_224", "matcher", ["cls_token moved from stem to cls_attn_blocks.0 (first used there)"]),
        (
            "volo_d1_224",
            "matcher",
            [
                "pos_embed moved from stem to network.2.0 (first used there)",
                "cls_token moved from stem to post_network.0 (first used there)",
            ],
        ),
        (
            "cait_xxs24_224",
            "trace",
            [
                "timm's matcher is not followed: it has blocks_token_only.0 in another order than the forward pass",
            ],
        ),
        ("caformer_s18", "trace", ["timm's matcher is not followed: the model has none"]),
        ("resnet50", "matcher", []),
        ("eva02_tiny_patch14_224", "matcher", []),
    ],
)
def test_the_source_and_each_correction_are_told(name: str, source: str, corrections: list[str]) -> None:
    depth = depth_of(on_meta(name))
    assert depth.source == source
    assert list(depth.corrections) == corrections


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_the_trace_alone_finds_what_timms_matcher_says(name: str) -> None:
    model = on_meta(name)
    traced = depth_of(model, DepthSpec(source=DepthSource.trace))
    assert traced.source == "trace"
    assert traced.groups == depth_of(model, DepthSpec(source=DepthSource.matcher)).groups


def test_downsampling_belongs_to_the_stage_that_it_leads_into() -> None:
    groups = {group.name: group for group in depth_groups(on_meta("caformer_s18"))}
    assert "stages.1.downsample.conv.weight" in groups["stages.1.blocks.0"].parameters
    assert "stages.0.blocks.2" in groups


def test_a_source_that_is_of_no_use_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"depth.source=matcher.*of MetaFormer is of no use: the model has none"):
        depth_of(on_meta("caformer_s18"), DepthSpec(source=DepthSource.matcher))
    with pytest.raises(ConfigError, match=r"freeze.depth.source=trace: no forward pass of Unmatched can be traced"):
        depth_of(Unmatched(MATCHER), DepthSpec(source=DepthSource.trace))


def test_the_matcher_alone_is_not_corrected() -> None:
    depth = depth_of(on_meta("convit_tiny"), DepthSpec(source=DepthSource.matcher))
    assert "cls_token" in depth.groups[0].parameters
    assert depth.corrections == ()


@pytest.mark.parametrize(
    ("bins", "names"),
    [
        (1, ["stem..blocks.5"]),
        (2, ["stem..blocks.1", "blocks.2..5"]),
        (3, ["stem..blocks.0", "blocks.1..2", "blocks.3..5"]),
        (7, ["stem", *(f"blocks.{block}" for block in range(6))]),
    ],
)
def test_bins_join_neighbors_of_the_body(bins: int, names: list[str]) -> None:
    model = on_meta("test_vit")
    groups = depth_of(model, DepthSpec(bins=bins)).groups
    assert [group.name for group in groups] == [*names, "head"]
    assert [group.depth for group in groups] == list(range(bins + 1))
    fine = depth_groups(model)
    assert [name for group in groups for name in group.parameters] == [n for group in fine for n in group.parameters]


def test_more_bins_than_groups_leave_them_as_they_are() -> None:
    model = on_meta("test_vit")
    assert depth_of(model, DepthSpec(bins=8)).groups == depth_groups(model)


def test_no_bins_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"freeze.depth.bins is 0"):
        depth_of(on_meta("test_vit"), DepthSpec(bins=0))


@pytest.mark.parametrize(
    ("name", "head", "body"),
    [
        ("resnet18", "fc", ["stem", *(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))]),
        ("mobilenet_v3_small", "classifier.3", ["stem", *(f"features.{i}" for i in range(1, 13)), "classifier"]),
        ("vit_b_16", "heads", ["stem", *(f"encoder.layers.encoder_layer_{i}" for i in range(12))]),
        ("vgg11_bn", "classifier.6", ["stem", *(f"features.{i}" for i in (4, 8, 11, 15, 18, 22, 25)), "classifier"]),
    ],
)
def test_a_model_that_is_not_timms_is_grouped_by_its_blocks(name: str, head: str, body: list[str]) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=5)
    depth = depth_of(model, head=head)
    assert depth.source == "trace"
    assert [group.name for group in depth.groups] == [*body, "head"]
    held = [parameter for group in depth.groups for parameter in group.parameters]
    assert sorted(held) == sorted(parameter for parameter, _ in model.named_parameters())
    assert all(parameter.startswith(f"{head}.") for parameter in depth.groups[-1].parameters)


def sequence() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )


def named(depth: Depth) -> list[tuple[str, tuple[str, ...]]]:
    return [(group.name, group.parameters) for group in depth.groups]


@pytest.mark.parametrize(("size", "source"), [((1, 8, 8), "trace"), (None, "modules")])
def test_a_sequence_of_layers_has_one_group_a_layer(size: tuple[int, int, int] | None, source: str) -> None:
    depth = depth_of(sequence(), input_size=size, head="5")
    assert depth.source == source
    assert named(depth) == [
        ("stem", ("0.weight", "0.bias", "1.weight", "1.bias")),
        ("3", ("3.weight", "3.bias")),
        ("head", ("5.weight", "5.bias")),
    ]


@pytest.mark.parametrize(
    ("head", "message", "mend"),
    [
        (None, "Sequential is no timm model", "the last layer is '5'"),
        ("fc", "has no module 'fc'", "0, 1, 2, 3, 4, 5"),
        ("2", "The head '2' holds no parameter", "Name the module"),
        ("", "has no module ''", "0, 1"),
    ],
)
def test_a_head_that_is_none_is_refused(head: str | None, message: str, mend: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        depth_of(sequence(), head=head)
    assert mend in str(caught.value.mend)


def test_a_head_that_is_all_of_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="The head 'all' holds all parameters"):
        depth_of(nn.Sequential(OrderedDict(all=sequence())), head="all")


def test_tied_parameters_are_in_one_group_by_storage_too() -> None:
    model = Steps(MATCHER, forward=True)
    model.steps[2][0].weight = model.steps[0][0].weight  # the same parameter
    model.steps[2][0].bias = nn.Parameter(model.steps[1][0].bias.data)  # another one on the same memory
    groups = depth_groups(model)
    assert {"steps.1.0.bias", "steps.2.0.bias"} <= set(groups[2].parameters)
    assert "steps.0.0.weight" in groups[1].parameters
    held = [name for group in groups for name in group.parameters]
    assert sorted(held) == sorted(name for name, _ in model.named_parameters())


def test_what_the_head_shares_with_the_body_belongs_to_the_body() -> None:
    model = Steps(MATCHER, forward=True)
    model.classifier = nn.Linear(4, 4)
    model.classifier.bias = nn.Parameter(model.entry.bias.data)
    groups = depth_groups(model)
    assert groups[-1].parameters == ("classifier.weight",)
    assert "classifier.bias" in groups[0].parameters


def test_the_model_stays_as_it_is() -> None:
    model = timm.create_model("test_resnet", num_classes=3).train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    depth_of(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
