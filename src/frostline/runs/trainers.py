"""Lightning's Trainer for a run: its callbacks in their order, its loggers, and what of Lightning's is turned off."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig

from frostline.callbacks import CheckedCheckpointIO, Checkpointing, SyncBatchNorm
from frostline.config import build
from frostline.errors import ConfigError
from frostline.runs.folder import RunFolder
from frostline.runs.resuming import Resumed
from frostline.runs.step_loop import HOOKS_OF_A_STEP, use_step_loop


def make_trainer(
    config: DictConfig,
    folder: RunFolder,
    before: Sequence[Callback],
    after: Callback,
    *,
    resumed: Resumed | None = None,
) -> Trainer:
    """Lightning's Trainer with the config's callbacks and loggers.

    Args:
        config: of the run.
        folder: of the run.
        before: callbacks that come ahead of the config's.
        after: the one that comes last and sees what all have logged.
        resumed: what the run goes on from.
    """
    own = [build(node, f"callbacks.{name}") for name, node in (config.callbacks or {}).items() if node]
    saving = [callback for callback in own if isinstance(callback, Checkpointing)]
    others = [callback for callback in own if callback not in saving]
    trainer: Trainer = build(
        config.trainer,
        "trainer",
        # saving comes first: at its safe points no other callback has begun the next step
        callbacks=[*saving, *before, *others, after],
        logger=make_loggers(config, resumed) or False,
        default_root_dir=str(folder.path),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in others),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **({} if config.trainer.get("profiler") else {"profiler": NoProfiler()}),
        plugins=[CheckedCheckpointIO(), *([SyncBatchNorm()] if config.trainer.get("sync_batchnorm") else [])],
        sync_batchnorm=False,
    )
    leave_signals_alone(trainer)
    leave_out_empty_hooks(trainer)
    use_step_loop(trainer)
    return trainer


class NoProfiler(PassThroughProfiler):
    """As Lightning's, which makes a generator for each of the fifty places of a step where it times nothing."""

    _nothing: ClassVar = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        """A context in which nothing is timed."""
        return self._nothing


def scoring_trainer(node: DictConfig) -> Trainer:
    """Lightning's Trainer on the device that ``trainer`` names, which scores and trains nothing."""
    trainer: Trainer = build(
        node,
        "trainer",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    return trainer


def make_loggers(config: DictConfig, resumed: Resumed | None) -> list[Logger]:
    """The loggers; those of a resumed run go on in the files and tracked runs of the process before."""
    named = {name: node for name, node in (config.logger or {}).items() if node}
    loggers: list[Logger] = []
    for name, node in named.items():
        kind = str(node._target_).rpartition(".")[2]
        loggers.append(build(node, f"logger.{name}", **(_going_on(kind, resumed) if resumed else {})))
    return loggers


def _going_on(kind: str, resumed: Resumed) -> dict[str, Any]:
    known_as = resumed.trackers.get(kind)
    if kind.startswith("TensorBoard"):
        return {"purge_step": resumed.cursor.step}
    if kind == "MLFlowLogger":
        return {"run_id": known_as}
    return {"id": known_as, "resume": "allow"} if kind == "WandbLogger" else {}


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep Lightning from putting its handlers over ours: it returns 0 on SIGTERM, with nothing saved."""
    # private, and held by tests/runs/test_signals.py
    connector: Any = trainer._signal_connector
    connector.register_signal_handlers = lambda: None


def leave_out_empty_hooks(trainer: Trainer) -> None:
    """Have no callback called at a step for a hook that it does not have: Lightning passes over one that is None."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
        for hook in HOOKS_OF_A_STEP:
            if getattr(type(callback), hook, None) is getattr(Callback, hook) and hook not in vars(callback):
                setattr(callback, hook, None)


def checkpointing(trainer: Trainer) -> Checkpointing:
    """The callback that saves the run.

    Raises:
        ConfigError: there is none.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
        if isinstance(callback, Checkpointing):
            return callback
    mend = "Keep callbacks.checkpoint, as in conf/callbacks/default.yaml."
    raise ConfigError(
        "callbacks has no frostline.callbacks.Checkpointing, so that no model would be selected", mend=mend
    )
