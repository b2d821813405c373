"""Numbers that are no longer numbers: found before a step is taken; they end the run, or the step is left out."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from frostline.errors import ConfigError, NumericsError, suggestion
from frostline.specs import OnNan

MEND = "Lower optimizer.lr, lengthen lr.warmup or clip gradients with trainer.gradient_clip_val=1.0."
OR_SKIP = "Where it is one bad batch in many, leave its step out: on_nan.action=skip."


class WatchNumbers(Callback):
    """Looks at the losses and gradients before each optimizer step; on a GPU at the norm of all gradients.

    On a GPU a run that stops at them is told of a step while the next one is under way, so that it waits for nothing;
    no validation and no checkpoint comes between.

    Gradients that overflow in 16-mixed precision are the scaler's affair: there only the losses are looked at. A
    skipped step counts as a step, for the schedule as well, but leaves no trace: not in the weights, the optimizer, the
    buffers (batch-norm statistics), the scores of the epoch or averaged weights. Comes before the callbacks that
    average weights.

    Args:
        action: ``stop`` or ``skip``, or the member of ``OnNan``.
        at_most: steps that may be skipped in a run; one more stops it.

    Attributes:
        skipped: how many were; the same on all ranks.

    Raises:
        ConfigError: another action, or a negative number.
    """

    def __init__(self, action: str | OnNan = OnNan.stop, at_most: int = 10) -> None:
        name = action.value if isinstance(action, OnNan) else action
        if name not in OnNan.__members__:
            raise ConfigError(f"on_nan.action={action}", mend=suggestion(name, OnNan.__members__, known_as="actions"))
        if at_most < 0:
            raise ConfigError(f"on_nan.at_most={at_most}", mend="Give 0 or more steps, or on_nan.action=stop.")
        self.skips = name == OnNan.skip.value
        self.at_most = at_most
        self.skipped = 0
        self._losses: list[Tensor] = []
        self._later: _Later | None = None
        self._before = _State()
        self._groups: list[dict[str, Any]] | None = None
        self._held: _Held | None = None
        self._gradients: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begins a window of accumulated batches."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        self._losses = []
        if self.skips:
            self._before.take(pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keeps the loss of each batch of the window; in 16-mixed precision it is scaled."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Looks at the window's numbers; gradients are not clipped yet.

        Raises:
            NumericsError: one is not finite, and the run stops at that or has skipped enough.
        """
        if not self._losses:
            return
        if self._held is None or self._held.groups is not optimizer.param_groups:
            self._held = _Held(optimizer.param_groups)
        scaled = _scaler(trainer) is not None
        norm: Tensor | None = None
        bad: Tensor | bool
        if self._held.are_plain and not scaled:
            # torch makes an object of a gradient each time it is asked for one: the optimizer finds these made
            vectors, others = self._held.gradients()
            self._gradients = vectors + others
            bad = _is_spoilt([loss.reshape(1) for loss in self._losses] + vectors, others)
        else:
            norm = None if scaled else gradient_norm(self._held.parameters)
            bad = _not_finite([*self._losses, *([] if norm is None else [norm])])
        if not self.skips and isinstance(bad, Tensor):
            self._look_back()
            self._later = _Later(bad, self._losses, norm, _place(trainer, optimizer))
            return
        if self.skips and trainer.world_size > 1:
            bad = trainer.strategy.reduce(torch.as_tensor(bad, device=self._losses[0].device).float(), reduce_op="sum")
        if not bool(bad):
            return
        if not scaled and norm is None:
            norm = gradient_norm(self._held.parameters)
        found = f"{self._described(pl_module, norm)} at {_place(trainer, optimizer)}"
        if not self.skips:
            raise NumericsError(found, mend=f"{MEND} {OR_SKIP}")
        if self.skipped == self.at_most:
            left_out = f"after {self.skipped} skipped steps, which is on_nan.at_most"
            raise NumericsError(f"{found}, {left_out}", mend=MEND)
        self._skip(trainer, optimizer, found)

    def _look_back(self) -> None:
        """Raise where the step before was not finite, which the device has told by now."""
        later, self._later = self._later, None
        if later is not None and later.is_bad():
            raise NumericsError(f"{_numbers(later.losses, later.norm)} at {later.place}", mend=f"{MEND} {OR_SKIP}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets nothing be validated that is no longer finite."""
        self._look_back()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the last step."""
        self._look_back()

    def _skip(self, trainer: Trainer, optimizer: Optimizer, found: str) -> None:
        self.skipped += 1
        if trainer.is_global_zero:
            count = f"{self.skipped} of at most {self.at_most}"
            print(f"warning: {found}: this step is skipped ({count})", file=sys.stderr, flush=True)
        _take_gradients(optimizer, found_by_scaler=_scaler(trainer) is not None and _unscales(optimizer))
        self._groups = _settings(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes back what a skipped window has left elsewhere."""
        self._gradients = []
        if self._groups is None:
            return
        self._before.restore(pl_module)
        for group, before in zip(trainer.optimizers[0].param_groups, self._groups, strict=True):
            for key in group.keys() - before.keys() - {"params"}:
                del group[key]
            group.update(before)
        self._groups = None
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
            if isinstance(callback, WeightAveraging):
                # as if it had averaged after this step
                callback._latest_update_step = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """How many steps were skipped.

        Raises:
            NumericsError: the last step was not finite: nothing is saved after it.
        """
        self._look_back()
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counts on."""
        self.skipped = int(state_dict["skipped"])

    def _described(self, pl_module: LightningModule, norm: Tensor | None) -> str:
        if norm is None or bool(norm.isfinite()) or not _all_finite(self._losses):
            return _numbers(self._losses, norm)
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return f"the norm of the gradients is {float(norm)}, first in {name},"
        return "the norm of the gradients is beyond float32"


@dataclass(frozen=True)
class _Later:
    """What a step was like, for when the device has come to it: a GPU need not stop for the answer.

    Args:
        bad: a bool scalar on the device.
        losses, norm: of the step.
        place: of the step, in words.
    """

    bad: InitVar[Tensor]
    losses: list[Tensor]
    norm: Tensor | None
    place: str
    _answer: tuple[Tensor, Any] = field(init=False)

    def __post_init__(self, bad: Tensor) -> None:
        answer, told = bad, None
        if bad.is_cuda:
            answer = torch.empty_like(bad, device="cpu", pin_memory=True).copy_(bad, non_blocking=True)
            told = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch gives no types
            told.record()
        object.__setattr__(self, "_answer", (answer, told))

    def is_bad(self) -> bool:
        """Waits until the device has come to the end of the step's backward pass."""
        answer, told = self._answer
        if told is not None:
            told.synchronize()
        return bool(answer)


def _runs_behind(device: torch.device) -> bool:
    """Whether a device works off a queue, which would run empty while the host waits for an answer."""
    return device.type == "cuda"


def _not_finite(numbers: Sequence[Tensor]) -> Tensor | bool:
    """Whether a scalar is not finite: as a scalar on a device that runs behind."""
    if not any(_runs_behind(number.device) for number in numbers):
        return not _all_finite(numbers)
    return torch.stack([number.float() for number in numbers]).isfinite().all().logical_not()


def _all_finite(numbers: Iterable[Tensor]) -> bool:
    return all(math.isfinite(number.item()) for number in numbers)


def _numbers(losses: Iterable[Tensor], norm: Tensor | None) -> str:
    """The number of a step that is not finite, in words."""
    for loss in losses:
        if not _all_finite([loss]):
            return f"the loss is {float(loss)}"
    if norm is None or _all_finite([norm]):
        return "a loss or gradient of another process is not finite"
    return f"the norm of the gradients is {float(norm)}"


class _Held:
    """What an optimizer holds, looked through once: it is the same at every step.

    Args:
        groups: of the optimizer.

    Attributes:
        parameters: of all groups.
        are_plain: whether all are float32 in the memory of the host, as their gradients are then.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.groups = groups
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        kinds = {(parameter.dtype, type(parameter), parameter.device) for parameter in self.parameters}
        self.are_plain = all(
            dtype is torch.float32 and kind is nn.Parameter and device.type == "cpu" and not _runs_behind(device)
            for dtype, kind, device in kinds
        )
        self._vectors = [parameter for parameter in self.parameters if parameter.ndim == 1]
        self._others = [parameter for parameter in self.parameters if parameter.ndim != 1]

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """The vectors among the gradients that there are, and the others."""
        vectors = [gradient for one in self._vectors if (gradient := one.grad) is not None]
        return vectors, [gradient for one in self._others if (gradient := one.grad) is not None]


def _is_spoilt(vectors: list[Tensor], others: list[Tensor]) -> bool:
    """Whether a number of plain tensors is not finite; the vectors, mostly of batch norms, are many and small."""
    # what a gradient scaler looks with, here times one: of many small tensors the norms take four times as long
    found = torch.zeros(())
    torch._amp_foreach_non_finite_check_and_unscale_([torch.cat(vectors), *others], found, torch.ones(()))
    return bool(found)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients together: a float32 scalar, not finite where one of them is not."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    kinds = {(gradient.dtype, type(gradient), gradient.device) for gradient in gradients}
    if all(dtype is torch.float32 for dtype, _, _ in kinds):
        if len(kinds) != 1 or any(kind is not Tensor for _, kind, _ in kinds):
            return torch.nn.utils.get_total_norm(gradients)
        # as that, which sorts gradients that may lie on several devices
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return norm
    # the norm of finite numbers is soon beyond float16
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return total


def _place(trainer: Trainer, optimizer: Optimizer) -> str:
    rate = max(float(group["lr"]) for group in optimizer.param_groups)
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
    phases = [getattr(getattr(callback, "phase", None), "name", None) for callback in callbacks]
    phase = next((f", phase {name}" for name in phases if name), "")
    step = f"step {trainer.global_step} (epoch {trainer.current_epoch + 1}{phase}"
    return f"{step}, largest learning rate {rate:.3g})"


def _scaler(trainer: Trainer) -> Any:
    """The gradient scaler of 16-mixed precision, or None."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _unscales(optimizer: Optimizer) -> bool:
    """Whether an optimizer takes scaled gradients, as the fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _take_gradients(optimizer: Optimizer, *, found_by_scaler: bool) -> None:
    """Leave the optimizer nothing to do: without gradients it changes nothing.

    A scaler whose optimizer unscales looks at the gradients only now: it leaves out the step itself, if none is finite.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if found_by_scaler and parameter.grad is not None:
                parameter.grad.fill_(torch.nan)
            elif parameter.grad is not None:
                parameter.grad = None


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What the groups hold besides parameters; some optimizers count their steps there."""
    return [
        {key: _copied(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@dataclass
class _State:
    """Buffers and metrics of a module, as they were."""

    buffers: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)

    @torch.no_grad()
    def take(self, module: nn.Module) -> None:
        buffers = dict(module.named_buffers())
        if self.buffers.keys() == buffers.keys():
            # into the same memory: this comes before every step
            torch._foreach_copy_(list(self.buffers.values()), list(buffers.values()))
        else:
            self.buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        self.metrics = {name: (metric._update_count, _states(metric)) for name, metric in _metrics(module)}

    @torch.no_grad()
    def restore(self, module: nn.Module) -> None:
        for name, buffer in module.named_buffers():
            buffer.copy_(self.buffers[name])
        for name, metric in _metrics(module):
            metric._update_count, states = self.metrics[name]
            metric._computed = None
            for state, value in states.items():
                setattr(metric, state, value)


def _metrics(module: nn.Module) -> list[tuple[str, Metric]]:
    return [(name, child) for name, child in module.named_modules() if isinstance(child, Metric)]


def _states(metric: Metric) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, list) else value.clone() for name, value in metric.metric_state.items()
    }
