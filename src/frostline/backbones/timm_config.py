"""Reading the ``config.json`` of a timm folder: plain JSON that came with a model, and is not trusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import timm.models

from frostline.backbones.building import RESERVED
from frostline.errors import ConfigError, StorageError, near_misses, suggestion

# Of a pretrained config these describe the weights' own classes or where they came from, not the model to come.
_OF_THE_WEIGHTS = ("label_names", "label_descriptions", "url", "file", "hf_hub_id", "state_dict", "source")

_LARGEST_SIDE = 8192  # pixels, or channels
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class TimmConfig:
    """What a timm folder says about its model.

    Attributes:
        architecture: a timm architecture, without a tag.
        config: timm's pretrained config; empty means the architecture's own.
        model_args: constructor arguments that the weights were made with.
        labels: the classes by index; empty where the folder names none.
    """

    architecture: str
    config: dict[str, Any] = field(default_factory=dict)
    model_args: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()


def read_timm_config(path: Path, label: str) -> TimmConfig:
    """Read ``config.json``.

    Args:
        path: the file.
        label: the folder or hub name as the config of the run says it, for the messages.

    Raises:
        StorageError: the file is missing or is no JSON object.
        ConfigError: it describes no model that timm knows, or sets arguments that it may not.
    """
    content = _read_json(path, label)
    config = content.get("pretrained_cfg", content)
    architecture = content.get("architecture")
    if not isinstance(architecture, str) or not isinstance(config, dict):
        raise ConfigError(
            f"'{label}' holds no timm model: '{path}' names no 'architecture'.",
            mend="Frostline trains timm models; look for a timm version of this one.",
        )
    if architecture not in timm.list_models():
        close = near_misses(architecture, timm.list_models())
        raise ConfigError(
            f"'{label}' is a '{architecture}', which timm {timm.__version__} does not know.",
            mend=suggestion(architecture, close) if close else "A newer timm may know it.",
        )
    args = _checked_args(content.get("model_args") or {}, path)
    labels = content.get("label_names") or content.get("labels") or config.get("label_names") or ()
    _check_values({**config, **_of_the_file(content), **_of_the_input(args), "label_names": labels}, path)
    return TimmConfig(architecture, _known_fields(config, content, args), args, tuple(map(str, _listed(labels))))


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """A pretrained config without what only its own weights have: their classes and where they were fetched from."""
    return {name: value for name, value in config.items() if name not in _OF_THE_WEIGHTS}


def _read_json(path: Path, label: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise StorageError(
            f"'{label}' is no timm folder: there is no '{path}'.",
            mend="A timm folder holds config.json and model.safetensors.",
        ) from fault
    except (OSError, ValueError, RecursionError) as fault:
        raise StorageError(
            f"'{path}' cannot be read as JSON: {fault}.", mend="Fetch or save the folder again."
        ) from fault
    if not isinstance(content, dict):
        raise StorageError(f"'{path}' holds no JSON object.", mend="Fetch or save the folder again.")
    return content


def _checked_args(args: Any, path: Path) -> dict[str, Any]:
    if not isinstance(args, dict):
        raise StorageError(f"'{path}': model_args is no JSON object.", mend="Fetch or save the folder again.")
    forbidden = sorted(set(args) & (RESERVED.keys() - {"num_classes"}))
    if forbidden:
        raise ConfigError(
            f"'{path}' sets model_args.{forbidden[0]}, which a model folder may not.", mend="Remove that line from it."
        )
    return {name: value for name, value in args.items() if name != "num_classes"}


def _of_the_file(content: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_classes": content["num_classes"]} if "num_classes" in content else {}


def _of_the_input(args: Mapping[str, Any]) -> dict[str, Any]:
    return {"in_chans": args["in_chans"]} if "in_chans" in args else {}


def _check_values(values: Mapping[str, Any], path: Path) -> None:
    """Refuse what would fail later without saying why, or would ask for more memory than there is."""
    for name, is_right in _RIGHT.items():
        value = values.get(name)
        if value is not None and not is_right(value):
            raise ConfigError(f"'{path}' sets {name} to {value!r:.100}.", mend="Fetch or save the folder again.")


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_count(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and _is_number(value, low, high)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_count(side, 1, _LARGEST_SIDE) for side in value)


def _are_statistics(value: Any, low: float) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_number(one, low, 1e6) for one in value)


def _are_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _are_labels(value: Any) -> bool:
    listed = list(value.values()) if isinstance(value, dict) else value
    return isinstance(listed, list | tuple) and all(isinstance(label, str | int) for label in listed)


# what is looked at later, and when it is right; timm's other fields only describe
_RIGHT: dict[str, Callable[[Any], bool]] = {
    "num_classes": lambda value: _is_count(value, 0, _MOST_CLASSES),
    "in_chans": lambda value: _is_count(value, 1, _LARGEST_SIDE),
    "input_size": _is_size,
    "mean": lambda value: _are_statistics(value, -1e6),
    "std": lambda value: _are_statistics(value, 1e-6),
    "crop_pct": lambda value: _is_number(value, 0.05, 4.0),
    "crop_mode": lambda value: value in ("center", "squash", "border"),
    "first_conv": _are_names,
    "classifier": _are_names,
    "label_names": _are_labels,
}


def _known_fields(config: Mapping[str, Any], content: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that timm's pretrained config has, with the input that the weights were really made for."""
    fields = {name: config[name] for name in timm.models.PretrainedCfg.__dataclass_fields__ if name in config}
    fields["num_classes"] = content.get("num_classes", fields.get("num_classes"))
    fields["architecture"] = content["architecture"]
    fields["custom_load"] = False
    if args.get("dynamic_img_size") or args.get("strict_img_size") is False or args.get("use_naflex"):
        fields["fixed_input_size"] = False
    channels, *side = fields.get("input_size") or (3, 224, 224)
    own = args.get("img_size") if fields.get("fixed_input_size") else None
    side = side if own is None else [own, own] if isinstance(own, int) else list(own)
    fields["input_size"] = (args.get("in_chans") or channels, *side)
    return describe({name: value for name, value in fields.items() if value is not None})


def _listed(labels: Any) -> list[Any]:
    """The labels in order; timm stores them as a list, or as a mapping from class index to label."""
    if isinstance(labels, dict):
        return [labels[index] for index in sorted(labels, key=lambda index: (len(str(index)), str(index)))]
    return list(labels)
