"""Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) for convolutional and for token models, by captum.

captum takes the map of a layer whose second dimension is the channels. What a model has may be otherwise: tokens in a
row with a class token before them, or channels last. So a seam is put into the model where its last spatial features
are: an identity that sees them as ``[B, C, h, w]`` and hands them on as they came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Heat = npt.NDArray[np.float32]


class NoMapError(Exception):
    """No map can be made; the message says why, as a part of a sentence."""


@dataclass(frozen=True)
class Layout:
    """How features lie.

    Attributes:
        height, width: of the map, in cells.
        prefix: tokens before those of the picture; None where features are no tokens.
        channels_last: whether a map is ``[B, h, w, C]``.
    """

    height: int
    width: int
    prefix: int | None = None
    channels_last: bool = False

    def split(self, features: Tensor) -> tuple[Tensor | None, Tensor]:
        """What comes before the picture's tokens, if anything, and the map ``[B, C, h, w]``."""
        if self.prefix is not None:
            before, tokens = features[:, : self.prefix], features[:, self.prefix :]
            return before, tokens.transpose(1, 2).reshape(len(tokens), -1, self.height, self.width)
        return None, features.permute(0, 3, 1, 2) if self.channels_last else features

    def join(self, before: Tensor | None, spatial: Tensor) -> Tensor:
        """The inverse of ``split``."""
        if before is not None:
            return torch.cat([before, spatial.flatten(2).transpose(1, 2)], dim=1)
        return spatial.permute(0, 2, 3, 1) if self.channels_last else spatial


class Seam(nn.Module):
    """Where the map of a model is taken.

    Attributes:
        map: the layer that captum looks at; it sees ``[B, C, h, w]``.
        name: of the place, for people.
    """

    def __init__(self, name: str, layout: Layout, attach: Callable[[Seam], Any] | None = None) -> None:
        super().__init__()
        self.name, self.layout, self.map = name, layout, nn.Identity()
        self._attach = attach

    def forward(self, features: Tensor) -> Tensor:
        """``features``, by way of the map."""
        before, spatial = self.layout.split(features)
        return self.layout.join(before, self.map(spatial))

    @contextmanager
    def within(self, model: Any) -> Iterator[Callable[[Tensor], Tensor]]:
        """A function from ``[B, C, H, W]`` pictures to ``[B, K]`` logits that goes through the seam."""
        if self._attach is None:
            yield lambda images: model.forward_head(self(model.forward_features(images)))
            return
        handle = self._attach(self)
        try:
            # forward itself: hooks have no say in a compiled model
            yield model.forward
        finally:
            handle.remove()


def heat_maps(model: nn.Module, seam: Seam, images: Tensor, classes: Sequence[int]) -> list[Heat | None]:
    """What of each picture speaks for a class.

    Args:
        model: in eval, on the device of ``images``; neither its weights nor their gradients change.
        seam: of ``find_seam``.
        images: ``[B, C, H, W]``, normalized.
        classes: the class that is asked about, for each picture.

    Returns:
        ``[h, w]`` float32 with a largest value of 1 for each picture; None where nothing in it speaks for the class.
    """
    from captum.attr import LayerGradCam

    with torch.enable_grad(), seam.within(model) as logits:
        pictures = images.detach().clone().requires_grad_()
        found = LayerGradCam(logits, seam.map).attribute(
            pictures, target=torch.tensor(list(classes), device=images.device), relu_attributions=True
        )
    maps = found.detach().float().squeeze(1).cpu().numpy()
    peaks = [float(one.max()) for one in maps]
    return [one / peak if math.isfinite(peak) and peak > 0 else None for one, peak in zip(maps, peaks, strict=True)]


def find_seam(model: nn.Module, images: Tensor) -> Seam:
    """The last place in a model where its features still lie as the picture does.

    Of a timm model that is what comes before its head. Where the head takes a class token, the tokens of the picture
    have no more say there, and it is what comes into the last block; of any other module, what its last layer gives
    that gives a map.

    Args:
        model: in eval, on the device of ``images``.
        images: ``[B, C, H, W]``, normalized, to be tried.

    Raises:
        NoMapError: there is no such place.
    """
    with torch.no_grad():
        seam = _of_timm(model, images) if hasattr(model, "forward_features") else _of_module(model, images)
        with seam.within(model) as logits:
            same = torch.allclose(logits(images).float(), model.forward(images).float(), rtol=1e-3, atol=1e-3)
    if not same:
        raise NoMapError("its answer does not rest on its last feature map alone")
    if seam.layout.height * seam.layout.width == 1:
        raise NoMapError("its last feature map has a single cell")
    return seam


def _of_timm(model: Any, images: Tensor) -> Seam:
    features = model.forward_features(images)
    blocks = getattr(model, "blocks", None)
    if not isinstance(features, Tensor):
        raise NoMapError("its features are no single tensor")
    if features.ndim == 3 and isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks):
        last = blocks[-1]
        tokens = _first_input(model, last, images)
        if tokens is not None and tokens.ndim == 3:
            return Seam("what comes into its last block", _of_tokens(model, tokens), _before(last))
    if features.ndim == 3:
        return Seam("its last tokens", _of_tokens(model, features))
    if features.ndim != 4:
        raise NoMapError("its last features are no map")
    last_dim = str(getattr(model, "output_fmt", "NCHW")) == "NHWC"
    height, width = features.shape[1:3] if last_dim else features.shape[2:]
    return Seam("its last feature map", Layout(height, width, channels_last=last_dim))


def _of_tokens(model: Any, tokens: Tensor) -> Layout:
    count = tokens.shape[1]
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    # a class token may come in behind the last block
    for prefix in dict.fromkeys((int(getattr(model, "num_prefix_tokens", 0)), 0)):
        side = math.isqrt(max(count - prefix, 0))
        height, width = grid if grid is not None and math.prod(grid) == count - prefix else (side, side)
        if count > prefix and height * width == count - prefix:
            return Layout(int(height), int(width), prefix)
    raise NoMapError(f"its {count} tokens are no grid")


def _before(module: nn.Module) -> Callable[[Seam], Any]:
    """Puts a seam before a module."""

    def attach(seam: Seam) -> Any:
        return module.register_forward_pre_hook(lambda _, given: (seam(given[0]), *given[1:]))

    return attach


def _after(module: nn.Module) -> Callable[[Seam], Any]:
    """Puts a seam behind a module."""

    def attach(seam: Seam) -> Any:
        return module.register_forward_hook(lambda _, given, result: seam(result))

    return attach


def _first_input(model: nn.Module, module: nn.Module, images: Tensor) -> Tensor | None:
    seen: list[Any] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0] if given else None))
    try:
        model.forward(images)
    finally:
        handle.remove()
    return seen[0] if len(seen) == 1 and isinstance(seen[0], Tensor) else None


def _of_module(model: nn.Module, images: Tensor) -> Seam:
    """Of a module that is not timm's: behind its last layer that gives a map ``[B, C, h, w]``."""
    found: list[tuple[str, nn.Module, Tensor]] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, result: Any) -> None:
            if isinstance(result, Tensor):
                found.append((name, module, result))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        model.forward(images)
    finally:
        for handle in handles:
            handle.remove()
    for name, module, result in reversed(found):
        if result.ndim == 4 and result.shape[2] * result.shape[3] > 1:
            if sum(one is module for _, one, _ in found) > 1:
                continue
            return Seam(f"what {name} gives", Layout(int(result.shape[2]), int(result.shape[3])), _after(module))
        if result.ndim == 3 and result.shape[1] > 1:
            raise NoMapError("it is a model of tokens that is not timm's, whose place in the picture is not known")
    raise NoMapError("no layer of it gives a feature map")
