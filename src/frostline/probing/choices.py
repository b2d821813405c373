"""What a frozen backbone offers to learn on, all of it from one run of the network."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError
from frostline.features.boundary import Boundary, NotCached, captured, check_boundary, close, find_boundary, in_eval
from frostline.features.engine import ForwardEngine, compare
from frostline.freezing import module_modes
from frostline.specs import BatchNormSpec, Engine, FeatureChoice
from frostline.types import DepthGroup

BLOCKS = 4  # of `last4`
_SAME = {torch.float32: 1e-4}  # of the largest logit


class Extractor:
    """Runs a frozen backbone on pictures and gives what heads learn on.

    - ``last``: what comes into the classifier.
    - ``last4``: for each of the last four blocks (of a network in stages: stages) the class token behind the final
      norm, or the mean of its tokens or its map where there is none, side by side.
    - ``pooled``: the mean of the final tokens without class and register tokens, or of the final map.
    - ``class_token``: the final class token.

    Args:
        model: in any modes, which are kept; with its classifier.
        head: the path of its classifier; None for that of timm's ``get_classifier()``.
        channels_last: run it in this memory format.

    Attributes:
        boundary: where its body ends, or why that cannot be told, and ``last`` is not offered.
        is_same_in_training: whether ``last`` is what a classifier that learns alone is given; True until `check` finds
            that it is not.
    """

    def __init__(self, model: nn.Module, head: str | None = None, *, channels_last: bool = False) -> None:
        self.model: nn.Module = model.to(memory_format=torch.channels_last) if channels_last else model
        self.boundary: Boundary | NotCached
        try:
            self.boundary = find_boundary(model, head)
        except NotCached as reason:
            self.boundary = reason
        self._channels_last = channels_last
        self.is_same_in_training = True

    def __call__(self, images: Tensor, choices: Sequence[FeatureChoice]) -> dict[FeatureChoice, Tensor]:
        """``[B, D]`` float32 on the CPU, for each choice, of ``[B, C, H, W]``.

        Raises:
            NotCached: one of them is not offered.
        """
        return {choice: flat(features).cpu() for choice, features in self.plain(images, choices).items()}

    def plain(self, images: Tensor, choices: Sequence[FeatureChoice]) -> dict[FeatureChoice, Tensor]:
        """``[B, ...]`` as the backbone gives it, on its device, for each choice.

        Raises:
            NotCached: one of them is not offered.
        """
        images = images.to(next(self.model.parameters()).device)
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with in_eval(self.model), torch.no_grad():
            return _found(self.model, images, choices, self._last)

    def part(self, choices: Sequence[FeatureChoice]) -> nn.Module:
        """What gives the same as one tensor, without the classifier: ``[B, ...]`` of a single choice, else ``[B, D]``.

        Whoever uses it compares.
        """
        top = self.model if isinstance(self.boundary, NotCached) else self.boundary.part(self.model)
        return top if list(choices) == [FeatureChoice.last] else _Part(top, choices)

    def _last(self, forward: Callable[[Tensor], Any], images: Tensor) -> Tensor:
        if isinstance(self.boundary, NotCached):
            raise self.boundary
        features, _ = captured(self.model, self.boundary, forward, images)
        check_row(features.shape[1:])
        return features

    def check(self, choices: Sequence[FeatureChoice], size: tuple[int, int, int]) -> dict[FeatureChoice, int]:
        """See on two pictures of noise that the model offers what is asked for.

        Args:
            choices: what is asked for.
            size: channels, height and width of the pictures.

        Returns:
            The number of features of each choice.

        Raises:
            ConfigError: one is not offered; says why, and what is.
        """
        reasons = {choice: self._why_not(choice, size) for choice in FeatureChoice}
        faults = [
            ConfigError(
                f"probe.features={choice.value}: {reasons[choice]}",
                mend=f"This backbone offers {', '.join(one.value for one in FeatureChoice if reasons[one] is None)}.",
            )
            for choice in choices
            if reasons[choice] is not None
        ]
        if faults:
            raise ConfigError.of(faults)
        together = self(_noise(size), choices)
        if FeatureChoice.last in choices:
            self._check_last(together[FeatureChoice.last], size)
        return {choice: features.shape[1] for choice, features in together.items()}

    def _why_not(self, choice: FeatureChoice, size: tuple[int, int, int]) -> str | None:
        try:
            if choice is FeatureChoice.last and isinstance(self.boundary, Boundary):
                check_boundary(self.model, self.boundary, size, as_trained=lambda: None)
            (features,) = self(_noise(size), [choice]).values()
            if choice is not FeatureChoice.last:
                self._check_division(size, choice)
        except NotCached as reason:
            return str(reason)
        except Exception as error:  # a model may fail in any way
            return f"{type(self.model).__name__} fails at it: {next(iter(str(error).splitlines()), repr(error))}"
        if features.ndim != 2 or len(features) != 2:
            return f"{type(self.model).__name__} gives {list(features.shape)} for two pictures"
        return None

    def _check_last(self, together: Tensor, size: tuple[int, int, int]) -> None:
        """That it is the same beside other choices, and whether it is so in training.

        Raises:
            ConfigError: it is another one beside others.
        """
        alone = self(_noise(size), [FeatureChoice.last])[FeatureChoice.last]
        bound = _SAME[torch.float32] * max(float(alone.abs().max()), 1e-3)
        self.is_same_in_training = close(alone, together) and self._is_same_in_training(size)
        if not torch.allclose(together, alone, rtol=0.0, atol=bound):
            problem = f"probe.features: what comes into the classifier of {type(self.model).__name__} is not what its"
            mend = "Leave the others out: probe.features=[last]."
            raise ConfigError(f"{problem} features and its head, one after the other, give", mend=mend)

    def _is_same_in_training(self, size: tuple[int, int, int]) -> bool:
        assert isinstance(self.boundary, Boundary)
        try:
            check_boundary(self.model, self.boundary, size, as_trained=self._as_trained)
        except Exception:  # a model may fail in any way where it is in training, and a probe has it in eval
            return False
        return True

    def _as_trained(self) -> None:
        """As `train` has the modules where the classifier learns alone."""
        assert isinstance(self.boundary, Boundary)
        names = [name for name, _ in self.model.named_parameters()]
        parts = [tuple(filter(of, names)) for of in (self.boundary.below, self.boundary.above)]
        groups = [DepthGroup(0, "body", parts[0]), DepthGroup(1, "head", parts[1], is_head=True)]
        modes = module_modes(self.model, groups, frozenset(parts[1]), BatchNormSpec())
        for name, module in self.model.named_modules():
            module.training = modes[name]

    def _check_division(self, size: tuple[int, int, int], choice: FeatureChoice) -> None:
        """That features and head, one after the other, are the model."""
        model: Any = self.model
        images = _noise(size).to(next(model.parameters()).device)
        with in_eval(model), torch.no_grad():
            blocks = choice is FeatureChoice.last4
            final = _final_and_blocks(model, images)[0] if blocks else model.forward_features(images)
            divided, whole = model.forward_head(final), model(images)
        bound = _SAME.get(whole.dtype, 1e-2) * max(float(whole.abs().max()), 1e-3)
        if divided.shape != whole.shape or not torch.allclose(divided, whole, rtol=0.0, atol=bound):
            raise NotCached(f"the features and the head of {type(model).__name__} do not make up the model")


class _Part(nn.Module):
    """A backbone without its classifier that gives several choices side by side."""

    def __init__(self, top: nn.Module, choices: Sequence[FeatureChoice]) -> None:
        super().__init__()
        self.top = top
        self._choices = tuple(choices)

    def forward(self, images: Tensor) -> Tensor:
        found = _found(self.top, images, self._choices, lambda forward, images: forward(images))
        return side_by_side(list(found.values()))

    def extra_repr(self) -> str:
        return ", ".join(choice.value for choice in self._choices)


class FastExtractor:
    """What an `Extractor` gives, by the forward engine: one for each set of choices, which come of one pass.

    Args:
        extractor: the measure of truth.
        wanted: see `ForwardEngine`.
        say: takes a line for the person.
    """

    def __init__(self, extractor: Extractor, wanted: Engine, say: Callable[[str], None] = lambda line: None) -> None:
        self._extractor, self._wanted, self._say = extractor, wanted, say
        self._engines: dict[tuple[FeatureChoice, ...], ForwardEngine] = {}
        self._shapes: dict[FeatureChoice, torch.Size] = {}
        self._coming, self._ahead = math.inf, 0

    def expect(self, wanted: int, ahead: int) -> None:
        """Say how many pictures are to come in the pass that begins, and with those after it."""
        self._coming, self._ahead = wanted, ahead

    def __call__(self, images: Tensor, choices: Sequence[FeatureChoice]) -> dict[FeatureChoice, Tensor]:
        """``[B, ...]`` as the backbone gives it, on the CPU, for each choice, of ``[B, C, H, W]``.

        Raises:
            NotCached: one of the choices is not offered.
        """
        wanted = tuple(choices)
        images = images.to(next(self._extractor.model.parameters()).device)
        if len(images) >= self._coming:  # a pass of a single batch is no measure for others
            rows = self._plain(wanted, images)
        else:
            with in_eval(self._extractor.model):
                rows = self._engine(wanted)(images)
        return self._apart(wanted, rows.cpu())

    def _engine(self, choices: tuple[FeatureChoice, ...]) -> ForwardEngine:
        if choices not in self._engines:
            plain, part = partial(self._plain, choices), self._extractor.part(choices)
            alike = partial(self._compare, choices)
            self._engines[choices] = ForwardEngine(plain, part, self._wanted, self._ahead, say=self._say, alike=alike)
        self._engines[choices].expect(self._ahead)
        return self._engines[choices]

    def _compare(self, choices: tuple[FeatureChoice, ...], plain: Tensor, other: Tensor, tolerance: float) -> None:
        """See that each choice is the same: the numbers of one may be far larger than those of another."""
        if plain.shape != other.shape:
            compare(plain, other, tolerance)
        for one, same in zip(self._apart(choices, plain).values(), self._apart(choices, other).values(), strict=True):
            compare(one, same, tolerance)

    def _apart(self, choices: tuple[FeatureChoice, ...], rows: Tensor) -> dict[FeatureChoice, Tensor]:
        if len(choices) == 1:
            return {choices[0]: rows}
        shapes = [self._shapes[choice] for choice in choices]
        parts = torch.split(rows, [shape.numel() for shape in shapes], dim=1)
        return {choice: part.reshape(-1, *shape) for choice, part, shape in zip(choices, parts, shapes, strict=True)}

    def _plain(self, choices: tuple[FeatureChoice, ...], images: Tensor) -> Tensor:
        found = self._extractor.plain(images, choices)
        self._shapes |= {choice: features.shape[1:] for choice, features in found.items()}
        return side_by_side(list(found.values()))


def side_by_side(features: Sequence[Tensor]) -> Tensor:
    """A single one as it is; several of ``[B, ...]`` as ``[B, D]``."""
    return features[0] if len(features) == 1 else torch.cat([one.flatten(1) for one in features], dim=1)


def check_row(shape: torch.Size) -> None:
    """See that what a picture has is no map.

    Raises:
        NotCached: it is.
    """
    if shape[1:].numel() > 1:
        raise NotCached(f"its classifier takes a map of shape {list(shape)} for each picture")


def flat(features: Tensor) -> Tensor:
    """``[B, D]`` float32 of ``[B, ...]``, as heads take it."""
    return features.float().flatten(1)


def _found(
    model: Any,
    images: Tensor,
    choices: Sequence[FeatureChoice],
    last: Callable[[Callable[[Tensor], Any], Tensor], Tensor],
) -> dict[FeatureChoice, Tensor]:
    """All choices by one run of a model in eval; ``last`` gives what comes into the classifier of what it runs."""
    if list(choices) == [FeatureChoice.last]:
        return {FeatureChoice.last: last(model.forward, images)}
    if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
        raise NotCached(f"{type(model).__name__} is not divided into features and a head, as timm's models are")
    found = {}
    if FeatureChoice.last4 in choices:
        final, blocks = _final_and_blocks(model, images)
        found[FeatureChoice.last4] = torch.cat(blocks, dim=1)
    else:
        final = model.forward_features(images)
    if FeatureChoice.last in choices:
        found[FeatureChoice.last] = last(lambda _: model.forward_head(final), images)
    if FeatureChoice.pooled in choices:
        found[FeatureChoice.pooled] = _pooled(model, final)
    if FeatureChoice.class_token in choices:
        found[FeatureChoice.class_token] = _class_token(model, final)
    return {choice: found[choice] for choice in choices}


def _noise(size: tuple[int, int, int]) -> Tensor:
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(0))


def _final_and_blocks(model: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the body gives in the end, and a vector for each of its last blocks."""
    name = type(model).__name__
    if not hasattr(model, "forward_intermediates"):
        raise NotCached(f"{name} does not give its blocks away")
    takes = inspect.signature(model.forward_intermediates).parameters
    blocks = _block_count(model)
    if blocks is not None and blocks < BLOCKS:
        raise NotCached(f"{name} has {blocks} blocks or stages, fewer than {BLOCKS}")
    if "return_prefix_tokens" not in takes:
        final, maps = model.forward_intermediates(images, indices=BLOCKS)
        return final, [_mean(one) for one in maps]
    final, tokens = model.forward_intermediates(
        images, indices=BLOCKS, norm=True, output_fmt="NLC", return_prefix_tokens=True
    )
    # without prefix tokens timm gives the patches alone
    pairs = [one if isinstance(one, tuple) else (one, None) for one in tokens]
    return final, [
        patches.mean(dim=1) if prefix is None or not _has_class_token(model) else prefix[:, 0]
        for patches, prefix in pairs
    ]


def _block_count(model: Any) -> int | None:
    known = getattr(model, "feature_info", None)
    return len(known) if known is not None and hasattr(known, "__len__") else None


def _pooled(model: Any, final: Tensor) -> Tensor:
    if final.ndim == 2:
        return final
    if final.ndim == 3:
        return final[:, int(getattr(model, "num_prefix_tokens", 0)) :].mean(dim=1)
    if final.ndim == 4:
        return _mean(final, last=str(getattr(model, "output_fmt", "NCHW")) == "NHWC")
    raise NotCached(f"{type(model).__name__} gives features of {final.ndim} dimensions")


def _class_token(model: Any, final: Tensor) -> Tensor:
    if final.ndim != 3 or not _has_class_token(model):
        raise NotCached(f"{type(model).__name__} has no class token")
    return final[:, 0]


def _has_class_token(model: Any) -> bool:
    return getattr(model, "cls_token", None) is not None and int(getattr(model, "num_prefix_tokens", 0)) > 0


def _mean(maps: Tensor, *, last: bool = False) -> Tensor:
    if maps.ndim != 4:
        raise NotCached(f"its blocks give {maps.ndim} dimensions, not maps")
    return maps.mean(dim=(1, 2)) if last else maps.mean(dim=(2, 3))
