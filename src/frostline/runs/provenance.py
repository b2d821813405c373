"""Where a result comes from: code, packages, hardware, data, weights."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "frostline",
    "torch",
    "torchvision",
    "lightning",
    "timm",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "pillow",
    "numpy",
)


def provenance(*, command: str, seed: int, data: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """What a run should say of itself, as plain JSON types.

    Args:
        command: ``train`` or ``pretrain``.
        seed: of the run.
        data: see `frostline.data.fingerprint.data_record`.
        weights: where they come from.
    """
    return {
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "code": code_revision(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)},
        "hardware": hardware(),
        "data": data,
        "data_fingerprint": data["fingerprint"],
        "weights": weights,
    }


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def code_revision() -> str | None:
    """The git revision of the checkout, with ``+dirty`` where it has changes; None for an installed wheel."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None
    try:
        revision = _git(here, "rev-parse", "HEAD")
        return revision + ("+dirty" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    line = ["git", "-C", str(folder), *arguments]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()


def hardware() -> dict[str, Any]:
    """Processor, core count and accelerators."""
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }
