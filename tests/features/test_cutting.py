"""Cuts at the frost line: what is below, then what is above, is the model, wherever the line lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from frostline.backbones.depth import depth_groups
from frostline.features import FrozenBody, NotCached, body_hash
from frostline.features.cutting import Cut, Restless, check_cut, find_cut
from frostline.freezing import assert_modes
from frostline.specs import BatchNormSpec

SMALL_SWIN = {"img_size": 64, "embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2), "window_size": 2}
VIT = {"img_size": 32, "embed_dim": 32, "num_heads": 2, "depth": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "resnet26": {"layers": (1, 2, 1, 1), "channels": (8, 8, 16, 16)},
    "resnetv2_50": {"layers": (1, 2, 1, 1), "channels": (16, 16, 32, 32)},
    "test_convnext": {"drop_path_rate": 0.3},
    "test_convnext2": {},
    "test_efficientnet": {"drop_path_rate": 0.3, "drop_rate": 0.2},
    "mobilenetv2_050": {"drop_rate": 0.2},
    "mobilenetv3_small_050": {},
    "vit_tiny_patch16_224": {**VIT, "drop_path_rate": 0.3, "proj_drop_rate": 0.1},
    "vit_tiny_patch16_224:avg": {**VIT, "class_token": False, "global_pool": "avg"},
    "test_vit": {"img_size": 32},
    "deit_tiny_patch16_224": {**VIT},
    "deit_tiny_distilled_patch16_224": {**VIT},
    "eva02_tiny_patch14_224": {"img_size": 28, "embed_dim": 32, "num_heads": 2, "depth": 3},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28, "embed_dim": 32, "num_heads": 2, "depth": 3},
    "vit_small_patch16_dinov3": {"img_size": 32, "embed_dim": 64, "num_heads": 4, "depth": 3},
    "swin_tiny_patch4_window7_224": SMALL_SWIN,
    "mixer_s32_224": {"img_size": 64},
    "test_nfnet": {},
    "test_byobnet": {},
    "test_mambaout": {},
}


def made(name: str) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    settings = FAMILIES[name]
    model = timm.create_model(name.partition(":")[0], num_classes=5, **settings)
    for parameter in model.parameters():
        # some start at zero, or as a scale that hides what is below
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model, settings.get("img_size", 32)


def entered(model: nn.Module, learning: frozenset[str]) -> Callable[[], None]:
    """Puts the modules in the modes of a phase."""
    groups = depth_groups(model)

    def enter() -> None:
        model.train()
        assert_modes(model, groups, learning, BatchNormSpec())

    return enter


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_is_its_parts_at_each_depth(name: str) -> None:
    model, side = made(name)
    groups = depth_groups(model)
    images = torch.randn(4, 3, side, side)
    titles, shares = [], []
    # of many blocks each third
    for line in range(1, len(groups), 3 if len(groups) > 9 else 1):
        learning = frozenset(name for group in groups[line:] for name in group.parameters)
        enter = entered(model, learning)
        cut = find_cut(model, Restless(learning, {}), (3, side, side), enter)
        features, share = check_cut(model, cut, [enter])
        titles.append(cut.title)
        shares.append(share)
        assert not any(cut.below(name) for name in learning)
        assert len(features) == 2
        assert features.ndim >= 2
        rest, body = cut.rest(model), FrozenBody(model, cut, cut.runner(model))
        model.eval()
        with torch.no_grad():
            assert torch.allclose(rest(body(images)), model(images), rtol=0, atol=1e-5)
        enter()
        found = []
        for run in (lambda rest=rest, body=body: rest(body(images)), lambda: model(images)):
            torch.manual_seed(1)
            model.zero_grad()
            model.requires_grad_(False)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in learning)
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            logits = run()
            logits.square().sum().backward()
            gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
            written = {name: buffer.clone() for name, buffer in model.named_buffers()}
            model.load_state_dict(buffers, strict=False)
            found.append((logits.detach(), gradients, written))
        (logits, gradients, written), (others, their, theirs) = found
        assert torch.allclose(logits, others, rtol=0, atol=1e-5 * float(others.abs().max()))
        # the batches that a batch norm has seen are counted alike too
        assert all(torch.allclose(written[name], theirs[name], rtol=1e-4, atol=1e-5) for name in theirs)
        assert gradients.keys() == their.keys()
        assert gradients.keys() <= learning
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, their[name], rtol=1e-3, atol=1e-4 * float(their[name].abs().max()) + 1e-7)
    # the more is frozen, the later the cut
    assert shares == sorted(shares)
    assert len(set(titles)) >= (len(titles) + 1) // 2


def test_nothing_is_left_of_the_look() -> None:
    model, side = made("test_efficientnet")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names, generator = set(dict(model.named_modules())), torch.get_rng_state()
    learning = frozenset(name for group in depth_groups(model)[3:] for name in group.parameters)
    enter = entered(model, learning)
    cut = find_cut(model, Restless(learning, {}), (3, side, side), enter)
    check_cut(model, cut, [enter, enter])
    assert all(module.training for module in model.modules())
    assert torch.equal(generator, torch.get_rng_state())
    assert set(dict(model.named_modules())) == names
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def cut_of(model: nn.Module, *learning: str, moving: dict[str, str] | None = None, side: int = 32) -> Cut:
    names = frozenset(name for name, _ in model.named_parameters() if name.startswith(learning))
    return find_cut(model, Restless(names, moving or {}), (3, side, side), model.eval)


def test_what_moves_is_above_too() -> None:
    model, _ = made("test_resnet")
    assert cut_of(model, "layer4", "fc").title == "after layer3"
    assert cut_of(model, "layer4", "fc", moving={"layer3.0.bn1": "it moves"}).title == "after layer2"
    assert cut_of(model, "layer4", "fc", moving={"bn1": "it moves"}).title == "after conv1"
    with pytest.raises(NotCached, match=r"conv1.*it moves"):
        cut_of(model, "layer4", "fc", moving={"conv1.0": "conv1.0: it moves"})


def test_dropout_in_the_forward_pass_itself_is_above() -> None:
    model, _ = made("test_resnet")
    model.drop_rate = 0.5
    cut = find_cut(model, Restless(frozenset({"fc.weight", "fc.bias"}), {}), (3, 32, 32), model.train)
    assert cut.title == "after global_pool"
    _, share = check_cut(model, cut, [lambda: setattr(model.eval(), "training", True)])
    assert share > 0.99
    model.drop_rate = 0.0
    # without it in the graph the two ways are one
    assert cut_of(model, "fc").title == "after global_pool"


def test_a_position_table_that_learns_pulls_the_cut_down() -> None:
    model, side = made("vit_tiny_patch16_224")
    assert cut_of(model, "head", side=side).title == "after head_drop"
    assert cut_of(model, "head", "blocks.1", side=side).title == "after blocks.0"
    assert cut_of(model, "head", "cls_token", side=side).title == "after patch_embed"
    assert cut_of(model, "head", "pos_embed", side=side).title == "after patch_embed"


def test_a_rope_that_all_blocks_take_is_made_anew_and_not_kept() -> None:
    model, side = made("eva02_tiny_patch14_224")
    cut = cut_of(model, "head", "blocks.2", side=side)
    assert cut.title == "after blocks.1"
    features, _ = check_cut(model, cut, [model.eval])
    assert features.shape == (2, 5, 32)


def test_the_hash_is_of_what_is_below() -> None:
    model, _ = made("test_resnet")
    cut = cut_of(model, "layer3", "layer4", "fc")
    before = body_hash(model, cut)
    with torch.no_grad():
        model.layer3[0].conv1.weight.add_(1)
        model.layer4[0].bn1.running_mean.add_(1)
    assert body_hash(model, cut) == before
    # a phase that trains less has another cut
    assert cut_of(model, "layer4", "fc").key != cut.key
    # and one that trains the same another object, and the same key
    assert cut_of(model, "layer3", "fc").key == cut.key
    with torch.no_grad():
        model.layer2[0].bn1.running_mean.add_(1)
    assert body_hash(model, cut) != before


class Net(nn.Module):
    """Two blocks, and something that makes cutting hard."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Any:
        features = self.stem(images)
        if self.how == "values" and features.mean() > 0:
            features = -features
        skip = images.mean(1, keepdim=True) if self.how == "skip" else 0.0
        logits = self.fc((self.body(features) + skip).mean((2, 3)))
        if self.how == "tuple":
            return logits, logits
        return logits


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("values", "cannot be cut"),
        ("tuple", "gives no tensor"),
        ("skip", "one tensor with a row"),
    ],
)
def test_what_cannot_be_cut_says_why(how: str, said: str) -> None:
    with pytest.raises(NotCached, match=said):
        cut_of(Net(how), "body", "fc")


@pytest.mark.parametrize("name", ["hrnet_w18_small", "twins_svt_small"])
def test_a_family_that_cannot_be_cut_says_why(name: str) -> None:
    model = timm.create_model(name, num_classes=5, **({"img_size": 64} if "twins" in name else {}))
    last = depth_groups(model)[-2].parameters
    with pytest.raises(NotCached, match="cannot be cut"):
        cut_of(model, "fc", "head", "classifier", *last, side=64)


def test_a_tensor_that_does_not_learn_and_shares_its_module_stays() -> None:
    model, _ = made("test_resnet")
    # biases alone, as in bitfit, from the third stage on: batch norms stay whole, and count their batches
    names = frozenset(name for name, _ in model.named_parameters() if name.startswith("layer3") and "bias" in name)
    enter = entered(model, names)
    cut = find_cut(model, Restless(names, {}), (3, 32, 32), enter)
    enter()
    before = int(model.layer3[0].bn1.num_batches_tracked)
    cut.rest(model)(FrozenBody(model, cut, cut.runner(model))(torch.randn(4, 3, 32, 32)))
    assert int(model.layer3[0].bn1.num_batches_tracked) == before + int(model.layer3[0].bn1.training)
