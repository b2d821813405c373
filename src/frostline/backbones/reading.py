"""Reading a weight file without trusting it: safetensors, or ``torch.load`` with ``weights_only=True``."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickletools
import tarfile
import zipfile
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

_DEEPEST = 10

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
        held = ", ".join(map(_shown, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise StorageError(
            f"'{path}' holds no weights by name; it holds: {held}.",
            mend="Save the model's state_dict() and give that file.",
        )
    _check_tensors(path, tensors)
    return tensors


def file_sha256(path: Path) -> str:
    """The hash of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(safetensors.torch.load_file(path))
    except Exception as fault:  # the file is not trusted, and a lie in it may come out as any error
        raise _damaged(path, fault) from fault


def _read_pickled(path: Path) -> Any:
    _check_archive(path)
    try:
        # timm's own checkpoints keep their command line in a Namespace, which is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # the file is not trusted, and a damaged one fails in any way
        # torch says so of pickles with code, of old .tar files and of TorchScript, and advises to load them unsafely
        if "weights_only" in str(fault) and not _is_noise(path):
            raise StorageError(
                f"'{path}' holds more than tensors{_foreign_types(path)} and is not opened: that could run code.",
                mend="Where you trust it, save its state_dict() with safetensors.torch.save_file and give that file.",
            ) from fault
        raise _damaged(path, fault) from fault


def _check_archive(path: Path) -> None:
    """Refuse compressed or shared entries, which ``torch.save`` never writes: a small file would fill the memory."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as fault:
        raise _damaged(path, fault) from fault
    unpacked = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or unpacked > path.stat().st_size:
        raise StorageError(
            f"'{path}' is compressed: it would unpack to {unpacked} bytes, which torch.save does not write.",
            mend="Fetch or save the file again.",
        )


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are no weights: larger than their file, without values, or with a name that is no text."""
    size = path.stat().st_size
    for name, tensor in tensors.items():
        dense = tensor.layout is torch.strided and not tensor.is_meta
        if not (dense and name.isprintable() and tensor.numel() * tensor.element_size() <= size):
            raise StorageError(
                f"'{path}' holds the tensor {_shown(name)}, of shape {tuple(tensor.shape)}, which is no weight.",
                mend="Save the model's state_dict() and give that file.",
            )


def _is_noise(path: Path) -> bool:
    """Whether a file is neither of the formats that ``torch.save`` ever wrote, nor any other pickle."""
    with path.open("rb") as stream:
        start = stream.read(4)
    if start == b"PK\x03\x04" or start[:1] == b"\x80" or tarfile.is_tarfile(path):
        return False
    try:
        with path.open("rb") as stream:
            # reads opcodes and runs none
            return not any(opcode.name in ("GLOBAL", "INST", "REDUCE") for opcode, _, _ in pickletools.genops(stream))
    except Exception:  # nor does this have to be a pickle
        return True


def _shown(name: Any) -> str:
    text = str(name)[:100]
    return text if text.isprintable() else repr(text)


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
    # a pickle can hold itself, so the search has an end
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            break
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        nest = next((name for name in _NESTS if isinstance(content.get(name), Mapping)), None)
        if tensors or nest is None:
            return tensors
        content = content[nest]
    return {}
