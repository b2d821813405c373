"""Features that are computed once: what of a run's config decides it, and the run's own clock, body and store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hydra.utils import get_object
from lightning import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from omegaconf import DictConfig
from torch import Tensor, nn

from frostline.callbacks import ExponentialMovingAverage, FollowSchedule
from frostline.config import spec_of
from frostline.features import (
    IN_MEMORY,
    Boundary,
    CachedPhases,
    Circumstances,
    Cut,
    FeatureStore,
    ForwardEngine,
    FrozenBody,
    NotCached,
    Place,
    Restless,
    Verdict,
    arithmetic,
    check_boundary,
    check_cut,
    counted,
    default_store,
    find_boundary,
    find_cut,
    in_eval,
    plan,
    refuse_required,
    restless,
    size_text,
)
from frostline.features.boundary import Forward
from frostline.features.planning import fixed_views
from frostline.freezing import Position
from frostline.runs.parts import Parts, rank_count
from frostline.runs.processes import Processes
from frostline.runs.sizes import readable_size
from frostline.specs import BackboneSpec, CacheMode, SpeedSpec


@dataclass(frozen=True)
class CachePlan:
    """What is known before training of the phases that compute features once.

    Attributes:
        verdicts: on each phase, in order.
    """

    verdicts: tuple[Verdict, ...]

    def sentences(self, pictures: int) -> dict[str, str]:
        """By phase: ``yes`` with the size of its features, or ``no`` with the reason."""
        return {verdict.phase: self._sentence(verdict, pictures) for verdict in self.verdicts}

    def _sentence(self, verdict: Verdict, pictures: int) -> str:
        if not verdict.is_cached or verdict.place is None:
            return f"no: {verdict.sentence()}"
        place = verdict.place
        if place.numbers is None:
            return f"yes, {place.cut.title}: {verdict.formula()}"
        total = readable_size(pictures * verdict.views * place.numbers * place.number_size)
        views = f"{verdict.views} views x " if verdict.views > 1 else ""
        stored = f"{views}{pictures:,} pictures x {place.numbers:,} x {place.number_size} bytes = {total}"
        return f"yes, {place.cut.title}: {stored}; {verdict.formula()}"

    def lines(self) -> list[str]:
        """A sentence on each phase that computes features once, and why that pays."""
        return [
            f"phase {verdict.phase} computes features once, {verdict.place.cut.title}: {verdict.formula()}"
            for verdict in self.verdicts
            if verdict.is_cached and verdict.place is not None
        ]

    def notes(self) -> list[str]:
        """A sentence on each phase that one would expect to be cached, and that is not."""
        return [
            f"phase {verdict.phase} is not cached: {verdict.sentence()}"
            for verdict in self.verdicts
            if verdict.freezes_front and verdict.why_not and verdict.mode is not CacheMode.off
        ]


Found = Callable[[int, Boundary], bool]
"""Whether the store has the features of a classifier that a phase, by its number, begins with."""


def plan_cache(config: DictConfig, parts: Parts, store: FeatureStore, is_found: Found | None = None) -> CachePlan:
    """Which phases of a run compute features once, looked at as far as that can be before it is trained.

    Args:
        config: of the run.
        parts: of the run, on the CPU, before Lightning has wrapped them.
        store: has to hold them.
        is_found: whether the features of a phase are there already; nobody need look at the model then.

    Raises:
        ConfigError: a phase requires what cannot hold.
    """
    facts = _circumstances(config, parts)
    look = _Look(parts, facts, store, is_found or (lambda number, boundary: False))
    verdicts = plan(parts.schedule, parts.task.model, look, facts)
    refuse_required(verdicts)
    return CachePlan(verdicts)


class _Look:
    """Looks at the model for the place at which a phase can cut it: `frostline.features.planning.Look`."""

    def __init__(self, parts: Parts, facts: Circumstances, store: FeatureStore, is_found: Found) -> None:
        self._parts, self._facts, self._store, self._is_found = parts, facts, store, is_found

    def __call__(self, number: int, is_worth_it: bool) -> Place | None:
        """Before the classifier where nothing else learns, and at the frost line where that is no place or too deep."""
        schedule, task = self._parts.schedule, self._parts.task
        found = restless(schedule, schedule.phases[number], task.model)
        try:
            boundary = find_boundary(task.model, self._parts.backbone.head)
            if all(map(boundary.above, found.learning)):
                return self._before_classifier(number, boundary, found, is_worth_it)
        except NotCached as reason:
            try:
                return self._at_frost_line(number, found, is_worth_it)
            except NotCached:
                raise reason from None
        return self._at_frost_line(number, found, is_worth_it)

    def _before_classifier(self, number: int, boundary: Boundary, found: Restless, is_worth_it: bool) -> Place:
        for name, reason in found.moving.items():
            if boundary.below(name):
                raise NotCached(f"{reason}, before its classifier")
        if not is_worth_it or self._is_found(number, boundary):
            return Place(boundary)
        model, size = self._parts.task.model, self._parts.backbone.preprocessing.size
        with self._looking():
            operations, features = counted(
                lambda: check_boundary(model, boundary, size, as_trained=self._stages(number)[0])
            )
            with torch.no_grad(), in_eval(model):
                above, _ = counted(lambda: boundary.rest(model)(features))
            # the check runs the whole model twice, and the classifier once more
            return self._fitting(number, boundary, features, 1 - above / max((operations - above) / 2, 1))

    def _at_frost_line(self, number: int, found: Restless, is_worth_it: bool) -> Place | None:
        if self._facts.compiles:
            raise NotCached("speed.compile compiles the network as a whole, and this phase trains a part of its body")
        if not is_worth_it:
            return None
        model, stages = self._parts.task.model, self._stages(number)
        with self._looking():
            cut = find_cut(model, found, self._parts.backbone.preprocessing.size, stages[0])
            return self._fitting(number, cut, *check_cut(model, cut, stages))

    def _stages(self, number: int) -> list[Callable[[], None]]:
        """What puts the modules in the modes of the first stage of a phase, and of its last."""
        task, schedule = self._parts.task, self._parts.schedule
        last = len(schedule.phases[number].stages) - 1
        return [
            partial(task.enter, schedule, Position(phase=number, stage=stage)) for stage in dict.fromkeys((0, last))
        ]

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """What is trainable is afterwards what the run begins with."""
        task, schedule = self._parts.task, self._parts.schedule
        try:
            yield
        except NotCached:
            raise
        except Exception as error:  # a model may fail in any way; that it takes no such input is told of elsewhere
            said = next(iter(str(error).splitlines()), repr(error))
            raise NotCached(f"the model cannot be looked at: {said}") from error
        finally:
            task.enter(schedule, schedule.start)

    def _views(self, number: int) -> int:
        changes = self._facts.changes_each_epoch
        return fixed_views(self._parts.schedule.phases[number], changes_each_epoch=changes)

    def _fitting(self, number: int, cut: Boundary | Cut, features: Tensor, frozen: float) -> Place:
        """The place, if the store or the memory has room for what passes there."""
        views, splits = self._views(number), self._parts.data.splits
        row = features[0].numel() * features.element_size()
        rows = sum(len(pictures) * (views if split == "train" else 1) for split, pictures in splits.items())
        if rows * row > max(self._store.limit, IN_MEMORY):
            raise NotCached(
                f"its features {cut.title} take {size_text(rows * row)}, more than the "
                f"{size_text(self._store.limit)} that the cache may hold (FROSTLINE_CACHE_GIB)"
            )
        return Place(cut, features[0].numel(), features.element_size(), frozen)


def _circumstances(config: DictConfig, parts: Parts) -> Circumstances:
    data, kinds = parts.data, [_kind(node) for node in (config.callbacks or {}).values() if node]
    averages = [kind for kind in kinds if issubclass(kind, WeightAveraging)]
    mixing = parts.task.mixer is not None
    return Circumstances(
        compiles=spec_of(config.speed, SpeedSpec).compile,
        ranks=rank_count(config.trainer),
        replaces_batch_norms=bool(config.trainer.get("sync_batchnorm")) and _has_batch_norm(parts.task.model),
        mixing="mixup or cutmix" if mixing else "",
        own_transforms=data.recipe("train", train=True) is None,
        changes_each_epoch=data.changes_each_epoch,
        averages=bool(averages),
        foreign_averages=any(not issubclass(kind, ExponentialMovingAverage) for kind in averages),
        overfits=bool(config.trainer.get("overfit_batches")),
    )


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _kind(node: DictConfig) -> type[Any]:
    target = get_object(str(node.get("_target_")))
    return target if isinstance(target, type) else object


class TrainerClock:
    """Where a run is, by its trainer and the callback that follows its schedule."""

    def __init__(self, trainer: Trainer, follow: FollowSchedule, processes: Processes) -> None:
        self._trainer, self._follow, self._processes = trainer, follow, processes

    def current(self) -> Position:
        """See `frostline.features.feeding.Clock`."""
        return self._follow.progress.position

    def upcoming(self) -> Position:
        """See `frostline.features.feeding.Clock`."""
        return self._follow.progress.upcoming(self._trainer.global_step)

    def is_stopping(self) -> bool:
        """See `frostline.features.feeding.Clock`."""
        return self._processes.is_stopping()


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
        self._store = default_store()
        self._processes = Processes(trainer, parts.task.model)
        self.plan = plan_cache(config, parts, self._store, self._is_found)
        self._bodies: dict[str, FrozenBody] = {}
        cuts = [verdict.place.cut if verdict.holds and verdict.place else None for verdict in self.plan.verdicts]
        for verdict, cut in zip(self.plan.verdicts, cuts, strict=True):
            if cut is not None:
                if cut.key not in self._bodies:
                    self._bodies[cut.key] = self._with_engine(self._body(cut), verdict.views)
                parts.task.rests[cut.key] = cut.rest(parts.task.model)
        # fixed views are taken where nothing is cached too
        bodies = [None if cut is None else self._bodies[cut.key] for cut in cuts]
        self._phases = parts.data.feeding = self._made(self.plan.verdicts, bodies)

    @property
    def is_warm(self) -> bool:
        """Whether the run needs no pass through the body for what it trains on and is validated on."""
        return all(verdict.holds and number in self._warm for number, verdict in enumerate(self.plan.verdicts))

    @property
    def can_stand_in(self) -> bool:
        """Whether features can stand in for pictures in the last phase, so that scores need no pass through the body.

        Whether they do is another matter: a run writes down the same with them and without. Several processes, each of
        which has looked for itself, would have to agree on it.
        """
        last = self.plan.verdicts[-1]
        return not self._processes.several and last.place is not None and last.spares_enough

    @contextmanager
    def training(self) -> Iterator[None]:
        """While the run is trained, phases count as the schedule goes on to them; after it the last one does."""
        with self._phases.following(TrainerClock(self._trainer, self._follow, self._processes)):
            try:
                yield
            finally:
                for body in self._bodies.values():
                    body.release()

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

    def _is_found(self, number: int, boundary: Boundary) -> bool:
        # what a later phase finds depends on the weights that it begins with
        if number > 0 or CacheMode(self._parts.schedule.phases[0].cache.mode) is CacheMode.off:
            return False
        phase, data = self._parts.schedule.phases[0], self._parts.data
        views = fixed_views(phase, changes_each_epoch=data.changes_each_epoch)
        verdict = Verdict(phase.name, CacheMode(phase.cache.mode), views, epochs=0)
        splits = [split for split in ("train", "val") if split in data.splits]
        if self._made([verdict], [self._body(boundary)]).is_found(0, splits):
            self._warm.add(number)
        return number in self._warm

    def _made(self, verdicts: Sequence[Verdict], bodies: Sequence[FrozenBody | None]) -> CachedPhases:
        return CachedPhases(verdicts, bodies, self._parts.data, self._store, self._say, self._processes)

    def _say(self, line: str) -> None:
        if self._trainer.is_global_zero:
            show(line)

    def _body(self, cut: Boundary | Cut) -> FrozenBody:
        model = self._parts.task.model
        return FrozenBody(model, cut, self._forward(cut.runner(model)), self._settings())

    def _forward(self, run: Forward) -> Forward:
        """What runs the frozen part as the run does: in its precision and memory format."""
        precision, last = self._trainer.precision_plugin, self._parts.task.channels_last

        def forward(images: Tensor) -> Any:
            if last:
                images = images.contiguous(memory_format=torch.channels_last)
            with precision.forward_context():
                return run(precision.convert_input(images))

        return forward

    def _with_engine(self, body: FrozenBody, views: int) -> FrozenBody:
        splits = self._parts.data.splits
        pictures = sum(len(split) * (views if name == "train" else 1) for name, split in splits.items())
        wanted = spec_of(self._config.speed, SpeedSpec).engine
        part = body.boundary.part(body.model)
        body.engine = ForwardEngine(body.plain, part, wanted, pictures, self._trainer.precision_plugin, self._say)
        body.ahead = pictures
        return body

    def _settings(self) -> dict[str, Any]:
        device, precision = self._trainer.strategy.root_device, str(self._config.trainer.get("precision"))
        return body_settings(self._config, device, precision=precision, channels_last=self._parts.task.channels_last)


def body_settings(config: DictConfig, device: torch.device, *, precision: str, channels_last: bool) -> dict[str, Any]:
    """All that changes what a frozen body makes of its input, beside its modules and tensors, as plain types.

    Args:
        config: with ``backbone`` and ``speed``.
        device: that it runs on.
        precision: as Lightning's Trainer takes it.
        channels_last: whether it runs in that memory format.
    """
    spec, speed = spec_of(config.backbone, BackboneSpec), spec_of(config.speed, SpeedSpec)
    return {
        # a module of a person's own has no name but its path
        "architecture": ["" if spec.module else spec.name, repr(spec.kwargs), repr(spec.module)],
        **arithmetic(device),
        "precision": {"32": "32-true"}.get(precision, precision),
        "channels_last": channels_last,
        "compile": speed.compile,
        # by its name and not by what it has chosen: what it chooses among is within a tolerance
        "engine": speed.engine.value,
    }


def show(line: str) -> None:
    """Print a line on what the cache does."""
    print(f"cache     {line}", flush=True)
