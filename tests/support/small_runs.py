"""Runs under Lightning alone: a small model, its freeze schedule and random pictures; only records on the disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from frostline.backbones import Backbone, create_backbone
from frostline.callbacks import CheckedCheckpointIO, FollowSchedule
from frostline.freezing import FreezeSchedule, Validation
from frostline.specs import BackboneSpec, Curve, DepthSpec, FreezeSpec, LrSpec, PhaseSpec
from frostline.tasks import ClassificationTask
from frostline.tasks.regularization import NoRegularizer, Regularizer
from frostline.types import Batch, DepthGroup

CLASSES, SIZE = 3, 32
SWIN = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 2, "img_size": 64}
# a model of each kind: batch norm, layer norm, attention, windows with position tables, squeeze and excitation
MODELS: dict[str, dict[str, Any]] = {
    "test_resnet": {"drop_rate": 0.1},
    # with timm's layer scale of 1e-6 a step of SGD moves the norms behind it by less than float32 can tell from 1
    "test_convnext": {"drop_path_rate": 0.1, "ls_init_value": 0.5},
    "test_vit": {"drop_rate": 0.1},
    "swin_tiny_patch4_window7_224": {**SWIN, "drop_rate": 0.1},
    "test_efficientnet": {"drop_rate": 0.1},
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1),
}
Tensors = dict[str, Tensor]


def small_backbone(name: str, bins: int | None = None) -> Backbone:
    """A model of ``MODELS`` without weights, the same each time."""
    torch.manual_seed(0)
    depth = None if bins is None else DepthSpec(bins=bins)
    size = MODELS[name].get("img_size", SIZE)
    return create_backbone(BackboneSpec(name, "none", MODELS[name]), num_classes=CLASSES, size=size, depth=depth)


def batches(count: int, size: int, side: int, seed: int) -> list[Batch]:
    """Random pictures with a color for each class."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.randn(CLASSES, 3, 1, 1, generator=torch.Generator().manual_seed(7))
    found = []
    for start in range(0, count * size, size):
        indices = torch.arange(start, start + size)
        targets = indices % CLASSES
        images = torch.randn(size, 3, side, side, generator=generator) + colors[targets]
        found.append(Batch(images, targets, indices, torch.ones(size, dtype=torch.bool)))
    return found


@dataclass
class SmallRun:
    """A run before it is trained; ``fit`` trains it.

    Attributes:
        backbone: the model with its depth groups.
        task, schedule, follow: as in a run.
        watch: callbacks that come after the schedule's.
        options: of the Trainer.
        data: training and validation.
        before: callbacks that come ahead of the schedule's.
    """

    backbone: Backbone
    task: ClassificationTask
    schedule: FreezeSchedule
    follow: FollowSchedule
    watch: Sequence[Callback]
    options: dict[str, Any]
    data: LightningDataModule
    before: Sequence[Callback] = ()

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        return self.task.model

    def fit(self) -> Trainer:
        """Train to the end."""
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            callbacks=[*self.before, self.follow, *self.watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            plugins=[CheckedCheckpointIO()],
            **self.options,
        )
        with quiet():
            trainer.fit(self.task, datamodule=self.data)
        return trainer


def small_run(
    name: str,
    record: Path,
    *watch: Callback,
    optimizer: str | Callable[..., torch.optim.Optimizer] = "sgd",
    epochs: int = 3,
    steps_per_epoch: int = 2,
    accumulate: int = 1,
    short: int = 0,
    bins: int | None = None,
    before: Sequence[Callback] = (),
    batch: int = 4,
    freeze: Mapping[str, Any] | None = None,
    monitor: str = "val/accuracy",
    scores: Sequence[float] | None = None,
    trainer: Mapping[str, Any] | None = None,
    regularizer: Regularizer | None = None,
    **phases: PhaseSpec,
) -> SmallRun:
    """A run of ``phases``: a constant rate, weight decay on all that has two dimensions.

    Args:
        name: one of ``MODELS``.
        record: the folder of ``schedule.csv``.
        watch: callbacks that come after the schedule's.
        optimizer: one of ``OPTIMIZERS``, or what makes one of parameter groups.
        epochs, steps_per_epoch, accumulate: its length.
        short: batches that the last window of an epoch lacks.
        bins: depth groups of the body.
        before: callbacks that come ahead of the schedule's, as the one that saves does.
        batch: pictures in a batch.
        freeze: more keys of the schedule.
        monitor: what triggers watch.
        scores: what validation says of ``val/score``, which is the monitor then.
        trainer: more options of the Trainer.
        regularizer: what is added to the loss; None is nothing.
        phases: the schedule.
    """
    seed_everything(0, verbose=False)
    metrics: dict[str, Metric] = {"accuracy": MulticlassAccuracy(CLASSES, average="micro")}
    if scores is not None:
        monitor, metrics = "val/score", {"score": Scripted(scores)}
    backbone = small_backbone(name, bins)
    spec = FreezeSpec(phases=phases, **(freeze or {}))
    schedule = FreezeSchedule(
        spec,
        LrSpec(curve=Curve.constant),
        backbone.groups,
        backbone.model,
        steps_per_epoch=steps_per_epoch,
        total_steps=epochs * steps_per_epoch,
        validation=Validation((monitor, "val/loss"), monitor, larger_is_better=monitor != "val/loss"),
    )
    made = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    task = ClassificationTask(
        backbone.model,
        nn.CrossEntropyLoss(),
        metrics,
        groups=backbone.groups,
        freeze=spec,
        regularizer=NoRegularizer() if regularizer is None else regularizer,
        optimizer=made,
        base_lr=0.05 if optimizer == "sgd" else 0.01,
        weight_decay=0.1,
        seed=0,
    )
    task.enter(schedule, schedule.start)
    side = backbone.preprocessing.size[-1]
    options = {"max_epochs": epochs, "accumulate_grad_batches": accumulate, "log_every_n_steps": 1, **(trainer or {})}
    return SmallRun(
        backbone,
        task,
        schedule,
        FollowSchedule(schedule, record / "schedule.csv"),
        watch,
        options,
        Loaded(batches(steps_per_epoch * accumulate - short, batch, side, 1), batches(1, 6, side, 2)),
        before,
    )


def loader(content: list[Batch]) -> DataLoader[Any]:
    """Gives ``content`` in order."""
    return DataLoader(content, batch_size=None, collate_fn=_as_it_is)  # type: ignore[arg-type]  # a list will do


def _as_it_is(batch: Batch) -> Batch:
    return batch


class Loaded(LightningDataModule):
    """Gives the trainer batches, in order."""

    def __init__(self, train: list[Batch], val: list[Batch]) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.skipped: dict[str, str] = {}

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(self.train)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(self.val)


class Scripted(Metric):
    """Says one number after the other, whatever it is shown.

    Args:
        script: the numbers; the last of them comes again.
    """

    def __init__(self, script: Sequence[float]) -> None:
        super().__init__()
        self.script, self.said = script, 0

    def update(self, *_: Any) -> None:
        """Looks away."""

    def compute(self) -> Tensor:
        self.said += 1
        return torch.tensor(self.script[min(self.said, len(self.script)) - 1])


class Watching(Callback):
    """Calls a function before each batch, when the schedule has made its transition.

    Args:
        look: called with the trainer, the task and the schedule's callback.
    """

    def __init__(self, look: Callable[[Trainer, Any, FollowSchedule], None]) -> None:
        self.look = look

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.look(trainer, pl_module, following(trainer))


def following(trainer: Trainer) -> FollowSchedule:
    """The schedule's callback of a trainer."""
    (found,) = (one for one in trainer.callbacks if isinstance(one, FollowSchedule))
    return found


class quiet(warnings.catch_warnings):  # noqa: N801  # used as a function
    """Without Lightning's advice, as in a run."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        for message in (
            ".*does not have many workers.*",
            ".*smaller than the logging interval.*",
            ".*GPU available but not used.*",
            ".*in eval mode at the start of training.*",
            ".*LeafSpec.*",
            ".*before or while `compute`.*|.*The ``compute`` method of metric.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        return found


def tensors(model: nn.Module) -> Tensors:
    """A copy of all parameters and buffers, by name."""
    return {name: tensor.detach().clone() for name, tensor in named(model)}


def named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, those included that are not saved."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """The names of the tensors that are not bitwise the same."""
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def of_groups(groups: Sequence[DepthGroup]) -> set[str]:
    """The parameters of some depth groups."""
    return {name for group in groups for name in group.parameters}


def buffers_of(model: nn.Module, parameters: set[str]) -> set[str]:
    """The buffers of the modules that hold one of ``parameters`` themselves."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, _ in module.named_buffers(recurse=False)
        if any((f"{path}.{own}" if path else own) in parameters for own, _ in module.named_parameters(recurse=False))
    }
