"""An auto-encoder out of any backbone: small decoders, and what they read, pooled features or the feature map."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.errors import ConfigError

# side of the picture that is restored from pooled features: their length is a few hundred numbers
REDUCED = 16


class PooledDecoder(nn.Module):
    """Restores a whole picture, reduced in size, from its pooled features.

    Args:
        features: length F of the pooled features.
        channels: of the picture.
        height, width: of the reduced picture in pixels.
        hidden: width of the two layers in between.
    """

    def __init__(self, features: int, channels: int, height: int, width: int, hidden: int = 256) -> None:
        super().__init__()
        self.shape = (channels, height, width)
        self.layers = nn.Sequential(
            nn.Linear(features, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, channels * height * width),
        )

    def forward(self, features: Tensor) -> Tensor:
        """``[B, F]`` to ``[B, C, h, w]``."""
        restored: Tensor = self.layers(features)
        return restored.view(-1, *self.shape)

    def reduced(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the mean over the area of each pixel ``[B, C, h, w]``: what `forward` has to give."""
        return functional.adaptive_avg_pool2d(images, self.shape[1:])


class MapDecoder(nn.Module):
    """Restores each cell of the feature map to the pixels under it: one linear layer (Xie et al. 2022, SimMIM).

    Args:
        features: depth F of the feature map.
        channels: of the picture.
        stride: pixels under a cell, along a side.
    """

    def __init__(self, features: int, channels: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(features, channels * stride**2, kernel_size=1), nn.PixelShuffle(stride))

    def forward(self, features: Tensor) -> Tensor:
        """``[B, F, h, w]`` to ``[B, C, h * stride, w * stride]``."""
        restored: Tensor = self.layers(features)
        return restored


def feature_map(model: nn.Module, images: Tensor, features: Tensor) -> Tensor:
    """What ``model.forward_features(images)`` gave, as a map ``[B, F, h, w]``, whatever the family of the model.

    Args:
        model: a timm model; its ``num_features`` tells ``[B, F, h, w]`` and ``[B, h, w, F]`` apart, and its
            ``num_prefix_tokens`` what stands before the patches in ``[B, N, F]``.
        images: ``[B, C, H, W]``.
        features: in one of the three layouts.

    Raises:
        ConfigError: they are in none of them.
    """
    timm_model: Any = model
    depth = int(timm_model.num_features)
    if features.ndim == 4 and features.shape[1] == depth:
        return features
    if features.ndim == 4 and features.shape[3] == depth:
        return features.permute(0, 3, 1, 2)
    if features.ndim == 3:
        tokens = features[:, int(getattr(model, "num_prefix_tokens", 0)) :]
        height = round(math.sqrt(tokens.shape[1] * images.shape[2] / images.shape[3]))
        if height and tokens.shape[1] % height == 0:
            return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], height, -1)
    raise ConfigError(
        f"The features of {type(model).__name__}, of shape {tuple(features.shape)}, are no map of the picture.",
        mend="Choose pretraining=denoise, which restores from pooled features.",
    )


class AutoEncoder(nn.Module):
    """A backbone and a decoder of what it finds.

    Args:
        model: a timm model without a classifier.
        size: channels, height and width of the pictures.
        decode: ``pooled`` or ``map``.

    Attributes:
        model: as given.
        decoder: new.

    Raises:
        ConfigError: an unknown ``decode``, or a model without a feature map for ``decode=map``.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int, int], decode: Literal["pooled", "map"]) -> None:
        super().__init__()
        if decode not in ("pooled", "map"):
            raise ConfigError(f"pretraining.decode is {decode!r}.", mend="Known: pooled, map.")
        self.model = model
        self.pooled = decode == "pooled"
        encoded = self._example(size)
        channels, height, width = size
        self.decoder: PooledDecoder | MapDecoder = (
            PooledDecoder(encoded.shape[1], channels, min(height, REDUCED), min(width, REDUCED))
            if self.pooled
            else MapDecoder(encoded.shape[1], channels, stride=-(-height // encoded.shape[2]))
        )

    def encode(self, images: Tensor) -> Tensor:
        """Pooled features ``[B, F]`` or a map ``[B, F, h, w]`` of ``[B, C, H, W]``."""
        timm_model: Any = self.model
        features: Tensor = timm_model.forward_features(images)
        if self.pooled:
            pooled: Tensor = timm_model.forward_head(features)
            return pooled
        return feature_map(self.model, images, features)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` restored; from pooled features in the decoder's reduced size."""
        restored: Tensor = self.decoder(self.encode(images))
        if not self.pooled and restored.shape[2:] != images.shape[2:]:
            restored = functional.interpolate(restored, size=images.shape[2:], mode="bilinear", align_corners=False)
        return restored

    def _example(self, size: tuple[int, int, int]) -> Tensor:
        """What `encode` gives for two pictures of ``size``."""
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            encoded = self.encode(torch.zeros(2, *size, device=next(self.model.parameters()).device))
        self.model.train(training)
        return encoded
