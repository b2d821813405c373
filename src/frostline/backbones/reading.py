"""Reading a weight file without trusting it: safetensors, or ``torch.load`` with ``weights_only=True``."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from frostline.errors import ConfigError, StorageError

PICKLED_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
WEIGHT_SUFFIXES = (".safetensors", *PICKLED_SUFFIXES)

# Where training programs put the tensors inside a checkpoint; averaged weights before the raw ones.
_NESTS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "teacher", "module", "backbone")

_UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def refuse_unsafe_environment() -> None:
    """Weights are not trusted, and this variable would make ``torch.load`` run the code in them.

    Raises:
        ConfigError: the variable is set; torch lets it override ``weights_only=True``.
    """
    if os.environ.get(_UNSAFE, "").lower() in {"1", "y", "yes", "true"}:
        raise ConfigError(
            f"The environment sets {_UNSAFE}, with which loading weights runs any code that the file holds.",
            mend=f"Unset it: env -u {_UNSAFE} frostline ...",
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name, on the CPU, taken out of a checkpoint's nesting.

    Args:
        path: a ``.safetensors`` file, or one that ``torch.save`` wrote.

    Raises:
        StorageError: the file is missing, damaged, holds more than plain data, or holds no tensors.
        ConfigError: the environment asks for unsafe loading.
    """
    refuse_unsafe_environment()
    if not path.is_file():
        raise StorageError(f"There is no weight file '{path}'.", mend="Check the path in backbone.weights.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    tensors = _tensors_within(content)
    if not tensors:
        held = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise StorageError(
            f"'{path}' holds no weights by name; it holds: {held}.",
            mend="Save the model's state_dict() and give that file.",
        )
    return tensors


def file_sha256(path: Path) -> str:
    """The hash of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, OSError, ValueError) as fault:
        raise _damaged(path, fault) from fault


def _read_pickled(path: Path) -> Any:
    try:
        # timm's own checkpoints keep their command line in a Namespace, which is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        if _looks_like_pickle(path):
            raise StorageError(
                f"'{path}' holds more than tensors{_foreign_types(path)} and is not opened: that could run code.",
                mend="Where you trust it, save its state_dict() with safetensors.torch.save_file and give that file.",
            ) from fault
        raise _damaged(path, fault) from fault
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as fault:
        raise _damaged(path, fault) from fault


def _looks_like_pickle(path: Path) -> bool:
    """True for the two formats that ``torch.save`` writes: a zip archive, or a bare pickle of protocol 2 and up."""
    with path.open("rb") as stream:
        start = stream.read(4)
    return start == b"PK\x03\x04" or start[:1] == b"\x80"


def _foreign_types(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the file is not trusted; naming its types is a courtesy and must not fail the message
        return ""
    return f" ({', '.join(sorted(names)[:5])})" if names else ""


def _damaged(path: Path, fault: Exception) -> StorageError:
    reason = str(fault).strip().splitlines()
    return StorageError(
        f"'{path}' cannot be read as weights: {reason[0] if reason else type(fault).__name__}",
        mend="The file is damaged or of another kind; fetch or save it again.",
    )


def _tensors_within(content: Any) -> dict[str, Tensor]:
    """The named tensors of ``content``, or of the first part of it that training programs keep them in."""
    while isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        nest = next((name for name in _NESTS if isinstance(content.get(name), Mapping)), None)
        if tensors or nest is None:
            return tensors
        content = content[nest]
    return {}
