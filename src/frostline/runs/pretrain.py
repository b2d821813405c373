"""``frostline pretrain``: train a backbone as an auto-encoder, without labels, and write it as a timm folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from lightning import LightningDataModule
from omegaconf import DictConfig

from frostline.backbones import Backbone, create_backbone, save_timm_folder
from frostline.callbacks import EpochLines, WatchNumbers
from frostline.checkpoints import read_checkpoint
from frostline.config import build, check_targets, spec_of
from frostline.data import ImageData, PictureLoader, write_division
from frostline.data.geometry import resized
from frostline.freezing import FreezeSchedule, Validation
from frostline.runs.announcing import announce
from frostline.runs.fitting import fit, held, is_over, say_it_is_done, write_provenance
from frostline.runs.folder import RunFolder, write_json
from frostline.runs.parts import SUPPLIED, make_optimizer, make_schedule, rank_count, takes_channels_last
from frostline.runs.preflight import preflight_pretraining
from frostline.runs.provenance import provenance
from frostline.runs.resuming import find_resumed, identity
from frostline.runs.train import load_prefixed
from frostline.runs.trainers import checkpointing, make_trainer
from frostline.specs import BackboneSpec, FreezeSpec, PhaseSpec, SpeedSpec
from frostline.tasks import PretrainingTask


def pretrain(config: DictConfig) -> dict[str, float]:
    """A pre-training from its config to its folder; the scores that ``metrics.json`` holds.

    Only the training pictures are read, and nothing is selected: the weights are those of the last step.

    Raises:
        FrostlineError: a part cannot be built, a picture not read, a loss is not finite, a file not written.
    """
    folder = RunFolder(Path(config.folder))
    with held(folder, "pretrain"):
        return _pretrain(config, folder)


def _pretrain(config: DictConfig, folder: RunFolder) -> dict[str, float]:
    check_targets(config, supplied=SUPPLIED)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    data, backbone = make_data_and_backbone(config)
    freeze = FreezeSpec(phases={"pretrain": PhaseSpec(train="all")})
    batches = data.batches_per_epoch(rank_count(config.trainer))
    schedule = make_schedule(config, freeze, backbone, batches, validation=Validation(every=0))
    task = make_task(config, backbone, schedule)
    own = identity(config, data, task.autoencoder, processes=rank_count(config.trainer))
    resumed = find_resumed(folder, own) if config.resume else None
    over = resumed is not None and is_over(resumed, config, schedule.total_steps)
    if resumed and over and folder.finished:
        return say_it_is_done(folder, resumed)
    trainer = make_trainer(
        config,
        folder,
        before=[WatchNumbers(config.on_nan.action, config.on_nan.at_most)],
        # the epoch's loss stands in the place of a monitor
        after=EpochLines("train/loss", "min"),
        resumed=resumed,
    )
    checkpointing(trainer).identity = own
    preflight_pretraining(config, data, schedule, task, folder, trainer)
    if trainer.is_global_zero:
        announce(data, backbone, schedule, config.backbone.name)
        record = {"source": backbone.report.source, "sha256": backbone.report.sha256, "loaded": backbone.report.loaded}
        fresh = provenance(command="pretrain", seed=config.seed, data=data.record(), weights=record)
        write_provenance(folder, fresh, resumed)
        write_division(folder.splits, data.classes, data.splits)
    scores = fit(trainer, task, TrainingPictures(data), data, resumed, over=over)
    if resumed and over:
        load_prefixed(task.autoencoder, read_checkpoint(resumed.path)["state_dict"], "autoencoder.")
    last = resumed.metrics if resumed and over else trainer.callback_metrics
    scores = {"train/loss": float(last["train/loss"]), **scores}
    if trainer.is_global_zero:
        save(task, folder, backbone, name=config.name)
        write_json(folder.metrics, scores)
        print(f"use it with: backbone.name=local-dir:{folder.model}")
        print(f"run: {folder.path}", flush=True)
    trainer.strategy.barrier()
    return scores


class TrainingPictures(LightningDataModule):
    """The training split of ``data`` and nothing else, so that no other split can get a loader."""

    def __init__(self, data: ImageData) -> None:
        super().__init__()
        self.data = data

    @property
    def skipped(self) -> dict[str, str]:
        """The pictures that were left out."""
        return self.data.skipped

    def train_dataloader(self) -> PictureLoader:
        """Lightning's hook."""
        self.data.trainer = self.trainer
        return self.data.loader("train", train=True)


def make_data_and_backbone(config: DictConfig) -> tuple[ImageData, Backbone]:
    """Pictures, prepared for a backbone without a classifier."""
    data: ImageData = build(config.data, "data")
    data.load()
    spec = spec_of(config.backbone, BackboneSpec)
    backbone = create_backbone(spec, num_classes=0, size=config.data.get("size"))
    backbone.preprocessing = resized(backbone.preprocessing, data.resize)
    data.prepare(backbone.preprocessing, build(config.augment, "augment"), seed=config.seed)
    return data, backbone


def make_task(config: DictConfig, backbone: Backbone, schedule: FreezeSchedule) -> PretrainingTask:
    """The LightningModule of the run."""
    speed = spec_of(config.speed, SpeedSpec)
    task: PretrainingTask = build(config.pretraining, "pretraining")(
        backbone.model,
        preprocessing=backbone.preprocessing,
        schedule=schedule,
        optimizer=make_optimizer(config),
        base_lr=float(config.optimizer.lr),
        weight_decay=float(config.optimizer.get("weight_decay", 0.0)),
        seed=config.seed,
        channels_last=takes_channels_last(speed, backbone.model),
    )
    if speed.compile:
        task.autoencoder.compile(backend=speed.compile_backend)
    return task


def save(task: PretrainingTask, folder: RunFolder, backbone: Backbone, *, name: str) -> None:
    """Write ``model/``, tagged with the run's name: the tag that timm knows the architecture by is of other weights."""
    timm_model: Any = task.model
    timm_model.pretrained_cfg["tag"] = name
    save_timm_folder(task.model, folder.model, labels=(), preprocessing=backbone.preprocessing)
