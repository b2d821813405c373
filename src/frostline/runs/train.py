"""``frostline train``: fine-tune, select by the monitor, score the test split once, write the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from omegaconf import DictConfig
from torch import nn

from frostline.callbacks import EpochLines, FollowSchedule, WatchNumbers
from frostline.checkpoints import read_checkpoint
from frostline.config import build, spec_of
from frostline.data import ImageData, write_division
from frostline.errors import NumericsError
from frostline.exporting import Facts
from frostline.features import in_eval
from frostline.freezing import FreezeSchedule, Position
from frostline.runs.announcing import announce, show_findings
from frostline.runs.caching import RunCache, show
from frostline.runs.cards import architecture, write_card
from frostline.runs.fitting import fit, held, is_over, say_it_is_done, write_provenance
from frostline.runs.folder import RunFolder, write_json
from frostline.runs.ledger import model_hash
from frostline.runs.lr_finding import find_learning_rate
from frostline.runs.parts import Parts, build_parts, rank_count, require_monitor
from frostline.runs.preflight import preflight
from frostline.runs.provenance import provenance
from frostline.runs.report import report_at_end
from frostline.runs.report_pictures import Source
from frostline.runs.resuming import Resumed, find_resumed, identity
from frostline.runs.saved import save_model
from frostline.runs.scoring import (
    SAMPLE,
    Findings,
    forget_scores,
    placed_on,
    score_test,
    speed_of,
    temperature_of,
    validate,
    with_sample,
    write_speed,
)
from frostline.runs.thaw import draw_fact, plot_name
from frostline.runs.trainers import checkpointing, make_trainer
from frostline.specs import MonitorSpec
from frostline.tasks import ScoringTask


def train(config: DictConfig) -> dict[str, float]:
    """A run from its config to its folder; the scores that ``metrics.json`` holds.

    Raises:
        FrostlineError: a part cannot be built, a picture not read, a loss is not finite, a file not written.
        Interrupted: a signal came; the run is saved.
    """
    folder = RunFolder(Path(config.folder))
    with held(folder, "train"):
        return _train(config, folder)


def _train(config: DictConfig, folder: RunFolder) -> dict[str, float]:
    parts = build_parts(config)
    require_monitor(config, len(parts.data.classes), list(parts.data.splits))
    own = identity(config, parts.data, parts.task.model, processes=rank_count(config.trainer))
    resumed = find_resumed(folder, own) if config.resume else None
    if resumed:
        check_rest(parts.schedule, resumed)
    over = resumed is not None and is_over(resumed, config, parts.schedule.total_steps)
    if resumed and over and folder.finished:
        return say_it_is_done(folder, resumed, test=config.test)
    monitor = spec_of(config.monitor, MonitorSpec)
    follow = FollowSchedule(parts.schedule, folder.schedule)
    trainer = make_trainer(
        config,
        folder,
        before=[follow, WatchNumbers(config.on_nan.action, config.on_nan.at_most)],
        after=EpochLines(monitor.metric, monitor.mode.name),
        resumed=resumed,
    )
    checkpointing(trainer).identity = own
    cache = RunCache(config, parts, trainer, follow)
    preflight(config, parts, folder, trainer, tries_input=not cache.is_warm)
    if trainer.is_global_zero:
        announce(
            parts.data,
            parts.backbone,
            parts.schedule,
            config.backbone.name,
            adapted=parts.adapter.sentence(),
            notes=(*parts.notes, *cache.plan.notes()),
            # those of a run that goes on may have begun at other steps than planned
            phases=resumed is None,
        )
        for line in cache.plan.lines():
            show(line)
        write_provenance(folder, _provenance(config, parts, cache), resumed)
        write_division(folder.splits, parts.data.classes, parts.data.splits)
    found = Findings()
    if config.lr_find:
        with cache.measuring():
            found.scores["lr_find/lr"] = base_learning_rate(parts, folder, trainer, resumed)
    with cache.training():
        found.scores |= fit(trainer, parts.task, parts.data, parts.data, resumed, over=over)
    select(trainer, parts, folder, found)
    if not cache.can_stand_in:
        # else the body is never paid for again; `evaluate` measures all of it
        look_at_training(trainer, parts, folder, found)
    if scored_on_test(config, parts.data):
        score_test(trainer, parts.task, parts.data, folder, found, command="train", output=config.output)
    finish(trainer, config, parts, folder, found, times=not cache.can_stand_in)
    return found.flat()


def check_rest(schedule: FreezeSchedule, resumed: Resumed) -> None:
    """Raise where a run that goes on would end before a phase that is still to come."""
    if state := resumed.state_of("FollowSchedule"):
        schedule.check_rest(Position(**state["position"]), resumed.cursor.step)


def base_learning_rate(parts: Parts, folder: RunFolder, trainer: Trainer, resumed: Resumed | None) -> float:
    """The base learning rate of a run with ``lr_find``: measured once, and kept where the run is resumed."""
    if resumed is None:
        return find_learning_rate(parts, folder, trainer.strategy.root_device)
    parts.task.base_lr = resumed.base_lr
    return resumed.base_lr


def _provenance(config: DictConfig, parts: Parts, cache: RunCache) -> dict[str, Any]:
    report = parts.backbone.report
    weights = {"source": report.source, "sha256": report.sha256, "loaded": report.loaded}
    depth = {"source": parts.backbone.depth.source, "corrections": list(parts.backbone.depth.corrections)}
    record = provenance(command="train", seed=config.seed, data=parts.data.record(), weights=weights)
    cached = cache.plan.sentences(len(parts.data.splits["train"]))
    return {**record, "depth": {"groups": [group.name for group in parts.backbone.groups], **depth}, "cache": cached}


def select(trainer: Trainer, parts: Parts, folder: RunFolder, found: Findings) -> None:
    """Load the best checkpoint by the monitor, score validation with it, fit the temperature, and write ``model/``.

    Raises:
        NumericsError: no epoch had a finite monitor.
        StorageError: the best checkpoint cannot be read.
    """
    load_model(parts.task, best_checkpoint(trainer))
    found.scores |= validate(trainer, parts.task, parts.data, "val")
    if trainer.is_global_zero:
        model, backbone = parts.adapter.merge(parts.task.model), parts.backbone
        before = model_hash(folder)
        save_model(model, folder, labels=parts.data.classes, preprocessing=backbone.preprocessing, head=backbone.head)
        if model_hash(folder) != before:
            forget_scores(folder)
        found.calibrate(parts.task, folder)
        found.describe(parts.task, "val", parts.data.splits["val"], parts.data.classes, folder)
    trainer.strategy.barrier()


def look_at_training(trainer: Trainer, parts: Parts, folder: RunFolder, found: Findings) -> None:
    """Score a sample of the training pictures as validation is scored: the difference is the overfitting."""
    data = with_sample(parts.data)
    found.scores |= validate(trainer, parts.task, data, SAMPLE)
    if trainer.is_global_zero:
        found.describe(parts.task, SAMPLE, data.splits[SAMPLE], data.classes, folder)
        found.compare(folder, len(data.splits["train"]))


def best_checkpoint(trainer: Trainer) -> Path:
    """The checkpoint that the monitor selected."""
    best = checkpointing(trainer).best_path
    if best is None:
        raise NumericsError("no epoch had a finite monitor, so there is no best checkpoint", mend="Lower optimizer.lr.")
    return best


def load_model(task: ScoringTask, checkpoint: Path) -> None:
    """Put the model's weights of a checkpoint into ``task``."""
    state = read_checkpoint(checkpoint)["state_dict"]
    load_prefixed(task.model, state, "model.")


def load_prefixed(model: nn.Module, state: dict[str, torch.Tensor], prefix: str) -> None:
    """Load the part of ``state`` under ``prefix``; every key has to match."""
    model.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})


def scored_on_test(config: DictConfig, data: ImageData) -> bool:
    """Whether this run looks at the test split; a set without one has been said to have none."""
    return "test" in data.splits and config.test is not False


def finish(
    trainer: Trainer, config: DictConfig, parts: Parts, folder: RunFolder, found: Findings, *, times: bool
) -> None:
    """Draw the thaw plot, write ``metrics.json``, which makes the folder whole, and show it all.

    Args:
        trainer: of the run.
        config: of the run.
        parts: of the run.
        folder: of the run.
        found: what is known of the model.
        times: whether to time the model, which runs the body.
    """
    if trainer.is_global_zero:
        cursor = checkpointing(trainer).cursor
        steps = cursor.step if cursor else 0
        draw_fact(folder.path, folder.schedule, parts.schedule, steps, parts.task.base_lr, plot_name(config))
        if times:
            found.speed = speed_of(
                trainer,
                parts.adapter.merge(parts.task.model),
                size=parts.backbone.preprocessing.size,
                batch_size=parts.data.batch_size,
                last=parts.task.channels_last,
            )
            write_speed(folder, found.speed)
        facts = Facts(parts.data.classes, parts.backbone.preprocessing, architecture(folder), temperature_of(folder))
        write_card(folder, facts, found.flat())
        write_json(folder.metrics, found.flat())
        show_findings(found)
        # a config from before there were reports does not name them
        if config.get("report") is not False:
            _report(trainer, config, parts, folder)
        print(f"run: {folder.path}", flush=True)
    trainer.strategy.barrier()


def _report(trainer: Trainer, config: DictConfig, parts: Parts, folder: RunFolder) -> None:
    """Write ``report.html`` with the model and the pictures that are at hand."""
    model, device = parts.adapter.merge(parts.task.model), trainer.strategy.root_device
    source = Source(
        parts.data, build(config.augment, "augment"), parts.backbone.preprocessing, model, int(config.seed), device
    )
    with in_eval(model), placed_on(model, device, next(model.parameters()).device):
        report_at_end(folder, source)
