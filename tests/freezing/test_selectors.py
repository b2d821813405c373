from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from frostline.errors import ConfigError
from frostline.freezing import select
from frostline.types import DepthGroup

STEM = {"scale", "stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"}
HEAD = {"head.weight", "head.bias"}


def block(i: int) -> set[str]:
    return {f"blocks.{i}.{layer}.{kind}" for layer in ("conv", "bn") for kind in ("weight", "bias")}


BODY = STEM | block(0) | block(1) | block(2)


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("all", BODY | HEAD),
        ("head", HEAD),
        ("body", BODY),
        ("top:1", block(2)),
        ("top:2", block(1) | block(2)),
        ("top:4", BODY),
        ("bottom:1", STEM),
        ("bottom:2", STEM | block(0)),
        ("path:blocks.1", block(1)),
        ("path:blocks.0..1", block(0) | block(1)),
        ("path:blocks.0..2.bn", {f"blocks.{i}.bn.{kind}" for i in range(3) for kind in ("weight", "bias")}),
        ("path:head.bias", {"head.bias"}),
        ("path:blocks.2..2", block(2)),
        (
            "type:norm",
            {f"{m}.{k}" for m in ("stem.1", *(f"blocks.{i}.bn" for i in range(3))) for k in ("weight", "bias")},
        ),
        ("param:bias", {name for name in BODY | HEAD if name.endswith("bias")}),
        ("head + top:1", HEAD | block(2)),
        ("all - bottom:1", (BODY | HEAD) - STEM),
        ("all - body + bottom:1", HEAD | STEM),
        ("all + bottom:1 - body", HEAD),
        ("  head   +  top:1 ", HEAD | block(2)),
    ],
)
def test_selects(small, expression, names):
    model, groups = small
    assert select(expression, groups, model) == names


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("heads", "'heads'.*Did you mean 'head'\\?.*Known: all, head, body, top:N"),
        ("tpo:2", "'tpo:2'.*Did you mean 'top:N'"),
        ("blocks.1", "'blocks.1'.*Did you mean 'path:blocks.1'"),
        ("", "Unknown selector ''.*Known"),
        ("head:1", "Unknown selector 'head:1'.*Known"),
        ("top", "Unknown selector 'top'.*top:N"),
        ("stage:1", "Unknown selector 'stage:1'.*Known"),
        ("type:linear", "type:linear.*type:norm"),
        ("param:weight", "param:weight.*param:bias"),
        ("head+top:2", "'head\\+top:2' cannot be read.*space on each side"),
        ("head +top:2", "'head \\+top:2' cannot be read"),
        ("head + ", "cannot be read"),
        ("all -body", "cannot be read"),
        ("top:0", "'top:0'.*from 1 to 4.*stem, blocks.0, blocks.1, blocks.2"),
        ("bottom:5", "'bottom:5'.*from 1 to 4"),
        ("top:x", "'top:x'.*whole number"),
        ("path:block.1", "no parameter or module 'block.1'.*Did you mean 'blocks.1'"),
        ("path:blocks.7", "'blocks.7'.*'blocks' has 0..2"),
        ("path:blocks.1..5", "'path:blocks.1..5'.*'blocks.3'.*'blocks' has 0..2"),
        ("path:blocks.2..1", "no range that can be read"),
        ("path:blocks..1", "no range that can be read"),
        ("path:block", "Did you mean 'blocks'"),
        ("path:xyzzy", "Known: blocks, head, scale, stem"),
        ("head - all", "'head - all' leaves no parameter"),
    ],
)
def test_refuses_what_matches_nothing_and_says_what_would(small, expression, says):
    model, groups = small
    with pytest.raises(ConfigError) as caught:
        select(expression, groups, model)
    assert re.search(says, str(caught.value), re.DOTALL), str(caught.value)


def test_a_model_without_norms_or_biases_says_what_it_has():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    groups = (DepthGroup(0, "stem", ("0.weight",)), DepthGroup(1, "head", ("1.weight",), is_head=True))
    with pytest.raises(ConfigError, match=r"no normalization layer.*\n.*Linear"):
        select("type:norm", groups, model)
    with pytest.raises(ConfigError, match=r"no bias.*\n.*weight"):
        select("param:bias", groups, model)


def test_type_needs_the_model(small):
    _, groups = small
    with pytest.raises(ValueError, match="needs the model"):
        select("type:norm", groups)


def test_a_part_of_a_name_is_no_path(small):
    """``path:blocks.1`` must not take blocks.10 along."""
    groups = (DepthGroup(0, "a", ("blocks.1.w", "blocks.10.w")), DepthGroup(1, "head", ("h.w",), is_head=True))
    assert select("path:blocks.1", groups) == {"blocks.1.w"}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_timm_norms_are_found(timm_model, name):
    """Against a definition by shape: in these models exactly the norms have a weight of one dimension."""
    model, groups = timm_model(name)
    modules = dict(model.named_modules())
    expected = {
        parameter
        for parameter, value in model.named_parameters()
        if value.ndim == 1
        and isinstance(getattr(modules[parameter.rpartition(".")[0]], "weight", None), torch.Tensor)
        and modules[parameter.rpartition(".")[0]].weight.ndim == 1
    }
    assert len(expected) > 10
    assert select("type:norm", groups, model) == expected
