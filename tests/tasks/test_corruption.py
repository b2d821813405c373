from __future__ import annotations

import pytest
import torch

from frostline.errors import ConfigError
from frostline.tasks import Corruption

BLACK = torch.tensor([-1.0, -2.0, -3.0])


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 3, height: int = 20, width: int = 32) -> torch.Tensor:
    images = BLACK.view(1, 3, 1, 1).repeat(count, 1, height, width)
    images[:, :, height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2] += 2
    return images


def test_the_stated_share_of_whole_patches_is_hidden_in_each_picture() -> None:
    corruption = Corruption(mask_ratio=0.3, mask_patch=4)
    hidden = corruption.hidden(pictures(8), drawn(0))
    assert hidden.shape == (8, 1, 20, 32)
    patches = hidden.unfold(2, 4, 4).unfold(3, 4, 4).flatten(-2)
    assert torch.equal(patches.all(-1), patches.any(-1))
    assert patches.all(-1).sum(dim=(1, 2, 3)).tolist() == [12] * 8  # of 5 x 8
    assert len({tuple(mask.flatten().tolist()) for mask in hidden}) == 8


def test_patches_need_not_divide_the_side() -> None:
    hidden = Corruption(mask_ratio=0.5, mask_patch=7).hidden(pictures(2), drawn(0))
    assert hidden.shape == (2, 1, 20, 32)
    assert 0.2 < hidden.float().mean() < 0.8


def test_what_is_hidden_is_the_mean_color_and_the_rest_is_noisy() -> None:
    images = pictures()
    corruption = Corruption(mask_ratio=0.5, noise=0.5)
    hidden = corruption.hidden(images, drawn(1))
    spoilt = corruption.spoil(images, hidden, drawn(2))
    assert not spoilt.masked_select(hidden).any()
    noise = (spoilt - images).masked_fill(hidden, 0.0)
    assert torch.allclose(noise[:, 0], noise[:, 1], atol=1e-6)
    assert noise[:, :1][~hidden].std() == pytest.approx(0.5, abs=0.05)


def test_a_distortion_keeps_the_border_color_and_moves_the_rest() -> None:
    images = pictures()
    corruption = Corruption(rotation=30, shift=0.1, scale=0.2, shear=0.1, elastic=0.05)
    distorted = corruption.distort(images, drawn(0), border=BLACK)
    assert distorted.shape == images.shape
    assert torch.allclose(distorted[:, :, 0, 0], BLACK.expand(3, 3), atol=1e-5)
    assert not torch.allclose(distorted, images, atol=0.1)
    assert not torch.allclose(distorted[0], distorted[1], atol=0.1)
    assert distorted.sum().item() == pytest.approx(images.sum().item(), rel=0.05)


def test_a_shift_stays_within_its_share_of_the_side() -> None:
    def center(images: torch.Tensor) -> torch.Tensor:
        light = images[:, 0] + 1
        return (light * torch.arange(32.0)).sum((1, 2)) / light.sum((1, 2))

    images = pictures(64)
    moved = center(Corruption(shift=0.125).distort(images, drawn(0), border=BLACK)) - center(images)
    assert moved.abs().max() <= 4.01
    assert moved.abs().max() > 3
    assert moved.min() < 0 < moved.max()


def test_no_distortion_is_the_picture_itself() -> None:
    images = pictures()
    assert Corruption().distort(images, drawn(0), border=BLACK) is images
    # the sampling grid itself adds nothing
    assert torch.allclose(Corruption(shift=1e-9).distort(images, drawn(0), border=BLACK), images, atol=1e-4)


def test_the_damage_follows_from_the_seed() -> None:
    images = pictures()
    corruption = Corruption(rotation=30, noise=0.1, elastic=0.05)

    def spoilt(seed: int) -> torch.Tensor:
        generator = drawn(seed)
        distorted = corruption.distort(images, generator, border=BLACK)
        return corruption.spoil(distorted, corruption.hidden(images, generator), generator)

    assert torch.equal(spoilt(3), spoilt(3))
    assert not torch.equal(spoilt(3), spoilt(4))


@pytest.mark.parametrize(
    ("name", "value"), [("mask_ratio", 1.0), ("mask_patch", 0), ("noise", -0.1), ("elastic", -1.0)]
)
def test_a_number_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"pretraining.corruption.{name}"):
        Corruption(**{name: value})
