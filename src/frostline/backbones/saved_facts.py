"""What the folder of a saved model says of it, without building it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from frostline.backbones.module_config import holds_module, read_module_config
from frostline.backbones.sources import from_folder

_INPUT = {
    "size": "input_size",
    "mean": "mean",
    "std": "std",
    "interpolation": "interpolation",
    "crop_pct": "crop_pct",
    "crop_mode": "crop_mode",
}


@dataclass(frozen=True)
class SavedFacts:
    """A saved model, as its ``config.json`` describes it.

    Attributes:
        architecture: of timm, with the arguments of its constructor; or the class of a module.
        labels: the classes by index.
        input: what its input must look like, name to value, such as ``size`` to ``(3, 224, 224)``.
        head: the path of the classifier of a module; None for a timm model.
    """

    architecture: str
    labels: tuple[str, ...]
    input: Mapping[str, object]
    head: str | None = None


def read_saved_facts(folder: Path) -> SavedFacts:
    """Read the ``model/`` of a run.

    Raises:
        StorageError: it is missing or damaged.
        ConfigError: it describes no model that this timm knows.
    """
    if holds_module(folder):
        told = read_module_config(folder)
        return SavedFacts(told.module, told.label_names, asdict(told.input), told.head)
    source = from_folder(folder, str(folder), wants_weights=False)
    args = ", ".join(f"{name}={source.model_args[name]!r}" for name in sorted(source.model_args))
    values = {name: source.config.get(key) for name, key in _INPUT.items()}
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return SavedFacts(f"{source.architecture}({args})" if args else source.architecture, source.labels, plain)
