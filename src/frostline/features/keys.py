"""What features are a function of, as hashes: where any of it is another, so is the key."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.resources
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from frostline.features.boundary import Boundary
from frostline.features.code import code_of
from frostline.features.cutting import Cut

FORMAT = 2
"""Of what is stored; another one makes all keys others."""

PACKAGES = ("torch", "timm", "torchvision", "pillow")
# what of Frostline's own stands between a stored picture and a feature
SOURCES = (
    "data/augmentation.py",
    "data/base.py",
    "data/decoded.py",
    "data/decoding.py",
    "data/frames.py",
    "data/geometry.py",
    "data/loading.py",
    "data/randomness.py",
    "data/scaling.py",
    "data/transforms.py",
    "features/boundary.py",
    "features/computing.py",
    "features/cutting.py",
    "features/engine.py",
    "features/engine_ways.py",
    "features/known.py",
    "features/tracing.py",
    "probing/choices.py",
)
_DIGITS = 40  # of each half of a key: 160 bits
_NOT_OF_THE_BODY = {"training", "num_classes"}


def body_hash(model: nn.Module, boundary: Boundary | Cut) -> str:
    """SHA-256 of all of a model that is below a cut: modules and their settings, parameters and buffers by their bytes.

    Two models of one hash make the same features of a picture. Buffers that are not saved count too, and so does the
    code of a person's own modules.
    """
    digest = hashlib.sha256()
    below = [(name, module) for name, module in model.named_modules() if boundary.below(name)]
    for line in code_of([module for _, module in below]):
        digest.update(line.encode() + b"\0")
    if any(_is_adapted(module) for _, module in below):
        digest.update(f"peft {sys.modules['peft'].__version__}\0".encode())
    for name, module in below:
        settings = json.dumps([name, type(module).__qualname__, dict(_settings(module))], default=repr)
        digest.update(settings.encode())
    idle = set(_idle(model))
    for name, tensor in body_tensors(model, boundary):
        if name in idle:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(_bytes(tensor).data)
    return digest.hexdigest()


def body_tensors(model: nn.Module, boundary: Boundary | Cut) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers below the boundary, by name."""
    # one that two modules share counts as a part of each: the first may be above
    parameters, buffers = (named(remove_duplicate=False) for named in (model.named_parameters, model.named_buffers))
    for name, tensor in (*parameters, *buffers):
        if boundary.below(name):
            yield name, tensor


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module was told beside its parameters and buffers: a number of heads, a kind of pooling, a table."""
    yield "", module.extra_repr()
    if _is_adapted(module):
        yield "active", [getattr(module, name, None) for name in ("disable_adapters", "active_adapters")]
    for name, value in sorted(vars(module).items()):
        if not name.startswith("_") and name not in _NOT_OF_THE_BODY:
            # an adapter has its scale and the like by the name of the adapter
            if _is_plain(value) or (_is_adapted(module) and isinstance(value, dict) and _is_plain([*value.values()])):
                yield name, repr(value)
            elif isinstance(value, Tensor) and value.layout is torch.strided:
                yield name, [str(value.dtype), list(value.shape), hashlib.sha256(_bytes(value).data).hexdigest()]
            elif callable(value) and hasattr(value, "__qualname__"):
                yield name, f"{value.__module__}.{value.__qualname__}"
            elif isinstance(value, functools.partial) and hasattr(value.func, "__qualname__"):
                plain = {key: repr(kept) for key, kept in value.keywords.items() if _is_plain(kept)}
                yield name, [f"{value.func.__module__}.{value.func.__qualname__}", plain]


def _is_adapted(module: nn.Module) -> bool:
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)


def _idle(model: nn.Module) -> Iterator[str]:
    """The first matrices of adapters whose second ones are zero: drawn anew by each seed, and without effect as yet."""
    for path, module in model.named_modules():
        plain = type(module).__module__ == "peft.tuners.lora.layer" and not getattr(module, "lora_variant", None)
        second = getattr(module, "lora_B", None) if plain else None
        for adapter, matrix in second.items() if isinstance(second, nn.ModuleDict) else ():
            if not any(tensor.any() for tensor in matrix.parameters()):
                yield f"{path}.lora_A.{adapter}.weight"


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, str | int | float | bool | torch.dtype | torch.Size)


def _bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    content: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return content


def feature_key(content: Mapping[str, Any], pictures: str) -> str:
    """The key of the features of some pictures: their kin, a hyphen, and which pictures they are of.

    Features of one kin are made in one way: rows of one picture are the same.

    Args:
        content: all that makes a picture's features beside the picture, as plain types; the versions of what computes
            are added.
        pictures: a hash of them, in their order, in hexadecimal digits.
    """
    everything = {**content, "format": FORMAT, "packages": _versions(), "sources": _sources()}
    kin = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    return f"{kin[:_DIGITS]}-{pictures[:_DIGITS]}"


def kin_of(key: str) -> str:
    """What the keys of one kin begin with."""
    return key[: _DIGITS + 1]


def arithmetic(device: torch.device) -> dict[str, Any]:
    """The settings of torch that change how numbers round."""
    return {
        "device": device.type,
        "matmul": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cudnn.allow_tf32 if device.type == "cuda" else None,
    }


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def _sources() -> str:
    package = Path(str(importlib.resources.files("frostline")))
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((package / name).read_bytes() + b"\0")
    return digest.hexdigest()
