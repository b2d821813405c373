"""Where a network is cut in two: what comes into the classifier, and whether that is all that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_CLOSE = {torch.float64: 1e-9, torch.float32: 1e-5}  # of the largest logit; coarser numbers: a hundredth


class NotCached(Exception):  # noqa: N818  # a reason, which the person reads as a note or as the fault of `require`
    """Features cannot be computed once; the message says why, as the end of a sentence that begins so."""


@dataclass(frozen=True)
class Boundary:
    """The cut before the classifier.

    Attributes:
        path: of the classifier in the model.
    """

    path: str

    def classifier(self, model: nn.Module) -> nn.Module:
        """The part above the cut."""
        return model.get_submodule(self.path)

    def above(self, name: str) -> bool:
        """Whether a module, parameter or buffer of this name is of the classifier."""
        return name == self.path or name.startswith(f"{self.path}.")


def find_boundary(model: nn.Module, head: str | None = None) -> Boundary:
    """The cut before the classifier.

    Args:
        model: a timm model, or any other where ``head`` is given.
        head: the path of the classifier; None for that of timm's ``get_classifier()``.

    Raises:
        NotCached: there is no classifier, or more than one.
    """
    if head is not None:
        return Boundary(head)
    ask = getattr(model, "get_classifier", None)
    classifier = ask() if callable(ask) else None
    if isinstance(classifier, tuple | list | nn.ModuleList):
        raise NotCached(f"{type(model).__name__} has {len(classifier)} classifiers")
    path = next((name for name, module in model.named_modules() if module is classifier and name), None)
    if path is None or isinstance(classifier, nn.Identity):
        raise NotCached(f"{type(model).__name__} has no classifier of its own")
    return Boundary(path)


Forward = Callable[[Tensor], Any]


def captured(model: nn.Module, boundary: Boundary, forward: Forward, images: Tensor) -> tuple[Tensor, Any]:
    """What comes into the classifier, and what the model gives.

    Args:
        model: in the modes that are wanted.
        boundary: of it.
        forward: runs the model on pictures.
        images: ``[B, C, H, W]``.

    Returns:
        ``[B, ...]``, without a graph; and what ``forward`` returned.

    Raises:
        NotCached: the classifier does not take one tensor with a row for each picture, once.
    """
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = boundary.classifier(model).register_forward_pre_hook(
        lambda module, arguments, named: seen.append((arguments, named)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            logits = forward(images)
    finally:
        hook.remove()
    if len(seen) != 1:
        raise NotCached(f"its classifier, {boundary.path}, runs {len(seen)} times for a batch")
    arguments, named = seen[0]
    if len(arguments) != 1 or named or not isinstance(arguments[0], Tensor):
        raise NotCached(f"its classifier, {boundary.path}, takes more than one tensor")
    features = arguments[0]
    if features.ndim < 2 or len(features) != len(images) or not features.is_floating_point():
        raise NotCached(f"its classifier, {boundary.path}, takes no row for each picture")
    return features.detach().contiguous(), logits


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """All modules in eval, and back in their modes afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_boundary(
    model: nn.Module,
    boundary: Boundary,
    size: tuple[int, int, int],
    *,
    as_trained: Callable[[], None],
    forward: Forward | None = None,
) -> Tensor:
    """See on two pictures of noise that the model is its body, then its classifier, and that the body is no game.

    Args:
        model: in any modes, which are kept.
        boundary: of it.
        size: channels, height and width of the pictures.
        as_trained: puts the modules in the modes that they have in training.
        forward: runs the model; None is its own forward.

    Returns:
        ``[2, ...]`` what came into the classifier.

    Raises:
        NotCached: the classifier does not make the model's logits out of what comes into it, or something random or
            something that looks at the whole batch comes before it.
    """
    forward = forward or model.forward
    parameter = next(model.parameters())
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(parameter.device)
    with torch.random.fork_rng(devices=[]), in_eval(model):
        features, logits = captured(model, boundary, forward, images)
        with torch.no_grad():
            again = boundary.classifier(model)(features)
        as_trained()
        trained, _ = captured(model, boundary, forward, images)
    if not (isinstance(logits, Tensor) and isinstance(again, Tensor) and _close(logits, again)):
        raise NotCached(f"its logits are not what its classifier, {boundary.path}, makes of what comes into it")
    if not _close(features, trained):
        raise NotCached(f"something before its classifier, {boundary.path}, is another in training (dropout?)")
    return features


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if torch.equal(one, other):
        return True
    largest = float(one.abs().max())
    bound = _CLOSE.get(one.dtype, 1e-2) * largest
    return bool(torch.allclose(one, other, rtol=0.0, atol=bound, equal_nan=True))
