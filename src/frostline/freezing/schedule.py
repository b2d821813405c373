"""The freeze schedule of a run: phases in order, resolved to optimizer steps before training."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from torch import nn

from frostline.errors import ConfigError
from frostline.freezing.partition import check_partition
from frostline.freezing.phase import Phase
from frostline.freezing.rates import rate_faults, resolve_lr
from frostline.freezing.selectors import select
from frostline.specs import FreezeSpec, LrSpec, PhaseSpec, UntilSpec
from frostline.types import DepthGroup


class FreezeSchedule:
    """Which parameters learn at which optimizer step, and on which learning-rate curve.

    A phase states an absolute set of trainable parameters, so that a step alone determines everything and a
    resumed run replays nothing.

    Args:
        spec: the schedule; the values of ``spec.phases`` are ``PhaseSpec``.
        run_lr: the curve of phases that state none.
        groups: the depth groups of ``model``, a partition of its parameters.
        model: read, not changed and not kept; it may lie on the meta device.
        steps_per_epoch: optimizer steps in an epoch, after gradient accumulation.
        total_steps: optimizer steps of the run.

    Attributes:
        phases: in order; they cover the steps from 0 to ``total_steps`` without a gap.
        groups: as given.
        spec: as given.
        sizes: parameter name to number of elements.

    Raises:
        ConfigError: every fault of the schedule at once, each with its key.
    """

    def __init__(
        self,
        spec: FreezeSpec,
        run_lr: LrSpec,
        groups: Sequence[DepthGroup],
        model: nn.Module,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        if total_steps < 1 or steps_per_epoch < 1:
            raise ConfigError(
                f"The run has {total_steps} optimizer steps, {steps_per_epoch} in an epoch.",
                mend="Raise trainer.max_epochs, or lower data.batch_size or trainer.accumulate_grad_batches.",
            )
        check_partition(groups, model)
        self.spec = spec
        self.groups = tuple(groups)
        self.sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        self.phases = _resolve(spec, run_lr, groups, model, steps_per_epoch, total_steps)
        self._starts = [phase.start for phase in self.phases]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.phases[-1].end

    def phase_at(self, step: int) -> Phase:
        """The phase that optimizer step ``step`` (from 0) belongs to; past the end of the run it is the last one."""
        if step < 0:
            raise ValueError(f"optimizer steps count from 0, got {step}")
        return self.phases[bisect_right(self._starts, step) - 1]


def _resolve(
    spec: FreezeSpec,
    run_lr: LrSpec,
    groups: Sequence[DepthGroup],
    model: nn.Module,
    steps_per_epoch: int,
    total_steps: int,
) -> tuple[Phase, ...]:
    """Every phase, or every fault of all of them."""
    faults = rate_faults(spec, run_lr)
    spans = _spans(spec.phases, steps_per_epoch, total_steps, faults)
    phases = []
    for name, phase in spec.phases.items():
        try:
            trainable = select(phase.train, groups, model)
        except ConfigError as error:
            faults.append(ConfigError(f"freeze.phases.{name}.train: {error.problem}", mend=error.mend))
            continue
        if name not in spans:
            continue
        start, end = spans[name]
        try:
            lr = resolve_lr(name, phase.lr, run_lr, steps=end - start, steps_per_epoch=steps_per_epoch)
        except ConfigError as error:
            faults.append(error)
            continue
        phases.append(Phase(name, trainable, start, end, lr, _frost_line(trainable, groups)))
    if faults:
        raise ConfigError.of(list({str(fault): fault for fault in faults}.values()))
    return tuple(phases)


def _spans(
    phases: dict[str, PhaseSpec], steps_per_epoch: int, total_steps: int, faults: list[ConfigError]
) -> dict[str, tuple[int, int]]:
    """Start and end of each phase, up to the first whose end cannot be told; what is wrong goes to ``faults``."""
    if not phases:
        faults.append(ConfigError("freeze.phases is empty.", mend="State one, such as freeze=full."))
    spans: dict[str, tuple[int, int]] = {}
    last = next(reversed(phases), None)
    lengths = {
        name: _length(name, phase.until, name == last, steps_per_epoch, faults) for name, phase in phases.items()
    }
    start = 0
    for name, length in lengths.items():
        if length is None and name != last:
            break
        end = total_steps if length is None else start + length
        fault = _span_fault(name, list(spans), start, end, total_steps, is_last=name == last)
        if fault is not None:
            faults.append(fault)
            break
        spans[name] = (start, end)
        start = end
    return spans


def _length(
    name: str, until: UntilSpec | None, is_last: bool, steps_per_epoch: int, faults: list[ConfigError]
) -> int | None:
    """The phase's length in optimizer steps, or None where it has no end of its own or a wrong one."""
    key = f"freeze.phases.{name}.until"
    epochs, steps = (None, None) if until is None else (until.epochs, until.steps)
    stated = {unit: value for unit, value in (("epochs", epochs), ("steps", steps)) if value is not None}
    if not stated and not is_last:
        faults.append(
            ConfigError(
                f"{key} is missing: phase '{name}' would never end.",
                mend=f"Only the last phase may leave it out; set {key}.epochs or {key}.steps.",
            )
        )
    wrong = [
        ConfigError(f"{key}.{unit} is {value}.", mend="A phase lasts at least 1; leave an unwanted phase out.")
        for unit, value in stated.items()
        if value < 1
    ]
    faults += wrong
    if wrong or not stated:
        return None
    return min(value * (steps_per_epoch if unit == "epochs" else 1) for unit, value in stated.items())


def _span_fault(
    name: str, before: list[str], start: int, end: int, total_steps: int, *, is_last: bool
) -> ConfigError | None:
    key = f"freeze.phases.{name}.until"
    if start >= total_steps:
        return ConfigError(
            f"freeze.phases.{name} can never start: the phases before it take all {total_steps} steps of the run.",
            mend=f"Shorten freeze.phases.{before[-1]}.until, or raise trainer.max_epochs.",
        )
    if end > total_steps:
        return ConfigError(
            f"{key} ends phase '{name}' after optimizer step {end}, but the run has {total_steps}.",
            mend=f"Shorten {key}, or raise trainer.max_epochs.",
        )
    if is_last and end < total_steps:
        return ConfigError(
            f"{key} ends the last phase '{name}' after optimizer step {end}, but the run goes on to {total_steps}.",
            mend=f"Set {key}=null, so that it takes the rest, or lower trainer.max_epochs.",
        )
    return None


def _frost_line(trainable: frozenset[str], groups: Sequence[DepthGroup]) -> int:
    return min(group.depth for group in groups if not trainable.isdisjoint(group.parameters))
