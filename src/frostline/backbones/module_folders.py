"""Saving a module that is not timm's, and loading its weights into it when it was built again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from frostline.backbones.folders import SavedModel, plain_tensors, written_beside
from frostline.backbones.loading import LoadReport
from frostline.backbones.module_config import ModuleConfig, read_module_config, write_module_config
from frostline.backbones.modules import find_head, fit_head, outputs_of
from frostline.backbones.reading import file_sha256, read_tensors, refuse_unsafe_environment
from frostline.errors import ConfigError, StorageError
from frostline.types import Preprocessing

WEIGHTS = "model.safetensors"
_SHOWN = 3  # names in a message


def save_module_folder(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    head: str,
) -> None:
    """Write ``config.json`` and ``model.safetensors``, whole or not at all.

    How to build the module is not among it: that would be code in a model folder.

    Args:
        model: on any device and in any memory format.
        folder: replaced where it holds a model already.
        labels: the classes by index.
        preprocessing: what the input looked like in training.
        head: the path of its classifier.

    Raises:
        ConfigError: the labels are not those of the model, or it has a state that is no tensor.
        StorageError: the folder cannot be written, or holds something else.
    """
    outputs = outputs_of(find_head(model, head))
    if len(labels) != outputs:
        raise ConfigError(f"{len(labels)} labels were given for a model with {outputs} classes.")
    _require_tensors(model)
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    target = Path(folder)
    try:
        with written_beside(target) as partial, plain_tensors(model):
            write_module_config(ModuleConfig(name, head, tuple(labels), preprocessing), partial)
            safetensors.torch.save_file(model.state_dict(), partial / WEIGHTS, metadata={"format": "pt"})
    except OSError as fault:
        raise StorageError(f"The model cannot be written to '{target}': {fault}.") from fault


def load_module_folder(folder: str | os.PathLike[str], model: object) -> SavedModel:
    """Put the weights of a folder into a module, strictly.

    Args:
        folder: what ``save_module_folder`` wrote.
        model: a module as its constructor made it; changed in place, a classifier for the folder's classes included.

    Raises:
        StorageError: the folder is missing or damaged.
        ConfigError: the module is another than the one that was saved.
    """
    refuse_unsafe_environment()
    told = read_module_config(Path(folder))
    if not isinstance(model, nn.Module):
        raise ConfigError(f"backbone.module of the run gives a {type(model).__name__}, not a torch.nn.Module.")
    fit_head(model, told.head, len(told.label_names))
    file = Path(folder) / WEIGHTS
    tensors = read_tensors(file)
    _require_same(tensors, model, told.module, file)
    model.load_state_dict(tensors)
    report = LoadReport(str(folder), len(tensors), (), (), file_sha256(file))
    return SavedModel(model.eval(), told.input, told.label_names, report)


def _require_tensors(model: nn.Module) -> None:
    other = [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if other:
        raise ConfigError(f"The model cannot be saved: its state '{other[0]}' is no tensor.")


def _require_same(tensors: dict[str, Tensor], model: nn.Module, saved: str, file: Path) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    different = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
    if different:
        raise ConfigError(
            f"The weights in '{file}' are those of another {saved} than the config of the run builds: "
            f"{', '.join(different[:_SHOWN])}{', ...' if len(different) > _SHOWN else ''} differ.",
            mend="The code of the module, or backbone.module in the run's config.yaml, has changed since.",
        )
