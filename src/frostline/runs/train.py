"""``frostline train``: fine-tune, select by the monitor, score the test split once, write the run folder."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from lightning import Trainer
from omegaconf import DictConfig
from torch import nn

from frostline.backbones import save_timm_folder
from frostline.callbacks import EpochLines, FollowSchedule, StopWhenNotFinite
from frostline.config import spec_of
from frostline.data import ImageData
from frostline.errors import NumericsError, StorageError
from frostline.runs.announcing import announce, show_scores
from frostline.runs.evaluate import write_evaluation
from frostline.runs.folder import RunFolder, write_json
from frostline.runs.lr_finding import find_learning_rate
from frostline.runs.parts import Parts, build_parts, make_trainer, require_monitor
from frostline.runs.provenance import provenance
from frostline.specs import MonitorSpec
from frostline.tasks import ScoringTask


def train(config: DictConfig) -> dict[str, float]:
    """A run from its config to its folder; the scores that ``metrics.json`` holds.

    Raises:
        FrostlineError: a part cannot be built, a picture not read, a loss is not finite, a file not written.
    """
    folder = RunFolder(Path(config.folder))
    parts = build_parts(config)
    require_monitor(config, len(parts.data.classes), list(parts.data.splits))
    monitor = spec_of(config.monitor, MonitorSpec)
    trainer = make_trainer(
        config,
        folder,
        before=[FollowSchedule(parts.schedule, folder.schedule), StopWhenNotFinite()],
        after=EpochLines(monitor.metric, monitor.mode.name),
    )
    if trainer.is_global_zero:
        announce(parts.data, parts.backbone, parts.schedule, config.backbone.name)
        write_json(folder.provenance, _provenance(config, parts))
    scores: dict[str, float] = {}
    if config.lr_find:
        scores["lr_find/lr"] = find_learning_rate(parts, folder, trainer.strategy.root_device)
    scores |= fit(trainer, parts)
    scores |= select(trainer, parts, folder)
    if scored_on_test(config, parts.data):
        scores |= test(trainer, parts, folder)
    finish(trainer, folder, scores)
    return scores


def _provenance(config: DictConfig, parts: Parts) -> dict[str, object]:
    report = parts.backbone.report
    weights = {"source": report.source, "sha256": report.sha256, "loaded": report.loaded}
    return provenance(command="train", seed=config.seed, data_fingerprint=parts.data.fingerprint(), weights=weights)


def fit(trainer: Trainer, parts: Parts) -> dict[str, float]:
    """Train to the end or to an early stop; seconds, and pictures a second."""
    started = time.perf_counter()
    trainer.fit(parts.task, datamodule=parts.data)
    seconds = time.perf_counter() - started
    pictures = len(parts.data.splits["train"]) * max(1, trainer.current_epoch)
    return {"seconds": seconds, "images_per_second": pictures / seconds, "epochs": float(trainer.current_epoch)}


def select(trainer: Trainer, parts: Parts, folder: RunFolder) -> dict[str, float]:
    """Load the best checkpoint by the monitor, score validation with it, and write ``model/``.

    Raises:
        NumericsError: no epoch had a finite monitor.
        StorageError: no checkpoint was saved.
    """
    best = best_checkpoint(trainer)
    load_model(parts.task, best)
    scores = score_split(trainer, parts, "val")
    if trainer.is_global_zero:
        save_timm_folder(
            parts.task.model, folder.model, labels=parts.data.classes, preprocessing=parts.backbone.preprocessing
        )
    trainer.strategy.barrier()
    return scores


def best_checkpoint(trainer: Trainer) -> Path:
    """The checkpoint that the monitor selected."""
    callback = trainer.checkpoint_callback
    best = getattr(callback, "best_model_path", "")
    if best and Path(best).is_file():
        return Path(best)
    if getattr(callback, "monitor", None) and trainer.current_epoch > 0 and callback is not None:
        raise NumericsError("no epoch had a finite monitor, so there is no best checkpoint", mend="Lower optimizer.lr.")
    raise StorageError(
        "no checkpoint was saved", mend="Keep callbacks.checkpoint, and check that the folder is writable."
    )


def load_model(task: ScoringTask, checkpoint: Path) -> None:
    """Put the model's weights of a checkpoint into ``task``."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    load_prefixed(task.model, state, "model.")


def load_prefixed(model: nn.Module, state: dict[str, torch.Tensor], prefix: str) -> None:
    """Load the part of ``state`` under ``prefix``; every key has to match."""
    model.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})


def score_split(trainer: Trainer, parts: Parts, split: str) -> dict[str, float]:
    """The scores of a split that is not trained on, with the weights that ``parts.task`` holds."""
    loader = parts.data.loader(split)
    run = trainer.validate if split == "val" else trainer.test
    return {name: float(value) for name, value in run(parts.task, dataloaders=loader, verbose=False)[0].items()}


def scored_on_test(config: DictConfig, data: ImageData) -> bool:
    """Whether this run looks at the test split; a set without one has been said to have none."""
    return "test" in data.splits and config.test is not False


def test(trainer: Trainer, parts: Parts, folder: RunFolder) -> dict[str, float]:
    """Score the test split, once, and write its predictions."""
    scores = score_split(trainer, parts, "test")
    if trainer.is_global_zero:
        write_evaluation(parts.task, parts.data, "test", folder)
    return scores


def finish(trainer: Trainer, folder: RunFolder, scores: dict[str, float]) -> None:
    """Write ``metrics.json``, which makes the folder whole, and show where it is."""
    if trainer.is_global_zero:
        write_json(folder.metrics, scores)
        show_scores(scores, [split for split in ("val", "test") if f"{split}/loss" in scores])
        print(f"run: {folder.path}", flush=True)
    trainer.strategy.barrier()
