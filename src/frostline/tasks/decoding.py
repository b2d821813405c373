"""Small decoders for any backbone, and what they read: pooled features or the feature map."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from frostline.errors import ConfigError


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
            return tokens.transpose(1, 2).unflatten(2, (height, -1))
    raise ConfigError(
        f"The features of {type(model).__name__}, of shape {tuple(features.shape)}, are no map of the picture.",
        mend="Choose pretraining=denoise, which restores from pooled features.",
    )
