"""Saving a model as a timm folder that plain timm loads, and loading one."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm.models
from torch import nn

from frostline.backbones.building import build
from frostline.backbones.creating import resolve_preprocessing
from frostline.backbones.loading import LoadReport, load_weights
from frostline.backbones.reading import refuse_unsafe_environment
from frostline.backbones.sources import from_folder
from frostline.errors import ConfigError, StorageError
from frostline.types import Preprocessing


@dataclass(frozen=True)
class SavedModel:
    """What a timm folder holds, or the ``model/`` of a run.

    Attributes:
        model: the model in eval mode, on the CPU; ``[B, C, H, W]`` float32 to ``[B, num_classes]`` logits.
        preprocessing: what its input must look like.
        labels: the classes by index; empty where the folder names none.
        report: what loading did.
    """

    model: nn.Module
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    report: LoadReport


def save_timm_folder(
    model: nn.Module, folder: str | os.PathLike[str], *, labels: Sequence[str], preprocessing: Preprocessing
) -> None:
    """Write ``config.json`` and ``model.safetensors``, whole or not at all.

    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` then gives the same logits without Frostline.

    Args:
        model: a model that timm built, on any device and in any memory format.
        folder: replaced where it holds such a folder already.
        labels: the classes by index; empty for a feature extractor.
        preprocessing: what the input looked like in training.

    Raises:
        ConfigError: the labels or the preprocessing are not those of the model.
        StorageError: the folder cannot be written, or holds something else.
    """
    classes = int(getattr(model, "num_classes", 0))
    if labels and len(labels) != classes:
        raise ConfigError(f"{len(labels)} labels were given for a model with {classes} classes.")
    target = Path(folder)
    data_config = asdict(preprocessing)
    data_config["input_size"] = data_config.pop("size")
    try:
        with written_beside(target) as partial, plain_tensors(model):
            timm.models.save_for_hf(
                model,
                str(partial),
                model_config={"label_names": list(labels)} if labels else {},
                safe_serialization=True,
                data_config=data_config,
            )
    except OSError as fault:
        raise StorageError(f"The model cannot be written to '{target}': {fault}.") from fault
    except ValueError as fault:
        raise ConfigError(f"The model cannot be described in a timm folder: {fault}") from fault


def load_timm_folder(folder: str | os.PathLike[str]) -> SavedModel:
    """Load a timm folder, or the one in ``model/`` of a run folder, with its classifier.

    Raises:
        StorageError: it is missing, damaged, or its weights are not those that its config describes.
        ConfigError: its config describes no model that this timm knows.
    """
    refuse_unsafe_environment()
    source = from_folder(Path(folder), str(folder))
    classes = int(source.config.get("num_classes", 1000))
    if source.labels and len(source.labels) != classes:
        problem = f"The config.json in '{folder}' has {len(source.labels)} labels for {classes} classes."
        raise StorageError(problem, mend="Fetch or save the folder again.")
    built = build(
        source.architecture,
        config=source.config,
        saved_args=source.model_args,
        kwargs={},
        num_classes=classes,
        size=None,
    )
    assert source.weights is not None
    report = load_weights(built, source.weights, label=source.label, keeps_head=True)
    astray = (*report.missing, *report.unexpected, *report.left_out)
    if astray:
        raise StorageError(
            f"The weights in '{folder}' are not those that its config.json describes: {', '.join(astray[:3])}"
            f"{', ...' if len(astray) > 3 else ''} differ.",
            mend="Fetch or save the folder again.",
        )
    return SavedModel(built.model.eval(), resolve_preprocessing(built.model), source.labels, report)


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` that takes its place at the end, and vanishes where that is not reached.

    Raises:
        StorageError: ``target`` exists and holds no model.
    """
    if target.exists() and not _replaceable(target):
        raise StorageError(f"'{target}' exists and is no timm folder.", mend="Name a folder that does not exist.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    old = partial.with_suffix(".old")
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            # safetensors writes for its owner alone
            file.chmod(0o644)
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if target.exists():
            target.rename(old)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def plain_tensors(model: nn.Module) -> Iterator[None]:
    """While this holds, ``state_dict()`` gives contiguous tensors: safetensors refuses channels_last and tied ones."""

    def plain(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        seen: set[int] = set()
        for name, tensor in state.items():
            own = tensor.detach().contiguous()
            # a format without aliases wants tied weights twice
            state[name] = own.clone() if own.data_ptr() in seen else own
            seen.add(state[name].data_ptr())

    hooked: Any = model
    handle = hooked.register_state_dict_post_hook(plain)
    try:
        yield
    finally:
        handle.remove()
