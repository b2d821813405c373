"""Which phases of a schedule can compute features once, and which of them do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from frostline.errors import ConfigError
from frostline.features.boundary import Boundary, NotCached
from frostline.features.cutting import Cut, Restless
from frostline.freezing import FreezeSchedule, Phase, keeps_statistics, module_modes
from frostline.specs import CacheMode

LEAST_FROZEN = 0.1
"""The share of a forward pass below which reading features back costs what it saves, a thirtieth of an epoch or so."""

_CHANCES = ("p", "drop_prob", "drop_rate", "drop_path_rate")  # what torch and timm call the chance of a dropout


@dataclass(frozen=True)
class Circumstances:
    """What of a run, beside its schedule, decides whether features can be computed once.

    Attributes:
        ranks: processes.
        replaces_batch_norms: whether others take their place when training begins, if there are several processes.
        mixing: what mixes the pictures of a batch, in words; empty where nothing does.
        own_transforms: whether a person's own transforms change training pictures.
        changes_each_epoch: whether the augmentation gives other inputs in each epoch.
        averages: whether the weights that are scored are averages.
        foreign_averages: whether these are not exact on what stays the same.
        overfits: whether Lightning puts in samplers of its own.
        compiles: whether the network is compiled as a whole.
    """

    ranks: int = 1
    replaces_batch_norms: bool = False
    mixing: str = ""
    own_transforms: bool = False
    changes_each_epoch: bool = False
    averages: bool = False
    foreign_averages: bool = False
    overfits: bool = False
    compiles: bool = False


@dataclass(frozen=True)
class Place:
    """Where a phase cuts the network.

    Attributes:
        cut: the place.
        numbers: of what passes there for a picture; None where nobody had to look.
        number_size: bytes of each.
        frozen: the share of the operations of a forward pass that are below; None where nobody had to look.
    """

    cut: Boundary | Cut
    numbers: int | None = None
    number_size: int = 4
    frozen: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a phase computes features once.

    Attributes:
        phase: its name.
        mode: what it asks for.
        views: fixed views of its training pictures; 1 where there are none.
        epochs: its longest duration, rounded up.
        ranks: processes that train it, of which one computes while the others wait.
        why_not: why it cannot, also where it may not; empty where it can.
        freezes_front: whether the front of the network is frozen in it, so that one would expect it to.
        place: where it cuts the network; None where it does not.
    """

    phase: str
    mode: CacheMode
    views: int
    epochs: int
    ranks: int = 1
    why_not: str = ""
    freezes_front: bool = False
    place: Place | None = None

    @property
    def holds(self) -> bool:
        """Whether it can, and may."""
        return not self.why_not and self.mode is not CacheMode.off and self.place is not None

    @property
    def pays(self) -> bool:
        """Whether it saves passes over the pictures, and enough of each.

        An epoch takes one, and so does a view, which a single process computes: as long as an epoch of each of them.
        """
        return self.epochs > self.views * self.ranks and self.spares_enough

    @property
    def spares_enough(self) -> bool:
        """Whether enough of a pass is below its cut, as far as anybody had to look."""
        return self.place is None or self.place.frozen is None or self.place.frozen >= LEAST_FROZEN

    @property
    def is_cached(self) -> bool:
        """Whether it does, where the store is empty."""
        return self.holds and self.is_worth_it

    @property
    def is_worth_it(self) -> bool:
        """Whether it would, if it can."""
        return self.mode is not CacheMode.off and (self.pays or self.mode is CacheMode.require)

    def formula(self) -> str:
        """The cost in words: passes over the training pictures without and with features that are kept.

        A backward pass is taken for two forward passes through what is not frozen, as is usual.
        """
        sign = ">" if self.epochs > self.views * self.ranks else "<="
        passes = f"{_counted(self.epochs, 'epoch')} {sign} {_counted(self.views, 'view')}"
        if self.ranks > 1:
            passes += f" x {self.ranks} processes, of which one computes"
        if self.place is None or self.place.frozen is None:
            return passes
        frozen = self.place.frozen
        trained = 3 * (1 - frozen)
        cost = f"an epoch costs at least {trained / (frozen + trained):.1%} of one without"
        return f"{passes}; {frozen:.1%} of a forward pass is frozen, so that {cost}"

    def sentence(self) -> str:
        """Why it does not."""
        if self.mode is CacheMode.off:
            return "cache.mode=off"
        return self.why_not or f"it does not pay: {self.formula()}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


Look = Callable[[int, bool], Place | None]
"""Finds the place at which a phase, by its number, can cut the network.

The flag says whether that is worth the time; None where it is not.

Raises:
    NotCached: there is none.
"""


def plan(schedule: FreezeSchedule, model: nn.Module, look: Look, facts: Circumstances) -> tuple[Verdict, ...]:
    """A verdict on each phase, in order.

    Args:
        schedule: of the run.
        model: unwrapped.
        look: is asked for each phase that nothing else forbids.
        facts: of the run.
    """
    return tuple(_verdict(schedule, number, model, look, facts) for number in range(len(schedule.phases)))


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


def _verdict(schedule: FreezeSchedule, number: int, model: nn.Module, look: Look, facts: Circumstances) -> Verdict:
    phase = schedule.phases[number]
    start = sum(earlier.length or 0 for earlier in schedule.phases[:number])
    steps = phase.length if phase.length is not None else schedule.total_steps - start
    verdict = Verdict(
        phase.name,
        CacheMode(phase.cache.mode),
        fixed_views(phase, changes_each_epoch=facts.changes_each_epoch),
        math.ceil(steps / schedule.steps_per_epoch),
        facts.ranks,
        freezes_front=phase.frost_line > 0,
    )
    try:
        for reason in (*_of_the_run(phase, facts), *_inside_epochs(schedule, number), *_at_the_stem(schedule, phase)):
            raise NotCached(reason)
        # looked at where it may not as well: what a run measures of itself does not hang on that
        place = look(number, verdict.pays or verdict.mode is CacheMode.require)
        for reason in _after_the_body(schedule, number, model, place.cut, facts) if place else ():
            raise NotCached(reason)
    except NotCached as reason:
        return replace(verdict, why_not=str(reason))
    return replace(verdict, place=place)


def fixed_views(phase: Phase, *, changes_each_epoch: bool) -> int:
    """Of training pictures in a phase; one where the augmentation changes nothing, of which all would be the same."""
    return phase.cache.views if changes_each_epoch else 1


def _at_the_stem(schedule: FreezeSchedule, phase: Phase) -> Iterator[str]:
    if phase.frost_line == 0:
        first = next(name for name in schedule.groups[0].parameters if name in phase.trainable)
        yield f"its frost line is at the stem: {first} learns"


def _of_the_run(phase: Phase, facts: Circumstances) -> Iterator[str]:
    if facts.ranks > 1 and facts.replaces_batch_norms:
        yield "trainer.sync_batchnorm puts others in the place of its batch norms; those that are frozen need none"
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


def restless(schedule: FreezeSchedule, phase: Phase, model: nn.Module) -> Restless:
    """What of a model is not the same each time while a phase trains."""
    moving: dict[str, str] = {}
    for stage in phase.stages:
        modes = module_modes(model, schedule.groups, stage.trainable, phase.bn, schedule.spec.frozen)
        for name, module in model.named_modules():
            if modes[name] and (change := _change(name, module)):
                moving.setdefault(name, change)
    return Restless(phase.trainable, moving)


def _change(name: str, module: nn.Module) -> str:
    """What is another each time in a module in train mode; empty where nothing is."""
    shown = name or type(module).__name__
    if keeps_statistics(module):
        return f"the running statistics of {shown} change (freeze.bn.frozen)"
    chance = next((key for key in _CHANCES if _is_chance(getattr(module, key, None))), None)
    if chance is not None and (name == "" or not list(module.children())):
        return f"there is dropout: {shown} has {chance}={getattr(module, chance):g}"
    return ""


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
    schedule: FreezeSchedule, number: int, model: nn.Module, cut: Boundary | Cut, facts: Circumstances
) -> Iterator[str]:
    """What a phase before has left: the features are computed as its first epoch begins, of the weights as they are."""
    changing = next((one.name for one in schedule.phases[:number] if _changes(schedule, one, model, cut)), None)
    if changing is None:
        return
    if schedule.phases[number].starts_from_best:
        yield f"it starts from the best weights of the phase before, and phase '{changing}' changes the body"
    if facts.averages:
        yield f"averages of weights are scored, and those of the body still move after phase '{changing}'"


def _changes(schedule: FreezeSchedule, phase: Phase, model: nn.Module, cut: Boundary | Cut) -> bool:
    if any(cut.below(name) for name in phase.trainable):
        return True
    modules = dict(model.named_modules())
    moving = restless(schedule, phase, model).moving
    return any(cut.below(name) and keeps_statistics(modules[name]) for name in moving)
