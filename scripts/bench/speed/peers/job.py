"""What every loop of the comparison is given, and what it gives back.

A peer's file calls ``main`` with the ways that it can train; ``python FILE WAY JOB.json RESULT.json`` runs one of them.
What must be equal for all stands here: the model with its weights and its head of zeros, the pictures and what is done
to them, the clocks. What a peer does for speed, and how it trains, stands in its own file.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder


@dataclass(frozen=True)
class Job:
    """One training: first the head alone, then everything; either may have no epochs.

    Attributes:
        root: class folders in ``train``, ``val`` and ``test``.
        weights: a timm folder.
        scratch: a folder for what a peer writes.
        size: height and width of the model's input in pixels; resized and cropped as the model was pre-trained.
        batch_size: pictures a step.
        head_epochs: of the head alone.
        full_epochs: of everything.
        head_lr: of AdamW without weight decay, constant, in the first phase.
        full_lr: likewise in the second.
        seed: of the order of the pictures.
        workers: processes that decode.
        device: ``cpu``, in float32, or ``cuda``, in bfloat16.
        threads: of torch on the CPU; None leaves it its own choice.
    """

    root: str
    weights: str
    scratch: str
    size: int
    batch_size: int
    head_epochs: int
    full_epochs: int
    head_lr: float
    full_lr: float
    seed: int
    workers: int
    device: str
    threads: int | None = None

    @property
    def classes(self) -> int:
        """How many class folders there are."""
        return sum(folder.is_dir() for folder in (Path(self.root) / "train").iterdir())

    @property
    def pictures(self) -> int:
        """How many there are to train on."""
        return sum(len(files) for _, _, files in os.walk(Path(self.root) / "train", followlinks=True))

    @property
    def epochs(self) -> int:
        """Of both phases."""
        return self.head_epochs + self.full_epochs

    @property
    def on_gpu(self) -> bool:
        """Whether it computes in bfloat16 on a GPU."""
        return self.device == "cuda"

    @property
    def compiled(self) -> bool:
        """Whether the model is compiled: on a GPU, where everything learns from the first epoch on."""
        return self.on_gpu and not self.head_epochs

    def autocast(self) -> torch.autocast:
        """bfloat16 on a GPU; on a CPU it changes nothing."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.on_gpu)


@dataclass(frozen=True)
class Outcome:
    """What a training gives.

    Attributes:
        accuracy: share (0..1) of the test pictures, with the weights of the best epoch on validation.
        epochs: wall-clock seconds of the training part of each epoch.
        pictures: that an epoch trains on.
    """

    accuracy: float | None = None
    epochs: list[float] = field(default_factory=list)
    pictures: int = 0


class Clocks(NamedTuple):
    """Seconds on the wall, and of the processors, those of ended child processes included."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Clocks:
        """Both clocks."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cls(time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in used))


def main(ways: Mapping[str, Callable[[Job], Outcome]]) -> None:
    """Run the way that the command line names, and write what it gave and took. Imports are not in it."""
    way, job_file, result_file = sys.argv[1:]
    job = Job(**json.loads(Path(job_file).read_text(encoding="utf-8")))
    if job.threads:
        torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    started = Clocks.now()
    outcome = ways[way](job)
    if job.on_gpu:
        torch.cuda.synchronize()
    wall = Clocks.now().wall - started.wall
    gc.collect()  # ends workers that still wait, whose processor time counts once they have ended
    taken = {"wall": wall, "cpu": Clocks.now().cpu - started.cpu}
    memory = {"device_mib": torch.cuda.max_memory_allocated() / 2**20} if job.on_gpu else {}
    result = {**asdict(outcome), **taken, **memory, "torch": torch.__version__, "threads": torch.get_num_threads()}
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


def make_model(job: Job) -> nn.Module:
    """The timm model with its weights and a classifier of zeros, on the device, channels_last."""
    model: nn.Module = timm.create_model(f"local-dir:{job.weights}", pretrained=True, num_classes=job.classes)
    for parameter in head_of(model).parameters():
        nn.init.zeros_(parameter)
    return model.to(job.device, memory_format=torch.channels_last)


def head_of(model: Any) -> nn.Linear:
    """The classifier."""
    head: nn.Linear = model.get_classifier()
    return head


def features_of(model: Any, images: Tensor) -> Tensor:
    """``[B, C, H, W]`` to ``[B, F]``: what comes into the classifier."""
    features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return features


def make_transform(job: Job, **more: Any) -> Callable[[Any], Any]:
    """Resize, center crop and normalize, as the model was pre-trained, for training as for evaluation.

    Args:
        job: the weights and the size.
        more: arguments of timm's ``create_transform``.
    """
    model = timm.create_model(f"local-dir:{job.weights}", pretrained=False)
    known = resolve_model_data_config(model)
    chosen = {name: known[name] for name in ("interpolation", "mean", "std", "crop_pct", "crop_mode")}
    transform: Callable[[Any], Any] = create_transform((3, job.size, job.size), is_training=False, **chosen, **more)
    return transform


def make_loader(job: Job, split: str) -> DataLoader[tuple[Tensor, Tensor]]:
    """PyTorch's own loader over torchvision's ``ImageFolder``; its workers live on over the epochs."""
    return DataLoader(
        ImageFolder(str(Path(job.root) / split), make_transform(job)),
        job.batch_size,
        shuffle=split == "train",
        num_workers=job.workers,
        persistent_workers=job.workers > 0,
        pin_memory=job.on_gpu,
    )
