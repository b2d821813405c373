"""How long phases last, as planned: where a metric may end one, its longest duration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from frostline.errors import ConfigError
from frostline.specs import EachSpec, PhaseSpec, UntilSpec


@dataclass(frozen=True)
class Clock:
    """The units of a run.

    Attributes:
        steps_per_epoch: optimizer steps in an epoch, after gradient accumulation.
        total_steps: optimizer steps of the run.
    """

    steps_per_epoch: int
    total_steps: int


@dataclass(frozen=True)
class Span:
    """The planned place of a phase in the run, in optimizer steps; ``end`` is the step after its last."""

    start: int
    end: int

    @property
    def steps(self) -> int:
        """Its planned duration."""
        return self.end - self.start


def spans(
    phases: Mapping[str, PhaseSpec], stages: Mapping[str, int], clock: Clock, faults: list[ConfigError]
) -> dict[str, Span]:
    """The planned place of each phase, up to the first whose end cannot be told.

    Args:
        phases: in order.
        stages: how many stages each has, where that is known.
        clock: of the run.
        faults: what is wrong is added to it.
    """
    if not phases:
        faults.append(ConfigError("freeze.phases is empty.", mend="State one, such as freeze=full."))
    found: dict[str, Span] = {}
    last = list(phases)[-1] if phases else None
    lengths = {
        name: _length(name, phase, stages.get(name, 1), name == last, clock, faults) for name, phase in phases.items()
    }
    by_metric = [name for name, phase in phases.items() if name != last and ends_by_metric(phase)]
    start = 0
    for name, length in lengths.items():
        if length is None and name != last:
            break
        end = clock.total_steps if length is None else start + length
        fault = _fault(name, list(found), start, end, clock, is_last=name == last)
        if fault is None and name == last and length is not None and by_metric:
            fault = _uncertain(name, by_metric[0])
        if fault is not None:
            faults.append(fault)
            break
        found[name] = Span(start, end)
        start = end
    return found


def stated_steps(until: UntilSpec | EachSpec | None, clock: Clock) -> dict[str, int]:
    """The durations that ``until`` or ``each`` states, by unit, in optimizer steps."""
    if until is None:
        return {}
    found = {} if until.epochs is None else {"epochs": until.epochs * clock.steps_per_epoch}
    if until.steps is not None:
        found["steps"] = until.steps
    if isinstance(until, UntilSpec) and until.fraction is not None and not found:
        found["fraction"] = max(1, round(until.fraction * clock.total_steps))
    return found


def has_length(phase: PhaseSpec) -> bool:
    """Whether a phase states in its own words how long it lasts at most."""
    until = phase.until
    return until is not None and (until.epochs, until.steps, until.fraction) != (None, None, None)


def ends_by_metric(phase: PhaseSpec) -> bool:
    """Whether a metric may end a phase before its longest duration."""
    return phase.until is not None and (phase.until.plateau is not None or phase.until.threshold is not None)


def _length(
    name: str, phase: PhaseSpec, stages: int, is_last: bool, clock: Clock, faults: list[ConfigError]
) -> int | None:
    """The phase's longest duration, or None where it has none of its own or a wrong one."""
    key = f"freeze.phases.{name}.until"
    wrong = _wrong_numbers(key, phase.until)
    faults += wrong
    if wrong:
        return None
    stated = stated_steps(phase.until, clock)
    if stated:
        return min(stated.values())
    each = stated_steps(phase.walk.each, clock) if phase.walk is not None else {}
    if each and not is_last:
        # a walk that counts its stages in epochs or steps is as long as they are together
        hold = phase.walk.hold if phase.walk is not None else 0.0
        return round(stages * max(1, min(each.values())) / (1 - min(max(hold, 0.0), 0.99)))
    if not is_last:
        problem = f"{key} is missing: phase '{name}' would never end."
        if ends_by_metric(phase):
            problem = f"{key} has no cap: the metric may never end phase '{name}'."
        mend = f"Only the last phase may leave it out; set {key}.epochs, {key}.steps or {key}.fraction."
        faults.append(ConfigError(problem, mend=mend))
    return None


def _wrong_numbers(key: str, until: UntilSpec | None) -> list[ConfigError]:
    if until is None:
        return []
    found = [
        ConfigError(f"{key}.{unit} is {value}.", mend="A phase lasts at least 1; leave an unwanted phase out.")
        for unit, value in (("epochs", until.epochs), ("steps", until.steps))
        if value is not None and value < 1
    ]
    share = until.fraction
    if share is not None and not 0 < share <= 1:
        found.append(ConfigError(f"{key}.fraction is {share}.", mend="It is a share of the run, above 0 and up to 1."))
    return found


def _fault(
    name: str, before: Sequence[str], start: int, end: int, clock: Clock, *, is_last: bool
) -> ConfigError | None:
    key, total = f"freeze.phases.{name}.until", clock.total_steps
    if start >= total:
        return ConfigError(
            f"freeze.phases.{name} can never start: the phases before it take all {total} steps of the run.",
            mend=f"Shorten freeze.phases.{before[-1]}.until, or raise trainer.max_epochs.",
        )
    if end > total:
        return ConfigError(
            f"{key} ends phase '{name}' after optimizer step {end}, but the run has {total}.",
            mend=f"Shorten {key}, or raise trainer.max_epochs.",
        )
    if is_last and end < total:
        return ConfigError(
            f"{key} ends the last phase '{name}' after optimizer step {end}, but the run goes on to {total}.",
            mend=f"Set {key}=null, so that it takes the rest, or lower trainer.max_epochs.",
        )
    return None


def _uncertain(name: str, earlier: str) -> ConfigError:
    key = f"freeze.phases.{name}.until"
    return ConfigError(
        f"{key} states a duration, but a metric may end phase '{earlier}' early and leave the run longer than that.",
        mend=f"Leave out {key}.epochs, {key}.steps and {key}.fraction: the last phase takes the rest.",
    )
