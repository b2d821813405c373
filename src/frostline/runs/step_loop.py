"""Lightning's loop over the batches of an epoch, which finds out once what Lightning finds out at every step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer

# those of Lightning's that come at every training step
HOOKS_OF_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


def use_step_loop(trainer: Trainer) -> None:
    """Give a trainer, before it has run, the loop of this module in place of Lightning's."""
    theirs: Any = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = StepLoop(trainer, theirs.min_steps, theirs.max_steps)


class StepLoop(_TrainingEpochLoop):
    """As Lightning's: the same hooks, counts and results, in the same order but for the gradients.

    A step of Lightning's looks up each hook of each callback by its name, asks of the data who moves a batch, and wraps
    the step four times, which is 1 ms beside a step of 20. Where a run is on one device, in one process, with a step of
    the optimizer for each batch, these are settled when an epoch begins. Elsewhere, and where a profiler wants to see
    each of them, a step is Lightning's.

    The gradients of the step before are dropped ahead of the forward pass, which then has their memory, still warm;
    Lightning drops them after it, which made a step of 15 ms 2 to 3 % longer on a CPU.
    """

    # Lightning's loops are private; held by tests/runs/test_step_loop.py

    def __init__(self, trainer: Trainer, min_steps: int | None = None, max_steps: int = -1) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.automatic_optimization = _ClearsFirst(trainer)
        self._hooks: _Hooks | None = None

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Settles what a step consists of."""
        super().on_run_start(data_fetcher)
        self._hooks = _Hooks(self.trainer) if _is_simple(self.trainer, data_fetcher) else None

    def _build_kwargs(self, kwargs: OrderedDict[str, Any], batch: Any, batch_idx: int) -> OrderedDict[str, Any]:
        # Lightning reads the signature of training_step anew each time: a batch and its number it takes
        return OrderedDict(batch=batch, batch_idx=batch_idx)

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """One batch.

        Raises:
            StopIteration: there is none, or the task's ``on_train_batch_start`` ends the epoch with -1.
        """
        hooks = self._hooks
        if self.restarting or hooks is None:
            super().advance(data_fetcher)
            return
        self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        batch_idx, progress, connector = self.batch_idx + 1, self.batch_progress, self.trainer._logger_connector
        progress.is_last_batch = data_fetcher.done
        batch = hooks.moved(batch)
        progress.increment_ready()
        connector.on_batch_start(batch)
        if hooks.call("on_train_batch_start", batch, batch_idx) == -1:
            progress.increment_by(0, is_last_batch=True)
            progress.increment_processed()
            raise StopIteration
        progress.increment_started()
        outputs = self._step(hooks, batch, batch_idx)
        progress.increment_processed()
        hooks.call("on_train_batch_end", outputs, batch, batch_idx)
        connector.on_batch_end()
        progress.increment_completed()
        connector.update_train_step_metrics()

    def _step(self, hooks: _Hooks, batch: Any, batch_idx: int) -> Mapping[str, Any]:
        """A step of the optimizer; what ``training_step`` gave, its loss detached."""
        trainer, task, optimizer = self.trainer, hooks.task, self.trainer.optimizers[0]
        progress = self.automatic_optimization.optim_progress.optimizer
        found: ClosureResult | None = None

        @torch.enable_grad()
        def closure() -> Any:
            nonlocal found
            progress.zero_grad.increment_ready()
            hooks.call("on_before_zero_grad", optimizer)
            progress.zero_grad.increment_started()
            task.optimizer_zero_grad(trainer.current_epoch, batch_idx, optimizer)
            progress.zero_grad.increment_completed()
            task._current_fx_name = "training_step"
            with trainer.precision_plugin.train_step_context():
                given = task.training_step(batch, batch_idx)
            task._current_fx_name = None
            found = ClosureResult(given) if type(given) is Tensor else ClosureResult.from_training_step_output(given)
            if found.closure_loss is not None:
                hooks.call("on_before_backward", found.closure_loss)
                task.backward(found.closure_loss)
                hooks.call("on_after_backward")
            hooks.call("on_before_optimizer_step", optimizer)
            task.configure_gradient_clipping(
                optimizer,
                gradient_clip_val=trainer.gradient_clip_val,
                gradient_clip_algorithm=trainer.gradient_clip_algorithm,
            )
            return found.loss

        progress.step.increment_ready()
        optimizer.step(closure=closure)
        progress.step.increment_completed()
        return {} if found is None or found.loss is None else found.asdict()


class _ClearsFirst(_AutomaticOptimization):
    """Lightning's own step, with the gradients dropped ahead of the forward pass."""

    def _make_zero_grad_fn(self, batch_idx: int, optimizer: Optimizer) -> Callable[[], None] | None:
        clear = super()._make_zero_grad_fn(batch_idx, optimizer)
        if clear is None:
            return None
        clear()
        done = iter([True])
        # an optimizer may ask for the gradients more than once a step
        return lambda: None if next(done, False) else clear()


class _Hooks:
    """What a step calls beside the step itself, in Lightning's order: callbacks, then the task.

    Attributes:
        task: what is trained.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.task: LightningModule = trainer.lightning_module
        callbacks: Sequence[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
        self._of_callbacks = {
            hook: [getattr(one, hook) for one in callbacks if _has(one, hook, Callback)] for hook in HOOKS_OF_A_STEP
        }
        self._of_task = {
            hook: getattr(self.task, hook) for hook in HOOKS_OF_A_STEP if _has(self.task, hook, LightningModule)
        }
        self._moves = list(self._movers())

    def call(self, hook: str, *args: Any) -> Any:
        """Call a hook wherever there is one; what the task's gave."""
        response = None
        # LightningModule.log asks for it
        self.task._current_fx_name = hook
        for of_callback in self._of_callbacks[hook]:
            of_callback(self.trainer, self.task, *args)
        if hook in self._of_task:
            response = self._of_task[hook](*args)
        self.task._current_fx_name = None
        return response

    def moved(self, batch: Any) -> Any:
        """The batch on the device of the run."""
        for move in self._moves:
            batch = move(batch)
        return batch

    def _movers(self) -> Iterator[Callable[[Any], Any]]:
        selector: Any = self.trainer._data_connector._datahook_selector
        device = self.trainer.strategy.root_device
        for hook in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
            owner = selector.get_instance(hook)
            if hook == "transfer_batch_to_device":
                yield _given(getattr(owner, hook), device, 0)
            elif is_overridden(hook, owner):
                yield _given(getattr(owner, hook), 0)


def _has(owner: object, hook: str, kind: type[object]) -> bool:
    """Whether a hook is there and not the empty one of its kind; a callback's may be any callable, or None."""
    is_empty = getattr(type(owner), hook) is getattr(kind, hook) and hook not in vars(owner)
    return not is_empty and callable(getattr(owner, hook))


def _given(move: Callable[..., Any], *more: Any) -> Callable[[Any], Any]:
    # by position, as Lightning gives them
    return lambda batch: move(batch, *more)


def _is_simple(trainer: Trainer, fetcher: _DataFetcher) -> bool:
    """Whether a step is one of the optimizer for each batch, on one device, in one process."""
    task, precision = trainer.lightning_module, trainer.precision_plugin
    profiler = trainer.profiler  # type: ignore[attr-defined]  # Lightning sets it in a connector
    return (
        type(trainer.strategy) is SingleDeviceStrategy
        and trainer.strategy.model is task
        and trainer.accumulate_grad_batches == 1
        and task.automatic_optimization
        and not trainer.lr_scheduler_configs
        and not is_overridden("optimizer_step", task)
        and type(precision) in (Precision, MixedPrecision)
        and getattr(precision, "scaler", None) is None
        and isinstance(profiler, PassThroughProfiler)
        and not isinstance(fetcher, _DataLoaderIterDataFetcher)
    )
