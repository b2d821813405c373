"""The freeze schedule under Lightning: hooks in, decisions in ``frostline.freezing`` and ``frostline.optim``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.callbacks.checkpointing import Checkpointing
from frostline.callbacks.rewrapping import rewrap
from frostline.callbacks.schedule_record import ScheduleRecord
from frostline.checkpoints import Record, read_checkpoint
from frostline.errors import NumericsError
from frostline.freezing import Decision, FreezeSchedule, Phase, Position, Progress, Transition
from frostline.loggers import log_step
from frostline.optim import LearningRates, learning_rate
from frostline.types import Batch, DepthGroup


class Scheduled(Protocol):
    """What a task shows to its schedule.

    Attributes:
        model: what is frozen and thawed.
        base_lr: the one base learning rate.
    """

    model: nn.Module
    base_lr: float

    def enter(self, schedule: FreezeSchedule, position: Position) -> None:
        """Freeze and thaw, and put modules in the modes of the position."""


class FollowSchedule(Callback):
    """Runs each transition of the freeze schedule where it is due, and sets the learning rate of every group and step.

    Transitions stand between optimizer steps, so that none tears a window of accumulated gradients. All ranks obey the
    decisions of the first.

    Args:
        schedule: the phases of the run.
        record: the CSV file that gets a row for each transition.

    Attributes:
        progress: where the run is.
    """

    def __init__(self, schedule: FreezeSchedule, record: Path) -> None:
        self.schedule = schedule
        self.progress = Progress(schedule)
        self.record = ScheduleRecord(record, schedule)
        self._rates = LearningRates(schedule)
        self._begun = False
        self._wrapped: frozenset[str] | None = None

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self.progress.phase

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers what the model was wrapped with."""
        self._begun = False
        self._wrapped = frozenset(
            name for name, parameter in cast(Scheduled, pl_module).model.named_parameters() if parameter.requires_grad
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has the best checkpoint of a phase kept where the next phase starts from it."""
        self._keep_best_of_phase(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Runs the transition where one is due, then sets the learning rates of this step."""
        task, step = cast(Scheduled, pl_module), trainer.global_step
        if not self._begun:
            self._begin(trainer, task)
        # inside a window of accumulated gradients the step does not move, and neither does the schedule
        if batch_idx % trainer.accumulate_grad_batches:
            return
        while (transition := self.progress.advance(step)) is not None:
            self._run(transition, trainer, task)
        self._rates.set(trainer.optimizers[0], task.base_lr, self.progress.position, step)
        log_step(trainer, lambda: self._logged(task, step))

    def _logged(self, task: Scheduled, step: int) -> dict[str, float]:
        """The learning rate of each depth group, and the phase's clock."""
        position = self.progress.position
        rates = {
            f"lr/{group.name}": learning_rate(
                self.schedule, position, task.base_lr, step, group.name, self.schedule.lr_factors[group.name]
            )
            for group in self.schedule.groups
        }
        clock = {"freeze/phase": float(position.phase), "freeze/clock": float(step - position.phase_start)}
        return {"lr": max(rates.values()), **rates, **clock}

    def _begin(self, trainer: Trainer, task: Scheduled) -> None:
        """Put the model where the schedule is: at its start, or where a resumed run has stopped."""
        self._begun = True
        self._enter(trainer, task)
        if self.record.begin(trainer, self.progress.position):
            groups = self.progress.stage.groups
            self.record.add(trainer, Transition(0, self.progress.position, True, groups, (), "start of the run"))

    def _run(self, transition: Transition, trainer: Trainer, task: Scheduled) -> None:
        """A transition: weights; gradients, modes and wrapper; averages; optimizer; record."""
        phase = self.progress.phase
        best = None
        if transition.enters_phase and phase.starts_from_best:
            best = self._restore_best(trainer, task)
        before = self._wrapped or frozenset()
        self._enter(trainer, task)
        self._settle_averages(trainer, task, before - self.progress.stage.trainable)
        optimizer = trainer.optimizers[0]
        if transition.enters_phase and phase.resets_optimizer:
            optimizer.state.clear()
        _forget_counts(optimizer)
        if transition.enters_phase:
            self._keep_best_of_phase(trainer)
        self.record.add(trainer, transition, best.file if best else "last")
        self._say(trainer, transition, best)

    def _say(self, trainer: Trainer, transition: Transition, best: Record | None) -> None:
        if not trainer.is_global_zero:
            return
        phase, stage = self.progress.phase, transition.position.stage
        name = phase.name if len(phase.stages) == 1 else f"{phase.name} {stage + 1}/{len(phase.stages)}"
        count = sum(self.schedule.sizes[parameter] for parameter in self.progress.stage.trainable)
        source = f", from {best.file} with {best.score:.4f}" if best else ""
        print(f"phase     {name}: {transition.reason}; {count:,} parameters learn{source}", flush=True)

    def _enter(self, trainer: Trainer, task: Scheduled) -> None:
        task.enter(self.schedule, self.progress.position)
        trainable = self.progress.stage.trainable
        if trainable == self._wrapped:
            return
        self._wrapped = trainable
        rewrap(trainer)
        if task.model._compiled_call_impl is not None:
            # compiled code is guarded by requires_grad, and stale code counts towards the limit of recompilations
            torch.compiler.reset()

    def _settle_averages(self, trainer: Trainer, task: Scheduled, frozen: frozenset[str]) -> None:
        """Make the average of what freezes the value that it stays at, so that what is scored is frozen as well."""
        averaging = _find(trainer, WeightAveraging)
        if averaging is None or averaging._average_model is None or not frozen:
            return
        live = {f"model.{name}": value for name, value in task.model.named_parameters() if name in frozen}
        load_into(averaging._average_model.module, live, "")

    # --- the weights that a phase starts from -------------------------------------------------------------------------

    def _keep_best_of_phase(self, trainer: Trainer) -> None:
        saving = _find(trainer, Checkpointing)
        if saving is None:
            return
        following = self.progress.position.phase + 1
        wanted = following < len(self.schedule.phases) and self.schedule.phases[following].starts_from_best
        start = self.progress.position.phase_start
        saving.keeping.begin_span(start if wanted else None, start)

    def _restore_best(self, trainer: Trainer, task: Scheduled) -> Record:
        """Load the best weights of the phase before; their checkpoint."""
        saving = _find(trainer, Checkpointing)
        best: Record | None = saving.keeping.best_since if saving else None
        if saving is None or best is None:
            raise NumericsError(
                f"phase '{self.phase.name}' starts from the best weights of the phase before, but no validation in it "
                f"gave a finite {saving.monitor if saving else 'monitor'}",
                mend="Lower optimizer.lr.",
            )
        state = read_checkpoint(saving.folder / best.file)["state_dict"]
        load_into(task.model, state, "model.")
        averaging = _find(trainer, WeightAveraging)
        if averaging is not None and averaging._average_model is not None:
            load_into(averaging._average_model.module, state, "")
        return best

    # --- triggers -----------------------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the scores to the triggers; one that ends the last phase ends the run."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self.progress.observe({name: float(value) for name, value in trainer.callback_metrics.items()})
        self._obey_first_rank(trainer)
        if self.progress.is_over:
            trainer.should_stop = True
            if trainer.is_global_zero:
                print(f"phase     {self.phase.name}: ends the run, {self.progress.decision.reason}", flush=True)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Shows the gradient norms, which are not clipped yet, to a walk that they move."""
        if not self.progress.watches_gradients:
            return
        model = cast(Scheduled, pl_module).model
        if self.progress.observe_gradients(gradient_norms(model, self.schedule.groups)):
            self._obey_first_rank(trainer)

    def _obey_first_rank(self, trainer: Trainer) -> None:
        if trainer.world_size == 1:
            return
        decision = self.progress.decision
        self.progress.decision = Decision(*trainer.strategy.broadcast(astuple(decision)))

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the run is in its schedule."""
        return self.progress.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self.progress.load_state_dict(state_dict)


def load_into(model: nn.Module, state: Mapping[str, Tensor], prefix: str) -> None:
    """Copy the tensors of ``state`` under ``prefix`` into ``model``, which keeps its own."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if prefix + name in state:
                tensor.copy_(state[prefix + name])


def gradient_norms(model: nn.Module, groups: tuple[DepthGroup, ...]) -> dict[str, float]:
    """The 2-norm of all gradients of each depth group that has one, with one wait for the device."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    found = {group.name: [gradients[name] for name in group.parameters if name in gradients] for group in groups}
    norms = {name: torch.nn.utils.get_total_norm(held) for name, held in found.items() if held}
    if not norms:
        return {}
    values = torch.stack([norm.float() for norm in norms.values()]).tolist()
    return dict(zip(norms, values, strict=True))


def _forget_counts(optimizer: Optimizer) -> None:
    """Have an optimizer that counts steps by group, as LAMB does, begin anew where it knows nothing of a group."""
    for group in optimizer.param_groups:
        if "step" in group and not any(parameter in optimizer.state for parameter in group["params"]):
            del group["step"]


def _find(trainer: Trainer, kind: type[Any]) -> Any:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)
