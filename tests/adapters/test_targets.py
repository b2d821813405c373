from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from frostline.adapters import Targets, find_targets
from frostline.backbones import depth_groups
from frostline.errors import ConfigError
from frostline.types import DepthGroup

Subject = Any
MakeSubject = Callable[[str], Subject]


def targets(subject: Subject, wanted: str | list[str] = "auto") -> Targets:
    return find_targets(subject.model, subject.groups, wanted, subject.size)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_vit", {"qkv": 6, "proj": 6}),
        ("swin_tiny_patch4_window7_224", {"qkv": 4, "proj": 4}),
        ("test_resnet", {"conv1": 4, "conv2": 4, "conv3": 1, "1": 3}),
        ("test_convnext", {"fc1": 9, "fc2": 9, "1": 3}),
    ],
)
def test_auto_takes_the_attention_or_else_all_layers_of_the_blocks(
    name: str, expected: dict[str, int], subject_of: MakeSubject
) -> None:
    found = targets(subject_of(name)).layers
    ends = [path.rpartition(".")[2] for path in found]
    assert {end: ends.count(end) for end in ends} == expected


@pytest.mark.parametrize("name", ["levit_128s", "pvt_v2_b0", "tnt_s_patch16_224", "efficientvit_m0", "volo_d1_224"])
def test_auto_knows_the_names_that_attention_has_elsewhere(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    found = find_targets(model, depth_groups(model), "auto", (3, 224, 224)).layers
    assert all(any(part in path for part in ("attn", "attention")) for path in found)
    assert any("proj" in path for path in found)
    assert any("proj" not in path for path in found)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet"])
def test_neither_the_head_nor_by_itself_the_stem_is_adapted(name: str, subject_of: MakeSubject) -> None:
    subject = subject_of(name)
    outside = {*subject.groups[0].parameters, *subject.groups[-1].parameters}
    assert outside.isdisjoint(f"{path}.weight" for path in targets(subject).layers)
    everything = targets(subject, "re:.*").layers
    assert set(subject.groups[0].parameters) & {f"{path}.weight" for path in everything}
    assert set(subject.groups[-1].parameters).isdisjoint(f"{path}.weight" for path in everything)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("blocks.3", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]),
        (["blocks.3.attn", "blocks.3.mlp.fc2"], ["attn.qkv", "attn.proj", "mlp.fc2"]),
        (r"re:blocks\.3\..*fc.", ["mlp.fc1", "mlp.fc2"]),
    ],
)
def test_names_are_modules_ends_or_expressions(
    wanted: str | list[str], expected: list[str], subject_of: MakeSubject
) -> None:
    assert targets(subject_of("test_vit"), wanted).layers == tuple(f"blocks.3.{path}" for path in expected)


def test_the_end_of_a_path_is_whole_parts_of_it(subject_of: MakeSubject) -> None:
    subject = subject_of("test_vit")
    assert len(targets(subject, "fc1").layers) == len(targets(subject, "mlp.fc1").layers) == 6
    with pytest.raises(ConfigError, match=r"adapter\.targets: .*'lp\.fc1'") as caught:
        targets(subject, "lp.fc1")
    assert "'fc1'" in str(caught.value.mend)


@pytest.mark.parametrize(
    ("wanted", "problem", "mend"),
    [
        (["qvk"], "'qvk'", "'qkv'"),
        ("head", "'head' is the head", "body"),
        ("re:(", "no regular expression", "re:"),
        ("re:norm", "'re:norm'", "fc1"),
    ],
)
def test_a_name_that_no_layer_has_is_refused(
    wanted: str | list[str], problem: str, mend: str, subject_of: MakeSubject
) -> None:
    with pytest.raises(ConfigError) as caught:
        targets(subject_of("test_vit"), wanted)
    assert problem in caught.value.problem
    assert mend in str(caught.value.mend)


class Odd(nn.Module):
    """A layer of every kind that has to be left out, one that can be adapted, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.plain = nn.Conv2d(4, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.dilated = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.bypassed = nn.Linear(4, 4)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.twice = nn.Linear(4, 4)
        self.again = self.twice
        self.head = nn.Linear(4, 2)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        x = self.mirrored(self.dilated(self.grouped(self.plain(self.stem(x))))).mean((2, 3))
        x = nn.functional.linear(x, self.bypassed.weight)
        return self.head(self.again(self.twice(self.two(self.one(x)))))


def targets_of_odd(wanted: str | list[str]) -> Targets:
    model = Odd()
    names = [name for name, _ in model.named_parameters()]
    head = DepthGroup(2, "head", ("head.weight", "head.bias"), is_head=True)
    groups = (DepthGroup(0, "stem", tuple(names[:2])), DepthGroup(1, "rest", tuple(names[2:-2])), head)
    return find_targets(model, groups, wanted, (3, 8, 8))


def test_a_layer_that_cannot_be_adapted_is_left_out_with_its_reason() -> None:
    found = targets_of_odd("auto")
    assert found.layers == ("plain",)
    assert found.left_out == {
        "grouped": "with groups",
        "dilated": "that are dilated",
        "mirrored": "with other padding than zeros",
        "bypassed": "that the model reads without calling them",
        "one": "that share their weights",
        "two": "that share their weights",
        "twice": "that share their weights",
    }


def test_where_no_layer_can_be_adapted_the_reasons_are_told() -> None:
    with pytest.raises(ConfigError, match=r"adapter\.targets=\['grouped', 'one'\]: .*1 with groups \('grouped'\)"):
        targets_of_odd(["grouped", "one"])


@pytest.mark.parametrize(
    ("name", "reason", "left"), [("test_nfnet", "of the type ScaledStdConv2d", 21), ("test_convnext", "with groups", 9)]
)
def test_layers_of_timm_that_cannot_be_merged_are_left_out(
    name: str, reason: str, left: int, subject_of: MakeSubject
) -> None:
    assert list(targets(subject_of(name)).left_out.values()) == [reason] * left


def test_a_qkv_whose_weight_is_read_directly_is_left_out() -> None:
    with torch.device("meta"):
        model = timm.create_model("eva02_tiny_patch14_224", num_classes=5)
    found = find_targets(model, depth_groups(model), "auto", (3, 224, 224))
    assert found.layers == tuple(f"blocks.{block}.attn.proj" for block in range(12))
    assert set(found.left_out) == {f"blocks.{block}.attn.qkv" for block in range(12)}


def test_looking_changes_nothing(subject_of: MakeSubject) -> None:
    subject = subject_of("test_resnet")
    bn: Any = subject.model.get_submodule("bn1")
    bn.eval()
    modes = [module.training for module in subject.model.modules()]
    generator = torch.get_rng_state()
    targets(subject)
    assert [module.training for module in subject.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    state = subject.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in subject.plain.state_dict().items())
    assert not any(module._forward_pre_hooks for module in subject.model.modules())
