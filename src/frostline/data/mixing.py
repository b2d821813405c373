"""Mixup and cutmix over a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from frostline.data.randomness import kept_generators, seed_generators


class Mixer:
    """Mixes each picture of a batch with the one before it, and their targets alike.

    Where both kinds are on, each batch gets one of them with equal chance. Batches of any size work; a single picture
    is mixed with itself.

    Args:
        num_classes: K.
        mixup: alpha of the Beta distribution of mixup (https://arxiv.org/abs/1710.09412); 0 is off.
        cutmix: alpha of the Beta distribution of cutmix (https://arxiv.org/abs/1905.04899); 0 is off.
        probability: the share of batches that are mixed.
    """

    def __init__(self, num_classes: int, *, mixup: float, cutmix: float, probability: float = 1.0) -> None:
        self._num_classes = num_classes
        self._probability = probability
        self._kinds: list[v2.Transform] = []
        if mixup > 0:
            self._kinds.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
        if cutmix > 0:
            self._kinds.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))

    def __call__(self, images: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mixes a batch; the arguments are left as they are.

        Args:
            images: ``[B, C, H, W]``.
            targets: ``[B]`` int64 class indices.
            seed: decides everything random; a function of (seed, epoch, batch, rank).

        Returns:
            Images like ``images``, and ``[B, K]`` float32 class probabilities.
        """
        with kept_generators():
            seed_generators(seed)
            if float(torch.rand(())) < self._probability:
                kind = self._kinds[int(torch.randint(len(self._kinds), ()))]
                mixed: tuple[Tensor, Tensor] = kind(images, targets)
                return mixed
        return images, torch.nn.functional.one_hot(targets, self._num_classes).float()
