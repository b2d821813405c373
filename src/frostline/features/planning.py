"""Which phases of a schedule can compute features once, and which of them do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from frostline.errors import ConfigError
from frostline.features.boundary import Boundary, NotCached
from frostline.freezing import FreezeSchedule, Phase, keeps_statistics, module_modes
from frostline.specs import CacheMode

_CHANCES = ("p", "drop_prob", "drop_rate", "drop_path_rate")  # what torch and timm call the chance of a dropout


@dataclass(frozen=True)
class Circumstances:
    """What of a run, beside its schedule, decides whether features can be computed once.

    Attributes:
        ranks: processes.
        adapter: what it says of itself; empty where there is none.
        mixing: what mixes the pictures of a batch, in words; empty where nothing does.
        own_transforms: whether a person's own transforms change training pictures.
        changes_each_epoch: whether the augmentation gives other inputs in each epoch.
        averages: whether the weights that are scored are averages.
        foreign_averages: whether these are not exact on what stays the same.
        overfits: whether Lightning puts in samplers of its own.
    """

    ranks: int = 1
    adapter: str = ""
    mixing: str = ""
    own_transforms: bool = False
    changes_each_epoch: bool = False
    averages: bool = False
    foreign_averages: bool = False
    overfits: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a phase computes features once.

    Attributes:
        phase: its name.
        mode: what it asks for.
        views: fixed views of its training pictures; 1 where there are none.
        epochs: its longest duration, rounded up.
        why_not: why it cannot; empty where it can.
        trains_classifier: whether nothing but the classifier learns in it, so that one would expect it to.
    """

    phase: str
    mode: CacheMode
    views: int
    epochs: int
    why_not: str = ""
    trains_classifier: bool = False

    @property
    def holds(self) -> bool:
        """Whether it can, and may."""
        return not self.why_not and self.mode is not CacheMode.off

    @property
    def pays(self) -> bool:
        """Whether it saves passes over the pictures: an epoch takes one, and so does a view."""
        return self.epochs > self.views

    @property
    def is_cached(self) -> bool:
        """Whether it does, where the store is empty."""
        return self.holds and (self.pays or self.mode is CacheMode.require)

    def formula(self) -> str:
        """The cost in words: passes over the training pictures without and with features that are kept."""
        sign = ">" if self.pays else "<="
        return f"{_counted(self.epochs, 'epoch')} {sign} {_counted(self.views, 'view')}"

    def sentence(self) -> str:
        """Why it does not."""
        if self.mode is CacheMode.off:
            return "cache.mode=off"
        return self.why_not or f"it does not pay: {self.formula()}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def plan(
    schedule: FreezeSchedule, model: nn.Module, boundary: Boundary | NotCached, facts: Circumstances
) -> tuple[Verdict, ...]:
    """A verdict on each phase, in order, from all that is known without running the model.

    Args:
        schedule: of the run.
        model: unwrapped.
        boundary: of it, or why there is none.
        facts: of the run.
    """
    return tuple(_verdict(schedule, number, model, boundary, facts) for number in range(len(schedule.phases)))


def refuse_required(verdicts: Sequence[Verdict]) -> None:
    """Raise for the phases that ask for what cannot be.

    Raises:
        ConfigError: with the reason of each.
    """
    faults = [
        ConfigError(
            f"freeze.phases.{verdict.phase}.cache.mode=require cannot hold: {verdict.why_not}.",
            mend=f"Mend that, or set freeze.phases.{verdict.phase}.cache.mode=auto to train it without.",
        )
        for verdict in verdicts
        if verdict.mode is CacheMode.require and verdict.why_not
    ]
    if faults:
        raise ConfigError.of(faults)


def _verdict(
    schedule: FreezeSchedule, number: int, model: nn.Module, boundary: Boundary | NotCached, facts: Circumstances
) -> Verdict:
    phase = schedule.phases[number]
    start = sum(earlier.length or 0 for earlier in schedule.phases[:number])
    steps = phase.length if phase.length is not None else schedule.total_steps - start
    head = {name for group in schedule.groups if group.is_head for name in group.parameters}
    return Verdict(
        phase.name,
        CacheMode(phase.cache.mode),
        phase.cache.views,
        math.ceil(steps / schedule.steps_per_epoch),
        next(_reasons(schedule, number, model, boundary, facts), ""),
        phase.trainable <= head,
    )


def _reasons(
    schedule: FreezeSchedule, number: int, model: nn.Module, boundary: Boundary | NotCached, facts: Circumstances
) -> Iterator[str]:
    phase = schedule.phases[number]
    if isinstance(boundary, NotCached):
        yield str(boundary)
        return
    strangers = sorted(name for name in phase.trainable if not boundary.above(name))
    if strangers:
        yield f"it trains more than the classifier, such as {strangers[0]}"
    yield from _of_the_run(phase, facts)
    yield from _moving(schedule, phase, model, boundary)
    yield from _inside_epochs(schedule, number)
    yield from _after_the_body(schedule, number, model, boundary, facts)


def _of_the_run(phase: Phase, facts: Circumstances) -> Iterator[str]:
    if facts.ranks != 1:
        yield f"{facts.ranks} processes train it, and features are computed by a single one"
    if facts.adapter:
        yield "an adapter is in its body"
    if facts.overfits:
        yield "trainer.overfit_batches chooses its pictures"
    if facts.mixing:
        yield f"augment mixes the pictures of a batch by {facts.mixing}"
    if facts.own_transforms:
        yield "what augment.transforms do to a picture cannot be told"
    if facts.changes_each_epoch and phase.cache.views == 1:
        key = f"freeze.phases.{phase.name}.cache.views"
        yield f"augment changes each picture anew in each epoch; {key}=4 takes four fixed views in turn"
    if facts.foreign_averages:
        yield "the averages of its weights round what is frozen; callbacks=ema does not"


def _moving(schedule: FreezeSchedule, phase: Phase, model: nn.Module, boundary: Boundary) -> Iterator[str]:
    """What of the body is not the same each time while the phase trains."""
    for stage in phase.stages:
        modes = module_modes(model, schedule.groups, stage.trainable, phase.bn, schedule.spec.frozen)
        for name, module in model.named_modules():
            if boundary.above(name) or not modes[name]:
                continue
            shown = name or type(module).__name__
            if keeps_statistics(module):
                yield f"the running statistics of {shown} change (freeze.bn.frozen)"
            chance = next((key for key in _CHANCES if _is_chance(getattr(module, key, None))), None)
            if chance is not None and (name == "" or not list(module.children())):
                yield f"there is dropout before its classifier: {shown} has {chance}={getattr(module, chance):g}"


def _is_chance(value: object) -> bool:
    return isinstance(value, float) and 0 < value <= 1


def _inside_epochs(schedule: FreezeSchedule, number: int) -> Iterator[str]:
    """A phase that begins or ends inside an epoch shares it with another one."""
    per_epoch, is_last = schedule.steps_per_epoch, number + 1 == len(schedule.phases)
    for earlier in schedule.phases[:number]:
        if (earlier.length or 0) % per_epoch:
            yield f"it may begin inside an epoch: phase '{earlier.name}' takes {earlier.length} steps of {per_epoch}"
    length = schedule.phases[number].length
    if not is_last and (length or 0) % per_epoch:
        yield f"it ends inside an epoch: it takes {length} steps, and an epoch has {per_epoch}"


def _after_the_body(
    schedule: FreezeSchedule, number: int, model: nn.Module, boundary: Boundary, facts: Circumstances
) -> Iterator[str]:
    """What a phase before has left: the features are computed as its first epoch begins, of the weights as they are."""
    changing = next((one.name for one in schedule.phases[:number] if _changes(schedule, one, model, boundary)), None)
    if changing is None:
        return
    if schedule.phases[number].starts_from_best:
        yield f"it starts from the best weights of the phase before, and phase '{changing}' changes the body"
    if facts.averages:
        yield f"averages of weights are scored, and those of the body still move after phase '{changing}'"


def _changes(schedule: FreezeSchedule, phase: Phase, model: nn.Module, boundary: Boundary) -> bool:
    if any(not boundary.above(name) for name in phase.trainable):
        return True
    return any("statistics" in reason for reason in _moving(schedule, phase, model, boundary))
