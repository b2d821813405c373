from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from frostline.data import evaluation_transform
from frostline.data.transforms import Normalization, to_input
from frostline.errors import ConfigError
from frostline.types import Preprocessing


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def levels(one: torch.Tensor, other: torch.Tensor, preprocessing: Preprocessing) -> float:
    """The largest difference of two inputs, in steps of 1/255 before the normalization."""
    return float(((one - other).abs() * torch.tensor(preprocessing.std).view(-1, 1, 1)).max()) * 255


@pytest.mark.parametrize("source", [(8, 8), (50, 37), (37, 50), (300, 40)])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(3, 32, 32), (3, 24, 40)])
def test_equals_timm(
    preprocessing: Preprocessing, source: tuple[int, int], crop_mode: str, size: tuple[int, int, int]
) -> None:
    wanted = dataclasses.replace(
        preprocessing, size=size, crop_mode=crop_mode, crop_pct=0.875, interpolation="bilinear"
    )
    theirs = create_transform(
        input_size=size,
        interpolation="bilinear",
        mean=wanted.mean,
        std=wanted.std,
        crop_pct=0.875,
        crop_mode=crop_mode,
    )
    picture = noise(*source)
    exact = evaluation_transform(wanted, exact=True)(picture)
    assert exact.shape == size
    assert exact.dtype == torch.float32
    assert torch.equal(exact, theirs(picture))
    assert levels(evaluation_transform(wanted)(picture), exact, wanted) <= 1.01


@pytest.mark.parametrize("name", ["resnet18", "vit_base_patch16_224", "mobilenetv3_small_100", "convnext_atto"])
def test_equals_timm_for_the_config_of_a_model(name: str) -> None:
    config = resolve_data_config(timm.get_pretrained_cfg(name).to_dict())
    ours = Preprocessing(
        config["input_size"],
        config["mean"],
        config["std"],
        config["interpolation"],
        config["crop_pct"],
        config["crop_mode"],
    )
    picture = noise(320, 280)
    theirs = create_transform(**config)(picture)
    assert torch.equal(evaluation_transform(ours, exact=True)(picture), theirs)
    assert levels(evaluation_transform(ours)(picture), theirs, ours) <= 1.01


def test_small_pictures_are_enlarged(preprocessing: Preprocessing) -> None:
    flat = Image.new("RGB", (8, 8), (255, 255, 255))
    tensor = evaluation_transform(dataclasses.replace(preprocessing, size=(3, 32, 32)))(flat)
    assert torch.allclose(tensor[:, 0, 0], (1 - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std))


def test_one_channel_takes_the_mean_of_the_statistics(preprocessing: Preprocessing) -> None:
    gray = dataclasses.replace(preprocessing, size=(1, 16, 16))
    tensor = evaluation_transform(gray)(Image.new("RGB", (16, 16), (255, 255, 255)))
    assert tensor.shape == (1, 16, 16)
    assert tensor[0, 0, 0].item() == pytest.approx((1 - 0.5) / 0.25)


def test_other_channel_counts_are_refused(preprocessing: Preprocessing) -> None:
    with pytest.raises(ConfigError, match="4 channels"):
        to_input(dataclasses.replace(preprocessing, size=(4, 16, 16)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_normalized_as_its_pictures_are(preprocessing: Preprocessing, channels: int) -> None:
    told = dataclasses.replace(preprocessing, size=(channels, 16, 16))
    pixels = torch.randint(0, 256, (5, channels, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = pixels.clone()
    *_, to_tensor, normalize = to_input(told)
    images = Normalization(told)(pixels)
    assert images.dtype == torch.float32
    assert torch.equal(images, torch.stack([normalize(to_tensor(one)) for one in pixels]))
    assert torch.equal(pixels, before)
