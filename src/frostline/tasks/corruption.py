"""How a picture is spoilt before an auto-encoder has to restore it: distorted, made noisy, hidden in part."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from frostline.errors import ConfigError

# places along each side that an elastic displacement is drawn for
KNOTS = 4


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """Random damage to a batch of pictures, another for each picture.

    All of it is drawn from a generator on the CPU, so that it does not depend on the device.

    Attributes:
        mask_ratio: the share of the patches that is hidden, 0 to below 1 (He et al. 2022, arXiv:2111.06377). A hidden
            patch has the value 0, the mean color after normalization.
        mask_patch: side of a patch in pixels.
        noise: standard deviation of Gaussian noise, equal on all channels, in units of the normalized input (Vincent
            et al. 2008, "Extracting and composing robust features with denoising autoencoders").
        rotation: largest turn to either side, in degrees.
        shift: largest move along each axis, as a share of the side.
        scale: largest change of size, as a share: 0.25 is from 1 / 1.28 to 1.28, which is exp(0.25).
        shear: largest horizontal shear, as a share of the height.
        elastic: standard deviation of a smooth random displacement, as a share of the side (after Simard et al. 2003,
            "Best practices for convolutional neural networks").
    """

    mask_ratio: float = 0.25
    mask_patch: int = 4
    noise: float = 0.0
    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what cannot be done.

        Raises:
            ConfigError: a number is out of its range.
        """
        if not 0 <= self.mask_ratio < 1:
            mend = "Give a share from 0 to below 1."
            raise ConfigError(f"pretraining.corruption.mask_ratio is {self.mask_ratio}.", mend=mend)
        if self.mask_patch < 1:
            mend = "Give a side in pixels, of at least 1."
            raise ConfigError(f"pretraining.corruption.mask_patch is {self.mask_patch}.", mend=mend)
        for name in ("noise", "rotation", "shift", "scale", "shear", "elastic"):
            if getattr(self, name) < 0:
                raise ConfigError(f"pretraining.corruption.{name} is {getattr(self, name)}.", mend="0 switches it off.")

    def distort(self, images: Tensor, generator: torch.Generator, *, border: Tensor) -> Tensor:
        """``images`` ``[B, C, H, W]`` turned, moved, resized, sheared and bent.

        Args:
            images: left as they are.
            generator: on the CPU.
            border: ``[C]`` the color of what comes in from outside the picture.
        """
        if not any((self.rotation, self.shift, self.scale, self.shear, self.elastic)):
            return images
        places = self._places(images)
        if self.elastic:
            places = places + self._displacement(images, generator)
        matrices = self._matrices(len(images), generator)
        # x, y and 1 of each place, times the matrix of its picture
        grid = torch.einsum("bij,bhwj->bhwi", matrices[..., :2], places) + matrices[:, None, None, :, 2]
        border = border.to(images).view(1, -1, 1, 1)
        # outside is 0 for grid_sample
        return functional.grid_sample(images - border, grid.to(images), align_corners=False) + border

    def _places(self, images: Tensor) -> Tensor:
        """``[B, H, W, 2]``: x and y of each pixel, from -1 to 1."""
        identity = torch.eye(2, 3).expand(len(images), 2, 3)
        return functional.affine_grid(identity, list(images.shape), align_corners=False)

    def _displacement(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """``[B, H, W, 2]``: how far each pixel moves, smoothly drawn between the knots of a coarse grid."""
        knots = torch.randn(len(images), 2, KNOTS, KNOTS, generator=generator) * (2 * self.elastic)
        smooth = functional.interpolate(knots, size=images.shape[2:], mode="bicubic", align_corners=False)
        return smooth.permute(0, 2, 3, 1)

    def _matrices(self, count: int, generator: torch.Generator) -> Tensor:
        """``[B, 2, 3]``: from a place in the result to the place in the picture, both from -1 to 1."""

        def drawn(most: float) -> Tensor:
            return (torch.rand(count, generator=generator) * 2 - 1) * most

        angle, size, shear = drawn(math.radians(self.rotation)), drawn(self.scale).exp(), drawn(self.shear)
        across, down = drawn(2 * self.shift), drawn(2 * self.shift)
        upper = torch.stack([angle.cos() * size, -angle.sin() * size + shear, across], dim=1)
        lower = torch.stack([angle.sin() * size, angle.cos() * size, down], dim=1)
        return torch.stack([upper, lower], dim=1)

    def hidden(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """``[B, 1, H, W]`` bool: the pixels to hide, ``mask_ratio`` of the patches of each picture of ``images``."""
        count, _, height, width = images.shape
        rows, columns = -(-height // self.mask_patch), -(-width // self.mask_patch)
        rank = torch.rand(count, rows * columns, generator=generator).argsort(dim=1).argsort(dim=1)
        patches = (rank < round(self.mask_ratio * rows * columns)).view(count, 1, rows, columns)
        pixels = patches.repeat_interleave(self.mask_patch, dim=2).repeat_interleave(self.mask_patch, dim=3)
        return pixels[..., :height, :width].to(images.device)

    def spoil(self, images: Tensor, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """``images`` ``[B, C, H, W]`` with noise on them, and 0 where ``hidden`` ``[B, 1, H, W]``."""
        if self.noise:
            shape = (len(images), 1, *images.shape[2:])
            images = images + self.noise * torch.randn(shape, generator=generator).to(images)
        return images.masked_fill(hidden, 0.0)
