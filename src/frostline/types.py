"""The values that pass between rooms, with their shapes and dtypes. Imports nothing heavy at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """Labelled pictures on their way to a model.

    Attributes:
        images: ``[B, C, H, W]`` float32, normalised as the backbone wants them; with ``features``, ``[B, ...]`` what
            the frozen front of the network made of them, in the dtype that it came in.
        targets: ``[B]`` int64 class indices, or ``[B, K]`` float32 class probabilities after mixup or cutmix.
        indices: ``[B]`` int64, the position of each picture in its split.
        valid: ``[B]`` bool; False marks padding, which evens out the ranks of a distributed evaluation and must
            not be counted.
        features: the place in the network up to which it has been run on the pictures already; empty where it has not.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    valid: Tensor
    features: str = ""


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become input: what a backbone was pre-trained with, at the size that this run uses.

    Attributes:
        size: channels, height and width of the input in pixels.
        mean, std: per-channel statistics of the normalisation, on a 0..1 scale.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        crop_pct: the share of the resized picture's side that the evaluation crop keeps.
        crop_mode: ``center``, ``squash`` or ``border``, as in timm.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"


@dataclass(frozen=True)
class DepthGroup:
    """Parameters of equal depth, from the stem (0) to the head (D).

    Attributes:
        depth: position in the order of first use.
        name: what the group holds, for a table: ``stem``, ``blocks.3``, ``head``.
        parameters: full parameter names as in ``model.named_parameters()``.
        is_head: True for the one group that holds the classifier.
    """

    depth: int
    name: str
    parameters: tuple[str, ...]
    is_head: bool = False
