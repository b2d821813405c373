"""The parts of a run, built from its config in the order in which they need each other."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning
import torch
from omegaconf import DictConfig
from timm.layers.config import set_reentrant_ckpt
from torch import Tensor, nn
from torchmetrics import Metric

from frostline.adapters import Adapter
from frostline.backbones import Backbone, create_backbone
from frostline.config import build, check_targets, spec_of, trusted_targets
from frostline.data import ImageData
from frostline.data.geometry import resized
from frostline.errors import ConfigError, DataError, FrostlineError, suggestion
from frostline.freezing import FreezeSchedule, Validation, keeps_statistics
from frostline.metrics import makes_sense
from frostline.optim import fastest
from frostline.specs import BackboneSpec, ClassWeights, ClipBy, FreezeSpec, LrSpec, Mode, SpeedSpec
from frostline.tasks import L2SP, ClassificationTask, balanced_weights, effective_weights

# what the program itself passes to the constructors named under these keys
SUPPLIED = {"metrics": ("num_classes",), "optimizer": ("params",), "loss": ("weight",), "task": ("model",)}


@dataclass
class Parts:
    """What a run consists of, before anything is trained.

    Attributes:
        notes: what a person might not expect of how they go together.
    """

    data: ImageData
    backbone: Backbone
    freeze: FreezeSpec
    schedule: FreezeSchedule
    task: ClassificationTask
    adapter: Adapter
    notes: tuple[str, ...] = ()


def build_parts(config: DictConfig) -> Parts:
    """Data, backbone, schedule and task of a run.

    Raises:
        FrostlineError: a part cannot be built; the faults of the config are reported together.
    """
    # the config of a run that goes on may be someone else's
    allowed = trusted_targets(config.config_dirs) if config.get("resume") else None
    check_targets(config, allowed=allowed, trust=config.get("trust", []), supplied=SUPPLIED)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    data: ImageData = build(config.data, "data")
    data.load()
    if not data.labelled:
        problem = f"{config.data._target_} has no labels to train with"
        raise ConfigError(problem, mend="It is for `frostline pretrain`; class folders are data=folder.")
    freeze = spec_of(config.freeze, FreezeSpec)
    backbone = make_backbone(config, len(data.classes), freeze)
    backbone.preprocessing = resized(backbone.preprocessing, data.resize)
    adapter: Adapter = build(config.adapter, "adapter")
    new, added = adapt(adapter, backbone)
    augmentation = build(config.augment, "augment")
    data.prepare(backbone.preprocessing, augmentation, seed=config.seed)
    batches = data.batches_per_epoch(rank_count(config.trainer))
    schedule = make_schedule(
        config,
        freeze,
        backbone,
        batches,
        validation=validation_of(config, len(data.classes)),
        new=new,
        # without weights all is new, and an adapter would freeze nothing
        allowed=adapter.allowed(backbone.model, backbone.groups, new if backbone.report.loaded else frozenset()),
    )
    task = make_task(config, data, backbone, freeze, augmentation.mixer(len(data.classes)))
    task.regularizer.begin(task.model, None, new)
    enter_first_phase(schedule, task)
    try:
        task.configure_optimizers()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optimizer: {error}", mend="Look at the keys of optimizer.") from error
    notes = [*notes_on(task, schedule, added), *imbalance_notes(config, data), *augmentation.notes()]
    return Parts(data, backbone, freeze, schedule, task, adapter, tuple(notes))


def make_backbone(config: DictConfig, num_classes: int, freeze: FreezeSpec) -> Backbone:
    """The model with its weights, and the memory of its backward pass as ``speed`` says."""
    backbone = create_backbone(
        spec_of(config.backbone, BackboneSpec),
        num_classes=num_classes,
        size=config.data.get("size"),
        depth=freeze.depth,
        module=None if config.backbone.module is None else build(config.backbone.module, "backbone.module"),
    )
    if config.speed.grad_checkpointing:
        checkpoint_gradients(backbone.model)
    return backbone


def checkpoint_gradients(model: nn.Module) -> None:
    """Have a model compute activations again in its backward pass; a frozen front takes no part in that.

    The reentrant kind of checkpointing would give no gradients behind a frozen front, whose output needs none; timm's
    is of the other kind unless the environment asks for it.

    Raises:
        ConfigError: the model cannot do it, or has batch norms, which would count each batch twice.
    """
    norm = next((name for name, module in model.named_modules() if keeps_statistics(module)), None)
    if norm is not None:
        raise ConfigError(
            f"speed.grad_checkpointing would run the batch norms of the backbone, such as {norm}, twice a batch",
            mend="Set speed.grad_checkpointing=false, or choose a backbone without batch norm.",
        )
    set_reentrant_ckpt(False)
    name = type(model).__name__
    refusal = ConfigError(
        f"speed.grad_checkpointing: {name} has no gradient checkpointing", mend="Set speed.grad_checkpointing=false."
    )
    switch = getattr(model, "set_grad_checkpointing", None)
    if switch is None:
        raise refusal
    try:
        switch(True)
    except AssertionError as error:  # how timm says that a model has none
        raise refusal from error


def adapt(adapter: Adapter, backbone: Backbone) -> tuple[frozenset[str], frozenset[str]]:
    """Put an adapter into a backbone.

    Returns:
        The parameters that were not loaded from weights, the adapter's among them; and the adapter's alone.
    """
    missing = frozenset(backbone.report.missing)
    before = frozenset(name for name, _ in backbone.model.named_parameters())
    groups = adapter.apply(backbone.model, backbone.groups, backbone.preprocessing.size)
    backbone.depth = replace(backbone.depth, groups=groups)
    now = frozenset(name for name, _ in backbone.model.named_parameters())
    return now - adapter.renamed(backbone.model, before - missing), now - adapter.renamed(backbone.model, before)


def notes_on(task: ClassificationTask, schedule: FreezeSchedule, added: frozenset[str]) -> Iterator[str]:
    """What a person might not expect.

    Args:
        task: of the run.
        schedule: of the run.
        added: the parameters of an adapter.
    """
    learning = frozenset().union(*(phase.trainable for phase in schedule.phases))
    if added and added.isdisjoint(learning):
        yield "no phase trains the adapter: it selects none of its matrices; freeze=full does"
    if isinstance(task.regularizer, L2SP) and task.weight_decay > 0:
        yield "regularizer=l2_sp comes on top of weight decay, whose place it takes: optimizer.weight_decay=0"


def imbalance_notes(config: DictConfig, data: ImageData) -> Iterator[str]:
    """What a person might not expect of class weights beside a balanced sampler."""
    weighted = config.class_weights not in (ClassWeights.none, ClassWeights.none.name)
    if weighted and data.sampler == "balanced":
        yield (
            "class_weights and data.sampler=balanced both even out the classes: together small ones count for more "
            "than large ones; one of them is enough"
        )


def make_schedule(
    config: DictConfig,
    freeze: FreezeSpec,
    backbone: Backbone,
    batches: int,
    *,
    validation: Validation,
    new: frozenset[str] | None = None,
    allowed: frozenset[str] | None = None,
) -> FreezeSchedule:
    """The phases of the run, in optimizer steps.

    Args:
        config: of the run.
        freeze: its schedule.
        backbone: what the schedule freezes.
        batches: of an epoch, before ``trainer.limit_train_batches``.
        validation: the metrics that triggers may watch.
        new: the parameters that were not loaded from the weights.
        allowed: the parameters that may learn.

    Raises:
        ConfigError: the run has no length, or a fault of the schedule.
    """
    trainer = config.trainer
    ranks = rank_count(trainer)
    if trainer.get("fast_dev_run"):
        mend = "A short run is trainer.max_epochs=1 trainer.limit_train_batches=2."
        raise ConfigError("trainer.fast_dev_run saves nothing, so that there is nothing to select", mend=mend)
    if ranks != 1 and config.get("lr_find"):
        raise ConfigError("lr_find measures on one device", mend="Find the learning rate with trainer=auto first.")
    limit = trainer.get("limit_train_batches", 1.0)
    batches = int(batches * limit) if isinstance(limit, float) else min(batches, int(limit))
    per_epoch = max(1, -(-batches // int(trainer.get("accumulate_grad_batches", 1))))
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    if (epochs is None or epochs < 1) and steps < 1:
        raise ConfigError(f"trainer.max_epochs={epochs} gives the run no length", mend="Set trainer.max_epochs=10.")
    total = per_epoch * epochs if epochs and epochs > 0 else steps
    if steps > 0:
        total = min(total, steps)
    every = int(trainer.get("check_val_every_n_epoch") or 1)
    if "monitor" in config and total < per_epoch * every:
        problem = (
            f"The run has {total} optimizer steps (trainer.max_epochs={epochs}, trainer.max_steps={steps}), and the "
            f"first validation comes after {per_epoch * every} (trainer.check_val_every_n_epoch={every}): nothing is "
            "validated"
        )
        raise ConfigError(problem, mend="Make the run longer, or validate more often.")
    if trainer.get("val_check_interval") not in (None, 1, 1.0):
        raise ConfigError(
            "trainer.val_check_interval: a run is validated between epochs",
            mend="trainer.check_val_every_n_epoch; to save within an epoch: callbacks.checkpoint.every_n_steps.",
        )
    check_clipping(trainer, freeze)
    check_strategy(trainer)
    return FreezeSchedule(
        freeze,
        spec_of(config.lr, LrSpec),
        backbone.groups,
        backbone.model,
        steps_per_epoch=per_epoch,
        total_steps=total,
        validation=validation,
        new=new,
        allowed=allowed,
    )


def validation_of(config: DictConfig, num_classes: int) -> Validation:
    """What the triggers of a schedule may watch."""
    every = int(config.trainer.get("check_val_every_n_epoch") or 1)
    return Validation(
        tuple(validation_metrics(config, num_classes)),
        str(config.monitor.metric),
        larger_is_better=config.monitor.mode in (Mode.max, Mode.max.name),
        every=0 if config.trainer.get("limit_val_batches", 1.0) == 0 else every,
    )


def validation_metrics(config: DictConfig, num_classes: int) -> list[str]:
    """The names of the metrics of validation."""
    kept = [
        f"val/{name}" for name, node in config.metrics.items() if makes_sense(int(node.get("top_k", 1)), num_classes)
    ]
    return [*kept, "val/loss"]


def check_strategy(trainer: DictConfig) -> None:
    """Raise for a strategy that a transition cannot wrap anew."""
    strategy = trainer.get("strategy", "auto")
    named = str(strategy if not isinstance(strategy, DictConfig) else strategy.get("_target_"))
    if named != "auto" and "ddp" not in named.lower():
        raise ConfigError(
            f"trainer.strategy={named}: a run is on one device or under DDP", mend="Set trainer.strategy=ddp."
        )


def check_clipping(trainer: DictConfig, freeze: FreezeSpec) -> None:
    """Raise where ``freeze.clip`` would bound nothing."""
    if ClipBy(freeze.clip) is ClipBy.run:
        return
    if not trainer.get("gradient_clip_val"):
        raise ConfigError("freeze.clip=group has no bound to keep", mend="Set trainer.gradient_clip_val=1.0.")
    if trainer.get("gradient_clip_algorithm") == "value":
        raise ConfigError(
            "freeze.clip=group bounds norms, but trainer.gradient_clip_algorithm=value bounds values",
            mend="Set trainer.gradient_clip_algorithm=norm, or freeze.clip=run.",
        )


def rank_count(trainer: DictConfig) -> int:
    """How many processes the trainer will use."""
    devices = trainer.get("devices", 1)
    if devices in ("auto", -1, "-1"):
        count = torch.cuda.device_count() or 1
    elif isinstance(devices, int):
        count = devices
    else:
        count = len(str(devices).strip(",").split(",")) if isinstance(devices, str) else len(devices)
    return count * int(trainer.get("num_nodes", 1))


def make_task(
    config: DictConfig, data: ImageData, backbone: Backbone, freeze: FreezeSpec, mixer: Any
) -> ClassificationTask:
    """The LightningModule of the run."""
    speed = spec_of(config.speed, SpeedSpec)
    if speed.compile:
        backbone.model.compile(backend=speed.compile_backend)
    return ClassificationTask(
        backbone.model,
        make_loss(config, data.class_counts("train")),
        make_metrics(config.metrics, len(data.classes)),
        groups=backbone.groups,
        freeze=freeze,
        regularizer=build(config.regularizer, "regularizer"),
        optimizer=make_optimizer(config),
        base_lr=float(config.optimizer.lr),
        weight_decay=float(config.optimizer.get("weight_decay", 0.0)),
        seed=config.seed,
        mixer=mixer,
        channels_last=takes_channels_last(speed, backbone.model),
    )


def takes_channels_last(speed: SpeedSpec, model: nn.Module) -> bool:
    """Whether a model runs in that memory format, as ``speed.channels_last`` says; null leaves it to the model.

    A training step on a CPU took 0.75 to 0.83 of the time for mobilenet, efficientnet and mixnet, 0.89 to 0.96 for
    resnext, regnet and convnext, 1.13 for repvit, all with grouped convolutions, and as long for resnet18 without.
    """
    if speed.channels_last is not None:
        return speed.channels_last
    return any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules())


def make_optimizer(config: DictConfig) -> Any:
    """Takes parameter groups, gives the optimizer of the run, in its fastest way where the config names none."""
    from hydra.utils import get_object

    # Lightning clips no gradients that an optimizer unscales by itself
    fused = str(config.trainer.get("precision")) not in ("16", "16-mixed")
    way = fastest(get_object(config.optimizer._target_), config.optimizer, fused=fused)
    return build(config.optimizer, "optimizer", **way)


def make_loss(config: DictConfig, counts: list[int]) -> nn.Module:
    """The loss, with class weights where the config asks for them.

    Args:
        config: of the run.
        counts: training pictures per class.

    Raises:
        ConfigError: the loss takes no ``weight``, or as for `class_weights`.
    """
    weights = class_weights(config, counts)
    if weights is None:
        loss: nn.Module = build(config.loss, "loss")
        return loss
    from hydra.utils import get_object

    if "weight" not in inspect.signature(get_object(config.loss._target_)).parameters:
        raise ConfigError(
            f"class_weights: {config.loss._target_} takes no 'weight'",
            mend="Choose another loss, or class_weights=none.",
        )
    weighted: nn.Module = build(config.loss, "loss", weight=weights)
    return weighted


def class_weights(config: DictConfig, counts: list[int]) -> Tensor | None:
    """``[K]`` float32 weights of the classes in the loss, or None.

    Raises:
        ConfigError: there is no such kind of weights, or ``class_weights_beta`` is out of its range.
    """
    # a saved config has the name of the member
    kind = getattr(config.class_weights, "name", config.class_weights)
    if kind == ClassWeights.none.name:
        return None
    if kind == ClassWeights.balanced.name:
        return balanced_weights(counts)
    if kind != ClassWeights.effective.name:
        raise ConfigError(f"class_weights={kind}: there are none", mend=suggestion(str(kind), ClassWeights.__members__))
    beta = config.get("class_weights_beta")
    if not (isinstance(beta, int | float) and 0 <= beta < 1):
        raise ConfigError(f"class_weights_beta={beta} is out of its range", mend="Give a number from 0 to below 1.")
    return effective_weights(counts, beta)


def make_metrics(node: DictConfig, num_classes: int) -> dict[str, Metric]:
    """Name to metric; a top-k that cannot be wrong is left out."""
    kept = {str(name): child for name, child in node.items() if makes_sense(int(child.get("top_k", 1)), num_classes)}
    return {name: build(child, f"metrics.{name}", num_classes=num_classes) for name, child in kept.items()}


def enter_first_phase(schedule: FreezeSchedule, task: ClassificationTask) -> None:
    """Freeze before Lightning wraps the model, so that DDP knows from the start what it has to reduce."""
    task.enter(schedule, schedule.start)


def require_monitor(config: DictConfig, num_classes: int, splits: Sequence[str]) -> None:
    """Raise where the monitor will not exist, now that classes and splits are known."""
    metric = config.monitor.metric
    if "val" not in splits:
        fault: FrostlineError = DataError(
            f"monitor.metric={metric}: this data set has no validation split",
            mend="Split some off: data.val_fraction=0.15.",
        )
        raise fault
    names = validation_metrics(config, num_classes)
    if metric not in names:
        problem = f"monitor.metric={metric}: with {num_classes} classes no metric provides it"
        raise ConfigError(problem, mend=suggestion(metric, names))
