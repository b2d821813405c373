"""The cut before the classifier: what comes into it, and whether that is all that it needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from frostline.freezing.flops import FORMULAS

Forward = Callable[[Tensor], Any]

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

    @property
    def title(self) -> str:
        """Where it is."""
        return f"before {self.path}"

    @property
    def key(self) -> str:
        """What tells it from other cuts."""
        return self.path

    def above(self, name: str) -> bool:
        """Whether a module, parameter or buffer of this name is of the classifier."""
        return name == self.path or name.startswith(f"{self.path}.")

    def below(self, name: str) -> bool:
        """Whether it is not."""
        return not self.above(name)

    def runner(self, model: nn.Module) -> Forward:
        """What is run on pictures: ``forward`` itself, as compiled code would not see the hook on the classifier."""
        return lambda images: model.forward(images)

    def part(self, model: nn.Module) -> nn.Module:
        """A model that ends where the classifier would begin, around the same tensors.

        Only the modules around the classifier are new; the rest are the model's own, with their modes. What it gives is
        what comes into the classifier as long as nothing comes after that: whoever uses it compares.
        """
        top = _copy(model)
        *parents, last = self.path.split(".")
        module = top
        for name in parents:
            inner = _copy(module.get_submodule(name))
            setattr(module, name, inner)
            module = inner
        setattr(module, last, nn.Identity())
        return top

    def features(self, model: nn.Module, forward: Forward, images: Tensor) -> Tensor:
        """``[B, ...]`` what comes into the classifier; see `captured`."""
        return captured(model, self, forward, images)[0]

    def rest(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """What makes the logits out of features."""

        def run(features: Tensor) -> Tensor:
            logits: Tensor = self.classifier(model)(features)
            return logits

        return run


def _copy(module: nn.Module) -> nn.Module:
    """The same tensors, under a list of submodules of its own."""
    shallow = copy.copy(module)
    shallow._modules = dict(module._modules)
    return shallow


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


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Modes and buffers are afterwards as they were, and so are torch's generators."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), in_eval(model):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    if not torch.equal(buffer, before):  # a write counts as one, and has others look again
                        buffer.copy_(before)


def noise(count: int, size: tuple[int, int, int], device: torch.device) -> Tensor:
    """``[count, C, H, W]``, always the same."""
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(0)).to(device)


def counted(work: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """The floating-point operations that ``work`` takes, and what it gives."""
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]  # torch's own fails on parameters without a gradient
    with counter:
        found = work()
    return counter.get_total_flops(), found


class _NoModules:
    """Stands in for what counts the operations of each module by itself."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


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
    images = noise(2, size, next(model.parameters()).device)
    with left_alone(model):
        features, logits = captured(model, boundary, forward, images)
        with torch.no_grad():
            again = boundary.classifier(model)(features)
        as_trained()
        trained, _ = captured(model, boundary, forward, images)
    if not (isinstance(logits, Tensor) and isinstance(again, Tensor) and close(logits, again)):
        raise NotCached(f"its logits are not what its classifier, {boundary.path}, makes of what comes into it")
    if not close(features, trained):
        raise NotCached(f"something before its classifier, {boundary.path}, is another in training (dropout?)")
    return features


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ by rounding at most."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if torch.equal(one, other):
        return True
    largest = float(one.abs().max())
    bound = _CLOSE.get(one.dtype, 1e-2) * largest
    return bool(torch.allclose(one, other, rtol=0.0, atol=bound, equal_nan=True))
