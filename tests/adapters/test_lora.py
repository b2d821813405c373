from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from frostline.adapters import Lora
from frostline.backbones import depth_groups
from frostline.errors import ConfigError
from frostline.freezing import apply_phase, assert_modes, check_partition, select
from frostline.specs import BatchNormSpec
from frostline.types import DepthGroup

pytest.importorskip("peft")
MODELS = ("test_vit", "swin_tiny_patch4_window7_224", "test_convnext", "test_resnet", "test_efficientnet")
Subject = Any
MakeSubject = Callable[[str], Subject]


def adapted(subject: Subject, **arguments: Any) -> tuple[Lora, tuple[DepthGroup, ...]]:
    adapter = Lora(**arguments)
    return adapter, adapter.apply(subject.model, subject.groups, subject.size)


def shuffled(model: nn.Module) -> None:
    """As if it had learned for long."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)


def learn(subject: Subject, groups: tuple[DepthGroup, ...], trainable: frozenset[str], steps: int = 3) -> None:
    apply_phase(subject.model, trainable)
    optimizer = torch.optim.SGD(subject.model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        subject.model.train()
        assert_modes(subject.model, groups, trainable, BatchNormSpec())
        loss = functional.cross_entropy(subject.model(subject.pictures()), torch.tensor([0, 1, 2, 3]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", MODELS)
def test_at_first_the_output_is_exactly_that_of_the_model_without(name: str, subject_of: MakeSubject) -> None:
    subject = subject_of(name)
    adapted(subject)
    with torch.no_grad():
        before, after = (model.eval()(subject.pictures()) for model in (subject.plain, subject.model))
        assert torch.equal(before, after)
        shuffled(subject.model)
        assert (subject.model(subject.pictures()) - after).abs().max() > 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_depth_groups_survive(name: str, subject_of: MakeSubject) -> None:
    subject = subject_of(name)
    adapter, groups = adapted(subject)
    check_partition(groups, subject.model)
    for before, after in zip(subject.groups, groups, strict=True):
        assert (after.depth, after.name, after.is_head) == (before.depth, before.name, before.is_head)
        base = tuple(parameter for parameter in after.parameters if ".lora_" not in parameter)
        assert tuple(parameter.replace(".base_layer.", ".") for parameter in base) == before.parameters
        assert set(base) == adapter.renamed(subject.model, before.parameters)
        for parameter in after.parameters:
            if ".lora_" in parameter:
                assert f"{parameter.partition('.lora_')[0]}.base_layer.weight" in after.parameters
    assert groups[-1] == subject.groups[-1]


@pytest.mark.parametrize("name", MODELS)
def test_the_matrices_and_the_head_learn_and_nothing_else(name: str, subject_of: MakeSubject) -> None:
    subject = subject_of(name)
    adapter, groups = adapted(subject)
    allowed = adapter.allowed(subject.model, groups)
    assert allowed == {n for n, _ in subject.model.named_parameters() if ".lora_" in n} | set(groups[-1].parameters)
    before = {key: value.clone() for key, value in subject.model.state_dict().items()}
    learn(subject, groups, allowed)
    changed = {key for key, value in subject.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == allowed
    assert {n for n, p in subject.model.named_parameters() if p.grad is not None} == allowed


@pytest.mark.parametrize("name", MODELS)
def test_a_merged_model_is_a_plain_one_with_the_same_output(name: str, subject_of: MakeSubject) -> None:
    subject = subject_of(name)
    adapter, groups = adapted(subject)
    learn(subject, groups, adapter.allowed(subject.model, groups))
    shuffled(subject.model)
    before = {key: value.clone() for key, value in subject.model.state_dict().items()}
    merged = adapter.merge(subject.model.eval())
    with torch.no_grad():
        expected, plain = subject.model(subject.pictures()), subject.plain.eval()(subject.pictures())
        torch.testing.assert_close(merged(subject.pictures()), expected, atol=1e-5, rtol=1e-5)
    assert (expected - plain).abs().max() > 1e-3
    assert list(merged.state_dict()) == list(subject.plain.state_dict())
    assert [type(module) for module in merged.modules()] == [type(module) for module in subject.plain.modules()]
    subject.plain.load_state_dict(merged.state_dict())
    after = subject.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_padding_that_depends_on_the_picture_merges_too(subject_of: MakeSubject) -> None:
    subject = subject_of("tf_mobilenetv3_small_minimal_100")
    subject.plain.double(), subject.model.double()
    adapter, _ = adapted(subject, targets="re:conv_stem|blocks.*")
    shuffled(subject.model)
    with torch.no_grad():
        expected = subject.model.eval()(subject.pictures().double())
        torch.testing.assert_close(adapter.merge(subject.model)(subject.pictures().double()), expected)


@pytest.mark.slow
def test_a_compiled_model_merges(subject_of: MakeSubject) -> None:
    subject = subject_of("test_resnet")
    adapter, _ = adapted(subject)
    shuffled(subject.model)
    subject.model.eval().compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = subject.model(subject.pictures())
        torch.testing.assert_close(adapter.merge(subject.model)(subject.pictures()), expected, atol=1e-5, rtol=1e-5)


def test_the_number_of_parameters_is_that_of_the_matrices(subject_of: MakeSubject) -> None:
    subject = subject_of("test_vit")
    adapter, groups = adapted(subject, rank=3)
    width, blocks = 64, 6
    per_block = 3 * (width + 3 * width) + 3 * (width + width)
    count = {name: parameter.numel() for name, parameter in subject.model.named_parameters()}
    plain = sum(parameter.numel() for parameter in subject.plain.parameters())
    assert sum(count.values()) == plain + blocks * per_block
    head = sum(count[name] for name in groups[-1].parameters)
    assert sum(count[name] for name in adapter.allowed(subject.model, groups)) == blocks * per_block + head
    assert adapter.sentence() == (
        "LoRA of rank 3 on 12 layers (blocks.0.attn.qkv, blocks.0.attn.proj, blocks.1.attn.qkv, ...), "
        f"{blocks * per_block:,} parameters"
    )


def test_alpha_over_rank_scales_what_is_added(subject_of: MakeSubject) -> None:
    subject = subject_of("test_vit")
    adapter, _ = adapted(subject, rank=4, alpha=10.0, targets="blocks.2.attn.qkv")
    shuffled(subject.model)
    values = dict(subject.model.named_parameters())
    path = "blocks.2.attn.qkv"
    product = values[f"{path}.lora_B.default.weight"] @ values[f"{path}.lora_A.default.weight"]
    expected = subject.plain.get_parameter(f"{path}.weight") + 10 / 4 * product
    torch.testing.assert_close(adapter.merge(subject.model).get_parameter(f"{path}.weight"), expected)


def test_dropout_is_for_training_only(subject_of: MakeSubject) -> None:
    subject = subject_of("test_vit")
    adapted(subject, dropout=0.5)
    shuffled(subject.model)
    pictures = subject.pictures()
    with torch.no_grad():
        assert torch.equal(subject.model.eval()(pictures), subject.model(pictures))
        assert not torch.equal(subject.model.train()(pictures), subject.model(pictures))


def test_what_was_saved_loads_into_a_model_that_was_adapted_anew(subject_of: MakeSubject) -> None:
    subject, other = subject_of("test_convnext"), subject_of("test_convnext")
    adapter, groups = adapted(subject)
    learn(subject, groups, adapter.allowed(subject.model, groups), steps=1)
    file = io.BytesIO()
    torch.save(subject.model.state_dict(), file)
    file.seek(0)
    adapted(other)
    other.model.load_state_dict(torch.load(file, weights_only=True), strict=True)
    with torch.no_grad():
        assert torch.equal(other.model.eval()(subject.pictures()), subject.model.eval()(subject.pictures()))


def test_the_same_seed_gives_the_same_matrices(subject_of: MakeSubject) -> None:
    states = []
    for _ in range(2):
        subject = subject_of("test_vit")
        torch.manual_seed(7)
        adapted(subject)
        states.append(subject.model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_schedules_select_as_before(subject_of: MakeSubject) -> None:
    subject = subject_of("test_vit")
    adapter, groups = adapted(subject)
    allowed = adapter.allowed(subject.model, groups)
    assert select("head", groups) & allowed == set(groups[-1].parameters)
    inside = {f"blocks.5.attn.{layer}.lora_{m}.default.weight" for layer in ("qkv", "proj") for m in "AB"}
    assert select("top:1", groups) & allowed == inside == select("path:blocks.5", groups) & allowed
    assert select("type:norm", groups, subject.model) & allowed == set()
    assert select("all", groups) & allowed == allowed


def test_new_parameters_of_the_body_learn_too(subject_of: MakeSubject) -> None:
    subject = subject_of("test_vit")
    adapter, groups = adapted(subject)
    new = adapter.renamed(subject.model, ["pos_embed", "blocks.0.attn.qkv.bias", "blocks.0.norm1.bias"])
    assert new == {"pos_embed", "blocks.0.attn.qkv.base_layer.bias", "blocks.0.norm1.bias"}
    assert adapter.allowed(subject.model, groups, new) == adapter.allowed(subject.model, groups) | new


def test_what_was_frozen_before_stays_so_and_the_rest_can_learn(subject_of: MakeSubject) -> None:
    subject = subject_of("test_vit")
    qkv: Any = subject.model.get_submodule("blocks.0.attn.qkv")
    qkv.weight.requires_grad_(False)
    adapted(subject)
    frozen = [name for name, parameter in subject.model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["blocks.0.attn.qkv.base_layer.weight"]


def test_a_model_is_adapted_once(subject_of: MakeSubject) -> None:
    subject = subject_of("test_vit")
    adapter, groups = adapted(subject)
    with pytest.raises(ValueError, match="has adapters already"):
        adapter.apply(subject.model, groups, subject.size)


def test_a_model_without_values_can_be_looked_at() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=5)
    groups = Lora().apply(model, depth_groups(model), (3, 224, 224))
    check_partition(groups, model)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("arguments", "faults"),
    [
        ({"rank": 0}, ["adapter.rank=0"]),
        ({"rank": 2.5}, ["adapter.rank=2.5"]),
        ({"alpha": 0.0}, ["adapter.alpha=0.0"]),
        ({"dropout": 1.0, "alpha": -1.0}, ["adapter.dropout=1.0", "adapter.alpha=-1.0"]),
        ({"targets": []}, ["adapter.targets=[]"]),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Lora(**arguments)
    assert all(fault in caught.value.problem for fault in faults)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"frostline\[lora\]"):
        Lora()
