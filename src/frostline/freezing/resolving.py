"""From the phases of a config to phases in optimizer steps and parameter names, with every fault of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise, takewhile
from typing import TypeVar

from torch import nn

from frostline.errors import ConfigError
from frostline.freezing.layers import batch_norm_affine
from frostline.freezing.lengths import Clock, Span, ends_by_metric, has_length, spans, stated_steps
from frostline.freezing.phase import Pace, Phase, Stage, Warmup
from frostline.freezing.rates import rate_faults, resolve_lr, resolve_warmup
from frostline.freezing.selectors import select
from frostline.freezing.triggers import Validation, resolve_plateau, resolve_settle, resolve_threshold
from frostline.freezing.walk import check_walk, walk_stages
from frostline.specs import (
    BatchNormAffine,
    BatchNormSpec,
    EachSpec,
    FreezeSpec,
    LrSpec,
    OptimizerState,
    PhaseSpec,
    StartFrom,
    UntilSpec,
)
from frostline.types import DepthGroup

Found = TypeVar("Found")


@dataclass(frozen=True)
class Subject:
    """What a schedule is resolved against.

    Attributes:
        groups: the depth groups of ``model``.
        model: read alone; may lie on the meta device.
        clock: of the run.
        validation: what the run learns about itself.
        new: the parameters that were not loaded from the weights; None where that is unknown.
        allowed: the parameters that may learn at all; None for all. An adapter keeps the rest frozen.
    """

    groups: Sequence[DepthGroup]
    model: nn.Module
    clock: Clock
    validation: Validation
    new: frozenset[str] | None = None
    allowed: frozenset[str] | None = None


def resolve_phases(spec: FreezeSpec, run_lr: LrSpec, subject: Subject) -> tuple[Phase, ...]:
    """Every phase.

    Raises:
        ConfigError: every fault of the schedule at once, each with its key.
    """
    faults = rate_faults(spec, run_lr)
    sets = {}
    for name, phase in spec.phases.items():
        found = _kept(faults, partial(_stage_sets, name, phase, spec, subject))
        if found:
            sets[name] = found
    places = spans(spec.phases, {name: len(found) for name, found in sets.items()}, subject.clock, faults)
    phases = []
    for name, phase in spec.phases.items():
        # one without a place or a set is looked at all the same, as if it had the whole run
        span = places.get(name, Span(0, subject.clock.total_steps))
        resolver = _Resolver(name, phase, spec, run_lr, subject, span, sets.get(name, ()), places, faults)
        phases.append(resolver.phase())
    if faults:
        raise ConfigError.of(list({str(fault): fault for fault in faults}.values()))
    return tuple(phase for phase in phases if phase is not None)


def _kept(faults: list[ConfigError], attempt: Callable[[], Found]) -> Found | None:
    try:
        return attempt()
    except ConfigError as error:
        faults.append(error)
    return None


def _stage_sets(name: str, phase: PhaseSpec, spec: FreezeSpec, subject: Subject) -> tuple[frozenset[str], ...]:
    """What each stage of a phase trains."""
    key = f"freeze.phases.{name}"
    if phase.train is None and phase.walk is None:
        raise ConfigError(f"{key}.train is missing.", mend="State what learns, such as 'head' or 'all'.")
    selected = _selected("all" if phase.train is None else phase.train, f"{key}.train", subject)
    if phase.walk is None:
        sets: tuple[frozenset[str], ...] = (selected,)
    else:
        check_walk(phase.walk, f"{key}.walk")
        kept = _selected(phase.walk.keep, f"{key}.walk.keep", subject) if phase.walk.keep is not None else frozenset()
        sets = walk_stages(phase.walk, selected - kept, kept, subject.groups)
        if not sets:
            problem = f"{key}.walk.keep='{phase.walk.keep}' keeps all of {key}.train: nothing is left to walk through."
            raise ConfigError(problem, mend=f"Leave out {key}.walk.")
    sets = tuple(_with_affine(chosen, phase.bn or spec.bn, subject.model) for chosen in sets)
    if subject.allowed is not None:
        sets = tuple(chosen & subject.allowed for chosen in sets)
    if phase.walk is not None:
        # a step over groups that may not learn is none
        sets = tuple(chosen for chosen, _ in groupby(chosen for chosen in sets if chosen))
    if not sets or not all(sets):
        raise ConfigError(
            f"{key} trains nothing: all of what it selects may not learn.",
            mend="freeze.bn.affine=freeze and an adapter keep parameters frozen; add 'head' to the selector.",
        )
    return sets


def _selected(expression: str, key: str, subject: Subject) -> frozenset[str]:
    try:
        return select(expression, subject.groups, subject.model, new=subject.new)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error.problem}", mend=error.mend) from error


def _with_affine(chosen: frozenset[str], bn: BatchNormSpec, model: nn.Module) -> frozenset[str]:
    policy = BatchNormAffine(bn.affine)
    if policy is BatchNormAffine.follow:
        return chosen
    affine = batch_norm_affine(model)
    return chosen | affine if policy is BatchNormAffine.train else chosen - affine


@dataclass(frozen=True)
class _Resolver:
    """One phase with its place in the run; what is wrong is added to ``faults``."""

    name: str
    spec: PhaseSpec
    freeze: FreezeSpec
    run_lr: LrSpec
    subject: Subject
    span: Span
    sets: tuple[frozenset[str], ...]
    places: Mapping[str, Span]
    faults: list[ConfigError]

    def phase(self) -> Phase | None:
        key, clock, validation = f"freeze.phases.{self.name}", self.subject.clock, self.subject.validation
        until, each = self.spec.until or UntilSpec(), self._each
        kept = partial(_kept, self.faults)
        kept(partial(self._check_stages, key))
        kept(partial(self._check_start, key))
        kept(partial(self._check_views, key))
        lr = kept(
            partial(
                resolve_lr,
                self.name,
                self.spec.lr,
                self.run_lr,
                steps=self.span.steps,
                steps_per_epoch=clock.steps_per_epoch,
            )
        )
        rewarm = kept(partial(self._rewarm, key))
        plateau = kept(partial(resolve_plateau, until.plateau, f"{key}.until.plateau", validation))
        threshold = kept(partial(resolve_threshold, until.threshold, f"{key}.until.threshold", validation))
        stage_plateau = kept(partial(resolve_plateau, each.plateau, f"{key}.walk.each.plateau", validation))
        settle = kept(partial(resolve_settle, each.settle, f"{key}.walk.each.settle", clock.steps_per_epoch))
        if lr is None or rewarm is None or not self.sets:
            return None
        return Phase(
            name=self.name,
            stages=tuple(_stage(chosen, self.subject.groups) for chosen in self.sets),
            length=None if self._takes_the_rest else self.span.steps,
            lr=lr,
            plateau=plateau,
            threshold=threshold,
            pace=self._pace,
            stage_plateau=stage_plateau,
            settle=settle,
            starts_from_best=StartFrom(self.spec.start) is StartFrom.best,
            resets_optimizer=OptimizerState(self.spec.optimizer) is OptimizerState.reset,
            rewarm=rewarm,
            anneal=bool(self.spec.walk and self.spec.walk.anneal),
            bn=self.spec.bn or self.freeze.bn,
            cache=self.spec.cache,
        )

    @property
    def _each(self) -> EachSpec:
        return (self.spec.walk and self.spec.walk.each) or EachSpec()

    @property
    def _pace(self) -> Pace | None:
        """How fast the walk moves by the clock."""
        walk, each = self.spec.walk, self._each
        if walk is None:
            return None
        if each == EachSpec():
            return self._spread(walk.hold, len(self.sets))
        steps = min(stated_steps(each, self.subject.clock).values(), default=None)
        if each.fraction is not None and steps is None:
            return Pace(fraction=each.fraction, hold=walk.hold)
        return None if steps is None else Pace(steps=steps, hold=walk.hold)

    @staticmethod
    def _spread(hold: float, count: int) -> Pace:
        """Even shares of the phase, or of what is left of it after a first stage of its own length."""
        if hold == 0 or count == 1:
            return Pace(fraction=1 / count)
        share = (1 - hold) / (count - 1)
        return Pace(fraction=share, hold=hold - share)

    @property
    def _takes_the_rest(self) -> bool:
        return self.name == next(reversed(self.freeze.phases)) and not has_length(self.spec)

    def _rewarm(self, key: str) -> Warmup:
        if self.spec.rewarm is None:
            return Warmup()
        return resolve_warmup(
            self.spec.rewarm,
            f"{key}.rewarm",
            self.name,
            steps=self.span.steps,
            steps_per_epoch=self.subject.clock.steps_per_epoch,
        )

    def _check_stages(self, key: str) -> None:
        """A walk whose last stage is never reached would leave depth groups as they are, silently."""
        count, steps = len(self.sets), self.span.steps
        pace = self._pace if count > 1 else None
        if pace is None:
            return
        reached = [pace.reached(stage, steps) for stage in range(count)]
        if reached[-1] < steps and all(after > before for before, after in pairwise(reached)):
            return
        took = f"{pace.steps} optimizer steps" if pace.steps else f"{pace.fraction:.3g} of the phase"
        length = f"{key}.until" if has_length(self.spec) else "trainer.max_epochs"
        raise ConfigError(
            f"{key}.walk has {count} stages of {took}, but phase '{self.name}' has {steps} optimizer steps.",
            mend=f"Lengthen {length}, walk further at a time ({key}.walk.by), or set freeze.depth.bins"
            f"{self._or_spread(key)}.",
        )

    def _or_spread(self, key: str) -> str:
        return "" if self._each == EachSpec() else f"; without {key}.walk.each the stages share the phase evenly"

    def _check_views(self, key: str) -> None:
        if self.spec.cache.views < 1:
            raise ConfigError(f"{key}.cache.views is {self.spec.cache.views}.", mend="Give a whole number from 1.")

    def _check_start(self, key: str) -> None:
        if StartFrom(self.spec.start) is StartFrom.last:
            return
        mend = f"Set {key}.start=last."
        earlier = list(takewhile(lambda name: name != self.name, self.freeze.phases))
        if not earlier:
            raise ConfigError(f"{key}.start=best: there is no phase before the first.", mend=mend)
        name, every = earlier[-1], self.subject.validation.every
        if name not in self.places:
            return
        span, interval = self.places[name], every * self.subject.clock.steps_per_epoch
        if every < 1 or any(offset + span.steps < interval for offset in self._offsets(earlier[:-1], interval)):
            moved = any(ends_by_metric(self.freeze.phases[other]) for other in earlier[:-1])
            where = f"phase '{name}', from step {span.start} to {span.end}" + (", or where it may be moved to" * moved)
            raise ConfigError(
                f"{key}.start=best: there is no validation in {where}.",
                mend=f"{mend[:-1]}, lengthen phase '{name}', or validate more often.",
            )

    def _offsets(self, names: Sequence[str], interval: int) -> set[int]:
        """How many steps after a validation what follows these phases may begin: where a metric ends one, 0."""
        found = {0}
        for name in names:
            found = {(offset + self.places[name].steps) % interval for offset in found}
            found |= {0} if ends_by_metric(self.freeze.phases[name]) else set()
        return found


def _stage(trainable: frozenset[str], groups: Sequence[DepthGroup]) -> Stage:
    learning = [group for group in groups if not trainable.isdisjoint(group.parameters)]
    return Stage(trainable, tuple(group.name for group in learning), min(group.depth for group in learning))
