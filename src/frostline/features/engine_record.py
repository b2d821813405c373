"""How fast each way to run a frozen part was on this machine: kept by all that it depends on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frostline.features.engine_ways import PLAIN
from frostline.writing import write_text

FORMAT = 1
MARGIN = 1.05  # what another way has to be faster by


@dataclass(frozen=True)
class Record:
    """What was measured.

    Attributes:
        rates: pictures a second by the name of a way, the plain one among them; 0 of one that cannot be had.
        ready: seconds that making a way ready took; 0 where nothing is said.
    """

    rates: Mapping[str, float]
    ready: Mapping[str, float] = field(default_factory=dict)

    def best(self, pictures: int, among: list[str]) -> str:
        """The way by which a pass ends first, with what it takes to make it ready; the plain one if none is clearly so.

        Args:
            pictures: of the pass.
            among: names of ways that may be taken.
        """
        seconds = {
            name: pictures / self.rates[name] + self.ready.get(name, 0.0)
            for name in among
            if self.rates.get(name, 0.0) > 0
        }
        first = min(seconds, key=lambda name: seconds[name], default=PLAIN)
        plain = pictures / self.rates[PLAIN]
        return first if first in seconds and seconds[first] * MARGIN < plain else PLAIN

    def sentence(self, chosen: str) -> str:
        """The rate of what was chosen, then those of the others."""
        others = sorted((name for name in self.rates if name != chosen), key=lambda name: -self.rates[name])
        return ", ".join([f"{chosen} {self._rate(chosen)}", *(f"{name} {self._rate(name)}" for name in others)])

    def _rate(self, name: str) -> str:
        return f"{self.rates[name]:.3g}/s" if self.rates[name] else "not possible"


def record_key(part: nn.Module, images: Tensor, *, autocast: bool) -> str:
    """SHA-256 of what rates depend on: the architecture, the input, how it is computed, the machine and torch.

    Args:
        part: whose tensors count by their shapes, not by their numbers.
        images: ``[B, C, H, W]`` a batch, of which the shape, dtype and memory format count.
        autocast: whether it is computed under autocast.
    """
    modules = [[name, type(module).__qualname__, module.extra_repr()] for name, module in part.named_modules()]
    tensors = [
        [name, list(tensor.shape), list(tensor.stride()), str(tensor.dtype)]
        for name, tensor in (*part.named_parameters(), *part.named_buffers())
    ]
    content: dict[str, Any] = {
        "format": FORMAT,
        "modules": modules,
        "tensors": tensors,
        "input": [list(images.shape), list(images.stride()), str(images.dtype)],
        "autocast": str(torch.get_autocast_dtype(images.device.type)) if autocast else None,
        "matmul": torch.get_float32_matmul_precision(),
        "device": _device_name(images.device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "compiler": shutil.which(os.environ.get("CXX", "g++")),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags"))]
    return " ".join([device.type, platform.machine(), *(names[:2] or [platform.processor()])])


def read_record(path: Path) -> Record | None:
    """What was measured before; None where there is none, or one that cannot be understood."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        record = Record(_numbers(found["rates"]), _numbers(found["ready"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if record.rates.get(PLAIN, 0.0) > 0 else None


def _numbers(content: Any) -> dict[str, float]:
    numbers = {str(name): float(value) for name, value in content.items()}
    if not all(math.isfinite(value) and value >= 0 for value in numbers.values()):
        raise ValueError("a number that no clock gives")
    return numbers


def write_record(path: Path, record: Record) -> None:
    """Keep it; whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, json.dumps({"rates": dict(record.rates), "ready": dict(record.ready)}, indent=1) + "\n")
