"""What would stop a run later, found before its first step: all of it at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from omegaconf import DictConfig
from torch import Tensor, nn

from frostline.checkpoints import checkpoints_in
from frostline.data import ImageData
from frostline.data.loading import collate
from frostline.data.randomness import kept_generators
from frostline.data.samplers import training_length
from frostline.errors import ConfigError, DataError, FrostlineError, StorageError
from frostline.features import in_eval
from frostline.freezing import FreezeSchedule, module_modes
from frostline.runs.data_checks import check_data
from frostline.runs.folder import RunFolder
from frostline.runs.parts import Parts, rank_count
from frostline.runs.sizes import readable_size
from frostline.tasks import PretrainingTask

# pictures of each split that are tried: a fault of the whole set shows in the first few
PICTURES = 8
# copies of a parameter that an optimizer keeps; Adam and its kin keep two
OPTIMIZER_COPIES = {"SGD": 1, "Lion": 1, "AdafactorBigVision": 1}
_PROBE = ".frostline-writes-here"


def disk_free(folder: Path) -> int:
    """Bytes that this user may still write below ``folder``."""
    return shutil.disk_usage(folder).free


def preflight(
    config: DictConfig,
    parts: Parts,
    folder: RunFolder,
    trainer: Trainer,
    *,
    free: Callable[[Path], int] = disk_free,
    tries_input: bool = True,
) -> None:
    """Look for what would stop the run later; silent when all is well, and nothing is left changed.

    Disk and pictures are the matter of rank 0; the rest is the same on each.

    Args:
        config: of the run.
        parts: of the run, on the CPU, before Lightning has wrapped them.
        folder: of the run.
        trainer: with the callbacks of the run.
        free: tells the room on the disk of a folder, in bytes.
        tries_input: whether to run the model on two pictures; not needed where its features are known already.

    Raises:
        FrostlineError: of the kind of the gravest fault: config before data before storage; all are named.
    """
    ranks = rank_count(config.trainer)
    splits = [name for name in parts.data.splits if _is_used(name, config)]
    faults: list[FrostlineError] = []
    with kept_generators():
        faults += batch_norm_faults(parts.data, parts.schedule, parts.task.model, ranks=ranks, sync=_synced(config))
        faults += input_faults(parts, str(config.backbone.name)) if tries_input else []
        faults += share_faults(parts.data, splits, ranks)
        if trainer.is_global_zero:
            faults += data_faults(parts.data, splits)
            faults += storage_faults(folder, _callbacks(trainer), _checkpoint_bytes(config, parts, trainer), free)
    raise_all(faults)


def preflight_pretraining(
    config: DictConfig,
    data: ImageData,
    schedule: FreezeSchedule,
    task: PretrainingTask,
    folder: RunFolder,
    trainer: Trainer,
    *,
    free: Callable[[Path], int] = disk_free,
) -> None:
    """As ``preflight``, for a run that reads the training pictures alone."""
    ranks = rank_count(config.trainer)
    faults: list[FrostlineError] = []
    with kept_generators():
        faults += batch_norm_faults(data, schedule, task.model, ranks=ranks, sync=_synced(config))
        if trainer.is_global_zero:
            faults += data_faults(data, ["train"])
            model = _bytes([*task.autoencoder.parameters(), *task.autoencoder.buffers()])
            sizes = (model * (1 + _optimizer_copies(config)), model)
            faults += storage_faults(folder, _callbacks(trainer), sizes, free)
    raise_all(faults)


def raise_all(faults: Sequence[FrostlineError]) -> None:
    """Raise one error that names all ``faults``, of the kind with the smallest exit code; nothing where none is."""
    if not faults:
        return
    ordered = sorted(faults, key=lambda fault: fault.exit_code)
    if len(ordered) == 1:
        raise ordered[0]
    listed = "\n".join(f"{number}. {fault}" for number, fault in enumerate(ordered, start=1))
    raise type(ordered[0])(f"{len(ordered)} faults, found before the first step:\n{listed}")


def _synced(config: DictConfig) -> bool:
    return bool(config.trainer.get("sync_batchnorm"))


def _is_used(split: str, config: DictConfig) -> bool:
    return split != "test" or config.get("test") is not False


# --- batch norm -------------------------------------------------------------------------------------------------------


def batch_norm_faults(
    data: ImageData, schedule: FreezeSchedule, model: nn.Module, *, ranks: int, sync: bool
) -> list[FrostlineError]:
    """A fault where a batch norm would learn from batches of a single picture, whose variance says nothing.

    Args:
        data: loaded.
        schedule: says in which phases a batch norm is in train mode.
        model: unwrapped.
        ranks: processes of the run.
        sync: whether batch norms take the batches of all processes together.
    """
    length, size = len(data.splits["train"]), data.batch_size
    per_rank = training_length(length, size, drop_last=data.drop_last, world_size=ranks)
    if min(size, per_rank) != 1 or (sync and ranks > 1):
        return []
    learning = _learning_batch_norms(schedule, model)
    if not learning:
        return []
    why = "data.batch_size=1" if size == 1 else f"{length} training pictures over {ranks} processes"
    mend = "data.batch_size=2" if size == 1 else "Use fewer processes or more pictures"
    return [
        ConfigError(
            f"With {why} the batch norms of the backbone would learn from one picture at a time: "
            f"{', '.join(learning[:3])}{', ...' if len(learning) > 3 else ''}.",
            mend=f"{mend}, a freeze schedule that keeps them frozen (freeze=linear_probe freeze.bn.frozen=eval), or a "
            "backbone without batch norm.",
        )
    ]


def _learning_batch_norms(schedule: FreezeSchedule, model: nn.Module) -> list[str]:
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    learning: set[str] = set()
    for phase in schedule.phases if norms else ():
        for stage in phase.stages:
            modes = module_modes(model, schedule.groups, stage.trainable, phase.bn, schedule.spec.frozen)
            learning |= {name for name in norms if modes[name]}
    return [name for name in norms if name in learning]


# --- the backbone's input ---------------------------------------------------------------------------------------------


def input_faults(parts: Parts, name: str) -> list[FrostlineError]:
    """A fault where the backbone refuses two pictures of the run's size, or does not give logits of its classes."""
    model, size = parts.task.model, parts.backbone.preprocessing.size
    if any(tensor.is_meta for tensor in model.parameters()):
        return []
    shown = " x ".join(map(str, size))
    mend = f"{_pretrained_with(model)}Set data.size, or choose another backbone."
    try:
        with in_eval(model), torch.no_grad():
            # forward itself: calling a compiled model would compile it for this
            logits = model.forward(torch.zeros(2, *size))
    except Exception as error:  # a model may fail in any way on an input that it was not made for
        reason = next(iter(str(error).strip().splitlines()), "")
        return [
            ConfigError(f"The backbone '{name}' cannot take pictures of {shown}: {reason or repr(error)}", mend=mend)
        ]
    wanted = (2, len(parts.data.classes))
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != wanted:
        problem = f"The backbone '{name}' gives {found} for two pictures of {shown}, not logits of shape {wanted}"
        return [ConfigError(problem, mend="Choose a backbone that classifies.")]
    return []


def _pretrained_with(model: nn.Module) -> str:
    told: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    size = told.get("input_size")
    return f"It was pre-trained with {' x '.join(map(str, size))}. " if size else ""


# --- pictures ---------------------------------------------------------------------------------------------------------


def share_faults(data: ImageData, splits: Sequence[str], ranks: int) -> list[FrostlineError]:
    """A fault for each split with fewer pictures than processes: the metrics of one without any cannot be gathered."""
    return [
        DataError(
            f"{len(data.splits[split])} pictures of the {split} split cannot be shared by {ranks} processes.",
            mend="Use fewer processes (trainer.devices) or more pictures.",
        )
        for split in splits
        if len(data.splits[split]) < ranks
    ]


def data_faults(data: ImageData, splits: Sequence[str]) -> list[FrostlineError]:
    """What `check_data` and `picture_faults` find; without ``data.strict`` what is no fault becomes a note."""
    checks = check_data(data, splits)
    if not data.strict:
        data.notes += [finding.problem for finding in checks.findings if finding.problem not in data.notes]
    strict = checks.findings if data.strict else []
    # a picture whose header is damaged need not be named again
    return [*checks.faults, *strict] or picture_faults(data, splits)


def picture_faults(data: ImageData, splits: Sequence[str]) -> list[FrostlineError]:
    """A fault for each of the first pictures of ``splits`` that does not become input; the model sees none of them."""
    faults: list[FrostlineError] = []
    for split in splits:
        train = split == "train"
        dataset = data.loader(split, train=train).dataset
        count = min(PICTURES, data.batch_size, len(data.splits[split]))
        faults += _faults_of(dataset, split, count, may_skip=train and data.on_error == "skip")
    return faults


def _faults_of(dataset: Any, split: str, count: int, *, may_skip: bool) -> list[FrostlineError]:
    try:
        samples = dataset.__getitems__(list(range(count)))
        unreadable = collate(samples).unreadable
    except FrostlineError as error:
        return [error]
    except Exception as error:  # a transform of the user may fail in any way
        problem = f"The {split} pictures do not become a batch: {type(error).__name__}: {error}"
        return [ConfigError(problem, mend="Look at augment.transforms.")]
    return [picture.fault for picture in unreadable if not (may_skip and isinstance(picture.fault, DataError))]


# --- disk -------------------------------------------------------------------------------------------------------------


def storage_faults(
    folder: RunFolder, callbacks: Sequence[Callback], sizes: tuple[int, int], free: Callable[[Path], int] = disk_free
) -> list[FrostlineError]:
    """A fault for each folder of the run that cannot be written, or else where the disk has no room for it.

    Args:
        folder: of the run.
        callbacks: of the run; the one that saves says where, and how many checkpoints it keeps.
        sizes: bytes of a checkpoint, and of the model in it.
        free: tells the room on the disk of a folder, in bytes.
    """
    saving = next((callback for callback in callbacks if hasattr(callback, "keep_latest")), None)
    target = Path(getattr(saving, "folder", folder.checkpoints))
    places = [folder.path, *([target] if target.is_dir() else [])]
    faults: list[FrostlineError] = [fault for place in places if (fault := _write_fault(place))]
    if faults:
        return faults
    checkpoint, model = sizes
    # those kept, and the one that is being written beside them
    count = int(getattr(saving, "keep_best", 1)) + int(getattr(saving, "keep_latest", 2)) + 1
    there = sum(path.stat().st_size for path in checkpoints_in(target)) if target.is_dir() else 0
    needed = max(count * checkpoint - there, checkpoint) + model
    left = free(folder.path)
    if left >= needed:
        return []
    return [
        StorageError(
            f"The run needs about {readable_size(needed)} in {folder.path}, for {count} checkpoints of "
            f"{readable_size(checkpoint)} and the model; the disk has {readable_size(left)} free.",
            mend="Make room, choose another disk (output=FOLDER), or keep fewer (callbacks.checkpoint.keep_latest=1).",
        )
    ]


def _write_fault(folder: Path) -> StorageError | None:
    probe = folder / _PROBE
    try:
        with probe.open("wb") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as error:
        return StorageError(
            f"The folder {folder} cannot be written: {error.strerror or error}.",
            mend="Mend its permissions or make room, or choose another folder: output=FOLDER.",
        )
    return None


def _checkpoint_bytes(config: DictConfig, parts: Parts, trainer: Trainer) -> tuple[int, int]:
    """Bytes of a checkpoint and of the model, estimated."""
    model = _bytes([*parts.task.model.parameters(), *parts.task.model.buffers()])
    learning = frozenset().union(*(phase.trainable for phase in parts.schedule.phases))
    trained = _bytes([tensor for name, tensor in parts.task.model.named_parameters() if name in learning])
    copies = _optimizer_copies(config)
    averages = sum(isinstance(callback, WeightAveraging) for callback in _callbacks(trainer))
    return model * (1 + averages) + trained * copies, model


def _optimizer_copies(config: DictConfig) -> int:
    return OPTIMIZER_COPIES.get(str(config.optimizer._target_).rpartition(".")[2], 2)


def _callbacks(trainer: Trainer) -> list[Callback]:
    return list(getattr(trainer, "callbacks", []))


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
