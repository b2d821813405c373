"""Features that are computed once: what of a run's config decides it, and the run's own clock, body and store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from hydra.utils import get_object
from lightning import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from omegaconf import DictConfig
from torch import Tensor

from frostline import signals
from frostline.callbacks import ExponentialMovingAverage, FollowSchedule
from frostline.config import spec_of
from frostline.features import (
    Boundary,
    CachedPhases,
    Circumstances,
    ForwardEngine,
    FrozenBody,
    NotCached,
    Verdict,
    arithmetic,
    below,
    check_boundary,
    default_store,
    find_boundary,
    plan,
    refuse_required,
)
from frostline.freezing import Position
from frostline.runs.parts import Parts, rank_count
from frostline.runs.sizes import readable_size
from frostline.specs import BackboneSpec, CacheMode, SpeedSpec


@dataclass(frozen=True)
class CachePlan:
    """What is known before training of the phases that compute features once.

    Attributes:
        verdicts: on each phase, in order.
        boundary: where the body ends; None where there is no such place.
        example: ``[2, ...]`` features; None where nobody had to look.
    """

    verdicts: tuple[Verdict, ...]
    boundary: Boundary | None
    example: Tensor | None = None

    def sentences(self, pictures: int) -> dict[str, str]:
        """By phase: ``yes`` with the size of its features, or ``no`` with the reason."""
        return {verdict.phase: self._sentence(verdict, pictures) for verdict in self.verdicts}

    def _sentence(self, verdict: Verdict, pictures: int) -> str:
        if not verdict.is_cached:
            return f"no: {verdict.sentence()}"
        if self.example is None:
            return f"yes: {verdict.formula()}"
        row, size = self.example[0], self.example.element_size()
        total = readable_size(pictures * verdict.views * row.numel() * size)
        views = f"{verdict.views} views x " if verdict.views > 1 else ""
        return f"yes: {views}{pictures:,} pictures x {row.numel():,} x {size} bytes = {total}; {verdict.formula()}"

    def lines(self) -> list[str]:
        """A sentence on each phase that computes features once, and why that pays."""
        return [
            f"phase {verdict.phase} computes features once: {verdict.formula()}"
            for verdict in self.verdicts
            if verdict.is_cached
        ]

    def notes(self) -> list[str]:
        """A sentence on each phase that one would expect to be cached, and that is not."""
        return [
            f"phase {verdict.phase} is not cached: {verdict.sentence()}"
            for verdict in self.verdicts
            if verdict.trains_classifier and verdict.why_not and verdict.mode is not CacheMode.off
        ]


Found = Callable[[Sequence[Verdict], int, Boundary], bool]
"""Whether the store has the features that a phase, by its number, begins with."""


def plan_cache(config: DictConfig, parts: Parts, is_found: Found | None = None) -> CachePlan:
    """Which phases of a run compute features once, looked at as far as that can be before it is trained.

    Args:
        config: of the run.
        parts: of the run, on the CPU, before Lightning has wrapped them.
        is_found: whether the features of a phase are there already; nobody need look at the model then.

    Raises:
        ConfigError: a phase requires what cannot hold.
    """
    model, boundary = parts.task.model, _boundary(parts)
    verdicts = plan(parts.schedule, model, boundary, _circumstances(config, parts))
    example: Tensor | None = None
    if isinstance(boundary, Boundary):
        for number, verdict in enumerate(verdicts):
            if not verdict.is_cached or (is_found is not None and is_found(verdicts, number, boundary)):
                continue
            try:
                example = _checked(parts, boundary, number)
            except NotCached as reason:
                verdicts = (*verdicts[:number], replace(verdict, why_not=str(reason)), *verdicts[number + 1 :])
    refuse_required(verdicts)
    return CachePlan(verdicts, boundary if isinstance(boundary, Boundary) else None, example)


def _boundary(parts: Parts) -> Boundary | NotCached:
    try:
        return find_boundary(parts.task.model, parts.backbone.head)
    except NotCached as reason:
        return reason


def _checked(parts: Parts, boundary: Boundary, number: int) -> Tensor:
    """As `check_boundary`, with the modules in the modes of a phase; they are put back."""
    task, schedule = parts.task, parts.schedule
    try:
        return check_boundary(
            task.model,
            boundary,
            parts.backbone.preprocessing.size,
            as_trained=lambda: task.enter(schedule, Position(phase=number)),
        )
    except NotCached:
        raise
    except Exception as error:  # a model may fail in any way; one that takes no such input at all is told of elsewhere
        raise NotCached(f"the model cannot be looked at: {next(iter(str(error).splitlines()), repr(error))}") from error
    finally:
        task.enter(schedule, schedule.start)


def _circumstances(config: DictConfig, parts: Parts) -> Circumstances:
    data, kinds = parts.data, [_kind(node) for node in (config.callbacks or {}).values() if node]
    averages = [kind for kind in kinds if issubclass(kind, WeightAveraging)]
    mixing = parts.task.mixer is not None
    return Circumstances(
        ranks=rank_count(config.trainer),
        adapter=parts.adapter.sentence(),
        mixing="mixup or cutmix" if mixing else "",
        own_transforms=data.recipe("train", train=True) is None,
        changes_each_epoch=data.changes_each_epoch,
        averages=bool(averages),
        foreign_averages=any(not issubclass(kind, ExponentialMovingAverage) for kind in averages),
        overfits=bool(config.trainer.get("overfit_batches")),
    )


def _kind(node: DictConfig) -> type[Any]:
    target = get_object(str(node.get("_target_")))
    return target if isinstance(target, type) else object


class TrainerClock:
    """Where a run is, by its trainer and the callback that follows its schedule."""

    def __init__(self, trainer: Trainer, follow: FollowSchedule) -> None:
        self._trainer, self._follow = trainer, follow

    def current(self) -> Position:
        """See `frostline.features.feeding.Clock`."""
        return self._follow.progress.position

    def upcoming(self) -> Position:
        """See `frostline.features.feeding.Clock`."""
        return self._follow.progress.upcoming(self._trainer.global_step)

    def is_stopping(self) -> bool:
        """See `frostline.features.feeding.Clock`."""
        return signals.STOP.received is not None


class RunCache:
    """The features of a run, from its plan to its scores.

    Args:
        config: of the run.
        parts: of the run; their data give features from now on where the plan says so.
        trainer: of the run.
        follow: one of its callbacks.

    Attributes:
        plan: which phases compute features once.

    Raises:
        ConfigError: a phase requires what cannot hold.
    """

    def __init__(self, config: DictConfig, parts: Parts, trainer: Trainer, follow: FollowSchedule) -> None:
        self._config, self._parts, self._trainer, self._follow = config, parts, trainer, follow
        self._warm: set[int] = set()
        self.plan = plan_cache(config, parts, self._is_found)
        # without a boundary no verdict holds, and fixed views are taken all the same
        boundary = self.plan.boundary or Boundary("")
        self._phases = parts.data.feeding = self._made(self.plan.verdicts, boundary)
        parts.task.classifier = boundary.path or None

    @property
    def is_warm(self) -> bool:
        """Whether the run needs no pass through the body for what it trains on and is validated on."""
        return self._warm == set(range(len(self.plan.verdicts)))

    @contextmanager
    def training(self) -> Iterator[None]:
        """While the run is trained, phases count as the schedule goes on to them; after it the last one does."""
        with self._phases.following(TrainerClock(self._trainer, self._follow)):
            try:
                yield
            finally:
                self._phases.body.release()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """While a learning rate is looked for: as the first phase, or from pictures, in another precision than that."""
        if str(self._config.trainer.get("precision")) in ("32", "32-true"):
            with self.training():
                yield
            return
        data = self._parts.data
        feeding, data.feeding = data.feeding, None
        try:
            yield
        finally:
            data.feeding = feeding

    def _is_found(self, verdicts: Sequence[Verdict], number: int, boundary: Boundary) -> bool:
        # what a later phase finds depends on the weights that it begins with
        if number > 0:
            return False
        splits = [split for split in ("train", "val") if split in self._parts.data.splits]
        if self._made(verdicts, boundary).is_found(number, splits):
            self._warm.add(number)
        return number in self._warm

    def _made(self, verdicts: Sequence[Verdict], boundary: Boundary) -> CachedPhases:
        body = FrozenBody(self._parts.task.model, boundary, self._forward(), self._settings())
        say = show if self._trainer.is_global_zero else lambda line: None
        if boundary.path:
            body.engine = self._engine(body, verdicts, say)
        return CachedPhases(verdicts, body, self._parts.data, default_store(), say)

    def _forward(self) -> Callable[[Tensor], Any]:
        model, precision = self._parts.task.model, self._trainer.precision_plugin
        last = self._parts.task.channels_last

        def forward(images: Tensor) -> Any:
            if last:
                images = images.contiguous(memory_format=torch.channels_last)
            with precision.forward_context():
                # forward itself: compiled code would not see the hook that takes the features
                return model.forward(precision.convert_input(images))

        return forward

    def _engine(self, body: FrozenBody, verdicts: Sequence[Verdict], say: Callable[[str], None]) -> ForwardEngine:
        splits = self._parts.data.splits
        views = max((verdict.views for verdict in verdicts if verdict.is_cached), default=1)
        pictures = sum(len(split) * (views if name == "train" else 1) for name, split in splits.items())
        wanted = spec_of(self._config.speed, SpeedSpec).engine
        part = below(body.model, body.boundary)
        return ForwardEngine(body.plain, part, wanted, pictures, self._trainer.precision_plugin, say)

    def _settings(self) -> dict[str, Any]:
        device = self._trainer.strategy.root_device
        spec, speed = spec_of(self._config.backbone, BackboneSpec), spec_of(self._config.speed, SpeedSpec)
        return {
            "architecture": [spec.name, repr(spec.kwargs), repr(spec.module)],
            **arithmetic(device),
            "precision": str(self._config.trainer.get("precision")),
            "channels_last": speed.channels_last,
            "compile": speed.compile,
            # by its name and not by what it has chosen: what it chooses among is within a tolerance
            "engine": speed.engine.value,
        }


def show(line: str) -> None:
    """Print a line on what the cache does."""
    print(f"cache     {line}", flush=True)
