"""Going on with a run, in its folder and with its config."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from frostline.config import (
    absolute_paths,
    check_trusted_names,
    flat,
    hydra_session,
    load_config,
    override_saved,
    save_config,
    trusted_targets,
)
from frostline.errors import ConfigError
from frostline.runs.folder import RunFolder
from frostline.runs.locking import Busy

if TYPE_CHECKING:
    from torch import nn

    from frostline.callbacks import Cursor
    from frostline.data import ImageData

# what may differ when a run goes on: its length, when it is saved, what is logged, where and how it is computed
MAY_CHANGE = (
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.accelerator",
    "trainer.log_every_n_steps",
    "trainer.deterministic",
    "trainer.benchmark",
    "callbacks.checkpoint",
    "callbacks.early_stopping.patience",
    "data.workers",
    "data.root",
    "data.on_error",
    "data.strict",
    "data.file_limit",
    "data.pixel_limit",
    "logger",
    "debug",
    "test",
    "on_nan",
    "speed.keep_memory",
    "paper",
    "resume",
    "run",
    "trust",
    "config_dirs",
    "folder",
    "output",
)
CONFIG_BEFORE = ".config.before.yaml"
OF_THE_COMMAND = ("run", "resume", "trust")


def is_started(folder: RunFolder) -> bool:
    """Whether a run has a checkpoint to go on from, whole or not."""
    return any(folder.checkpoints.glob("step-*.ckpt"))


def prepare_resume(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    command: str = "train",
    config_dirs: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> RunFolder:
    """Make the config of a run that its worker goes on with; nothing is changed where it is refused.

    Args:
        path: the run's folder; it may have been moved.
        overrides: single keys with a new value; see ``MAY_CHANGE``.
        command: ``train`` or ``pretrain``: what the run has to be a run of.
        config_dirs: the user's own folders, whose targets are trusted.
        trust: import prefixes that are trusted as well.

    Raises:
        ConfigError: there is no run, it has no checkpoint, its config names what is not trusted, or an override is
            wrong or would make it another run.
        StorageError: another process trains it.
    """
    folder = RunFolder(path.expanduser().absolute())
    if not folder.config.is_file():
        mend = "Name the folder that the run printed when it stopped."
        raise ConfigError(f"run={path} is not a run: it has no config.yaml", mend=mend)
    if not is_started(folder):
        mend = "Start it anew: the same command without run= and resume=true."
        raise ConfigError(f"run={path} has no checkpoint to go on from in {folder.checkpoints}", mend=mend)
    folder.refuse_links_out()
    if folder.locked:
        raise Busy(f"{folder.path} is being trained by another process", mend="Wait for it, or stop it first.")
    put_config_back(folder)
    saved = load_config(folder.config)
    of = "pretrain" if "pretraining" in saved else "train"
    if of != command:
        raise ConfigError(f"run={path} is a run of {of}", mend=f"frostline {of} run={path} resume=true")
    check_trusted_names(saved, allowed=trusted_targets(config_dirs), trust=trust)
    _relocate(saved, str(folder.path))
    with hydra_session(config_dirs) as hydra:
        config = override_saved(hydra, command, saved, [item for item in overrides if not is_of_the_command(item)])
    absolute_paths(config)
    _refuse_another_run(flat(saved), flat(config))
    config.resume, config.run = True, None
    config.trust, config.config_dirs = list(trust), list(config_dirs)
    before = folder.config.with_name(CONFIG_BEFORE)
    before.write_bytes(folder.config.read_bytes())
    part = folder.config.with_name(".config.yaml.part")
    save_config(config, part)
    os.replace(part, folder.config)
    return folder


def is_of_the_command(override: str) -> bool:
    """Whether an override says what to go on with, and not what the run is."""
    return override.split("=", 1)[0].lstrip("+~") in OF_THE_COMMAND


def _relocate(config: DictConfig, here: str) -> None:
    """Point a config whose folder was moved to where it is now."""
    there = str(config.folder)
    if there == here:
        return
    for key, value in flat(config).items():
        if isinstance(value, str) and (value == there or value.startswith(there + os.sep)):
            OmegaConf.update(config, key, here + value[len(there) :])


def _refuse_another_run(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    changed = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    refused = [key for key in changed if not any(key == one or key.startswith(one + ".") for one in MAY_CHANGE)]
    if refused:
        listed = "; ".join(f"{key}: {before.get(key)} -> {after.get(key)}" for key in refused)
        raise ConfigError(
            f"A resumed run is the same run, so these cannot change: {listed}",
            mend="Leave them out, or start a new run from its weights: backbone.weights=RUN.",
        )


@dataclass(frozen=True)
class Resumed:
    """What a run goes on from.

    Attributes:
        path: the checkpoint.
        cursor: where in the run it was saved.
        base_lr: the base learning rate, which ``lr_find`` may have set.
        seconds: of training until then.
        rows: rows of ``metrics.csv`` at that time.
        metrics: the last scores by then.
        skipped: pictures that were left out, and why.
        trackers: logger's class to the name that its tracker knows the run by.
        callbacks: the states of the callbacks.
        notes: sentences on newer checkpoints that could not be read.
    """

    path: Path
    cursor: Cursor
    base_lr: float
    seconds: float
    rows: int
    metrics: dict[str, float]
    skipped: dict[str, str]
    trackers: dict[str, str]
    callbacks: dict[str, Any]
    notes: list[str]

    def state_of(self, callback: str) -> dict[str, Any]:
        """The state of the callback of a class name; empty where there is none."""
        return next((dict(state) for key, state in self.callbacks.items() if key.startswith(callback)), {})


def identity(config: DictConfig, data: ImageData, model: nn.Module, *, processes: int) -> dict[str, Any]:
    """What makes a run this one, as plain types."""
    shapes = [(name, tuple(value.shape)) for name, value in sorted(model.state_dict().items())]
    return {
        "backbone": str(config.backbone.name),
        "model": hashlib.sha256(repr(shapes).encode()).hexdigest(),
        "classes": list(data.classes),
        "seed": int(config.seed),
        "data_fingerprint": data.fingerprint(),
        "optimizer": str(config.optimizer._target_),
        "batches_per_epoch": data.batches_per_epoch(processes),
        "processes": processes,
    }


def find_resumed(folder: RunFolder, own: Mapping[str, Any]) -> Resumed:
    """The newest checkpoint of a run that can be read.

    Args:
        folder: of the run.
        own: the identity that the run would go on with.

    Raises:
        StorageError: no checkpoint can be read.
        ConfigError: the model, the classes, the seed, the data or the number of processes have changed.
    """
    from frostline.callbacks import Cursor
    from frostline.checkpoints import newest_loadable

    path, content, notes = newest_loadable(folder.checkpoints)
    saved = content["frostline"]
    differences = [_difference(key, saved["identity"].get(key), own[key]) for key in own]
    found = [difference for difference in differences if difference]
    if found:
        raise ConfigError(
            "A resumed run is the same run, but this one has changed:\n  " + "\n  ".join(found),
            mend="Put back what it was trained with, or start a new run from its weights: backbone.weights=RUN.",
        )
    return Resumed(
        path=path,
        cursor=Cursor(**saved["cursor"]),
        base_lr=float(content["base_lr"]),
        seconds=float(saved["seconds"]),
        rows=int(saved["rows"]["metrics.csv"]),
        metrics=dict(saved["metrics"]),
        skipped=dict(saved["skipped"]),
        trackers=dict(saved["trackers"]),
        callbacks=dict(content["callbacks"]),
        notes=notes,
    )


def _difference(key: str, before: Any, after: Any) -> str | None:
    if before == after:
        return None
    if key == "classes" and isinstance(before, list):
        gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
        return f"classes: without {gone}, with {new}" if gone or new else "classes: in another order"
    if key == "data_fingerprint":
        return f"data: other pictures, labels or splits (fingerprint {str(before)[:12]} -> {str(after)[:12]})"
    if key == "model":
        return "model: its parameters have other names or shapes"
    return f"{key}: {before} -> {after}"


def put_config_back(folder: RunFolder) -> None:
    """Undo what ``prepare_resume`` wrote, for a run that did not go on; nothing where that is settled."""
    before = folder.config.with_name(CONFIG_BEFORE)
    if before.is_file():
        os.replace(before, folder.config)


def settle_config(folder: RunFolder) -> None:
    """Keep what ``prepare_resume`` wrote: the run goes on with it."""
    folder.config.with_name(CONFIG_BEFORE).unlink(missing_ok=True)
