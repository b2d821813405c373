"""The cut before the classifier, and what makes it none."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from frostline.features.boundary import Boundary, NotCached, captured, check_boundary, find_boundary, in_eval

SIZE = (3, 32, 32)
FAMILIES = {
    "test_resnet": {},
    "test_convnext": {},
    "test_convnext2": {},
    "test_efficientnet": {},
    "test_efficientnet_ln": {},
    "test_vit": {"img_size": 32},
    "test_vit3": {"img_size": 32},
    "test_mambaout": {},
    "test_nfnet": {},
    "test_byobnet": {},
    "mobilenetv2_050": {},
    "mobilenetv3_small_050": {},
    "deit_tiny_patch16_224": {"img_size": 32, "depth": 1},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 1},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
    "mixer_s32_224": {"img_size": 32},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_models_are_their_body_and_then_their_classifier(name: str) -> None:
    torch.manual_seed(0)
    settings = FAMILIES[name]
    model = timm.create_model(name, num_classes=5, **settings)
    side = settings.get("img_size", 32)
    boundary = find_boundary(model)
    features = check_boundary(model, boundary, (3, side, side), as_trained=model.eval)
    assert features.shape == (2, model.head_hidden_size)
    assert not features.requires_grad
    images = torch.randn(2, 3, side, side)
    with in_eval(model), torch.no_grad():
        features, logits = captured(model, boundary, model, images)
        assert torch.equal(boundary.classifier(model)(features), logits)
    assert not boundary.classifier(model)._forward_pre_hooks


def test_two_classifiers_or_none_are_no_boundary() -> None:
    with pytest.raises(NotCached, match="has 2 classifiers"):
        find_boundary(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, depth=1))
    with pytest.raises(NotCached, match="no classifier of its own"):
        find_boundary(timm.create_model("test_resnet", num_classes=0))
    with pytest.raises(NotCached, match="no classifier of its own"):
        find_boundary(nn.Linear(2, 2))


def test_the_boundary_of_a_module_is_the_head_that_is_named() -> None:
    boundary = find_boundary(nn.Linear(2, 2), "fc")
    assert boundary == Boundary("fc")
    assert [boundary.above(name) for name in ("fc", "fc.weight", "fc2.weight", "body.fc.weight")] == [
        True,
        True,
        False,
        False,
    ]


class Net(nn.Module):
    """A body, a classifier, and something that spoils the cut between them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)
        if self.how == "dropout":
            features = nn.functional.dropout(features, 0.5, self.training)
        if self.how == "twice":
            return self.fc(features) + self.fc(features.flip(1))
        if self.how == "after":
            return self.fc(features) * 2
        if self.how == "one row":
            return self.fc(features.flatten()[:8]).expand(len(images), 3)
        return self.fc(features)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("dropout", "is another in training"),
        ("twice", "runs 2 times"),
        ("after", "logits are not what"),
        ("one row", "no row for each picture"),
    ],
)
def test_what_spoils_the_cut_is_found(how: str, said: str) -> None:
    torch.manual_seed(0)
    model = Net(how)
    state = torch.get_rng_state()

    def as_trained() -> None:
        model.train()
        model.body.eval()

    with pytest.raises(NotCached, match=said):
        check_boundary(model, Boundary("fc"), SIZE, as_trained=as_trained)
    assert torch.equal(state, torch.get_rng_state())
    assert not model.fc._forward_pre_hooks
    assert check_boundary(Net(""), Boundary("fc"), SIZE, as_trained=lambda: None).shape == (2, 8)


def test_modes_come_back() -> None:
    model = Net("")
    model.body[1].eval()
    before = [module.training for module in model.modules()]
    with in_eval(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
