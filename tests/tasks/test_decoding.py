from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from frostline.errors import ConfigError
from frostline.tasks.decoding import AutoEncoder, feature_map

# a map with channels first and last, and tokens with and without a class token
FAMILIES = {
    "test_resnet": {},
    "test_efficientnet": {"output_stride": 4},
    "test_convnext": {},
    "test_mambaout": {},
    "test_vit": {"img_size": 32, "patch_size": 4},
    "test_vit3": {"img_size": 32, "patch_size": 8},
}


def model_of(name: str, **kwargs: Any) -> torch.nn.Module:
    return timm.create_model(name, num_classes=0, **kwargs)


@pytest.mark.parametrize("decode", ["pooled", "map"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_becomes_an_auto_encoder(name: str, decode: Any) -> None:
    autoencoder = AutoEncoder(model_of(name, **FAMILIES[name]), (3, 32, 32), decode)
    restored = autoencoder(torch.randn(4, 3, 32, 32))
    side = 16 if decode == "pooled" else 32
    assert restored.shape == (4, 3, side, side)
    restored.sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in autoencoder.model.parameters())
    assert autoencoder.model.training


def test_a_map_keeps_its_places() -> None:
    """The cell of a token is where its patch is, in a picture that is not square as well."""
    model = model_of("test_vit", img_size=(16, 32), patch_size=4)
    tokens = torch.zeros(1, 1 + 4 * 8, 64)
    tokens[0, 1 + 2 * 8 + 5] = 1
    cells = feature_map(model, torch.zeros(1, 3, 16, 32), tokens)
    assert cells.shape == (1, 64, 4, 8)
    assert cells[0, 0].nonzero().tolist() == [[2, 5]]


def test_a_map_that_does_not_divide_the_side_is_resized() -> None:
    autoencoder = AutoEncoder(model_of("test_resnet"), (3, 40, 40), "map")
    assert autoencoder(torch.randn(2, 3, 40, 40)).shape == (2, 3, 40, 40)


def test_features_without_places_are_named() -> None:
    with pytest.raises(ConfigError, match=r"ResNet.*\(2, 96\).*\n.*pretraining=denoise"):
        feature_map(model_of("test_resnet"), torch.zeros(2, 3, 32, 32), torch.zeros(2, 96))


def test_an_unknown_decoder_is_named() -> None:
    wrong: Any = "pixels"
    with pytest.raises(ConfigError, match=r"pretraining.decode is 'pixels'"):
        AutoEncoder(model_of("test_resnet"), (3, 32, 32), wrong)
