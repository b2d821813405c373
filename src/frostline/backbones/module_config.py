"""The ``config.json`` of a module that is not timm's: plain JSON that came with a run, and is not trusted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from frostline.errors import StorageError, suggestion
from frostline.types import Preprocessing

CONFIG = "config.json"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_CROP_MODES = ("center", "squash", "border")
_LARGEST_SIDE = 8192  # pixels
_LARGEST = 10_000_000  # bytes


@dataclass(frozen=True)
class ModuleConfig:
    """What a run says about a module that it has trained; how to build it is in the run's own config.

    Attributes:
        module: the import path of its class, to be shown.
        head: the path of its classifier.
        label_names: the classes by index.
        input: what its input must look like.
    """

    module: str
    head: str
    label_names: tuple[str, ...]
    input: Preprocessing


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, with its model in ``model/``."""
    return (folder / "model").is_dir() and not (folder / CONFIG).is_file()


def holds_module(folder: Path) -> bool:
    """Whether a folder, or the ``model/`` of a run, holds a module that is not timm's."""
    path = (folder / "model" if is_run(folder) else folder) / CONFIG
    try:
        return path.is_file() and "module" in _read(path)
    except (OSError, StorageError):
        return False  # whoever opens it says what is wrong


def write_module_config(config: ModuleConfig, folder: Path) -> None:
    """Write ``config.json``.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(asdict(config), indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def read_module_config(folder: Path) -> ModuleConfig:
    """Read ``config.json``.

    Raises:
        StorageError: it is missing, damaged, or does not describe a module and its input.
    """
    path = folder / CONFIG
    content = _read(path)
    try:
        told = content["input"]
        found = ModuleConfig(
            module=_text(content["module"]),
            head=_text(content["head"]),
            label_names=tuple(map(_text, _list(content["label_names"]))),
            input=Preprocessing(
                size=_size(told["size"]),
                mean=_numbers(told["mean"]),
                std=_numbers(told["std"]),
                interpolation=_text(told["interpolation"]),
                crop_pct=float(told["crop_pct"]),
                crop_mode=_text(told.get("crop_mode", "center")),
            ),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as fault:
        problem = f"'{path}' does not describe a module and its input ({type(fault).__name__}: {fault!s:.100})."
        raise StorageError(problem, mend="Fetch or save the folder again.") from fault
    if faults := input_faults(found.input):
        raise StorageError(f"'{path}' sets input.{faults[0]:.200}.", mend="Fetch or save the folder again.")
    return found


def input_faults(told: Preprocessing) -> list[str]:
    """What is wrong with the values of ``told``, a clause each that begins with the name of the value."""
    channels, *sides = told.size
    right = {
        f"size={max(sides)} is no number of pixels": all(1 <= side <= _LARGEST_SIDE for side in sides),
        f"mean={list(told.mean)} is not a number for each of 1 or 3 channels": channels in (1, 3)
        and len(told.mean) == channels
        and all(abs(value) <= 1e6 for value in told.mean),
        f"std={list(told.std)} is not a positive number for each channel": len(told.std) == channels
        and all(value > 1e-6 for value in told.std),
        f"interpolation={told.interpolation} is unknown. {suggestion(told.interpolation, INTERPOLATIONS)}": (
            told.interpolation in INTERPOLATIONS
        ),
        f"crop_pct={told.crop_pct} is no share of a side": 0.05 <= told.crop_pct <= 4.0,
        f"crop_mode={told.crop_mode} is unknown. {suggestion(told.crop_mode, _CROP_MODES)}": (
            told.crop_mode in _CROP_MODES
        ),
    }
    return [problem for problem, holds in right.items() if not holds]


def _read(path: Path) -> dict[str, Any]:
    again = "Fetch or save the folder again."
    try:
        if path.stat().st_size > _LARGEST:
            raise StorageError(f"'{path}' has more than {_LARGEST} bytes.", mend=again)
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise StorageError(f"'{path}' cannot be read as JSON: {fault}.", mend=again) from fault
    if not isinstance(content, dict):
        raise StorageError(f"'{path}' holds no JSON object.", mend=again)
    return content


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.50} is no text")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.50} is no list")
    return value


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(one) for one in _list(value))


def _size(value: Any) -> tuple[int, int, int]:
    channels, height, width = _list(value)
    return int(channels), int(height), int(width)
