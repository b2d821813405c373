"""What makes two runs the same: the config without what does not change the result, the data, and the code.

The config, the code and the weights that a run starts from are known before it starts and lie in ``identity.json``.
The fingerprint of its data is in ``provenance.json`` once the data was loaded.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib.metadata
import importlib.resources
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from frostline.config import conf_folder, load_config, save_config
from frostline.errors import ConfigError
from frostline.runs.folder import RunFolder, read_json, write_json

LEFT_OUT = (
    *("folder", "output", "name", "debug", "run", "resume", "rerun", "trust", "config_dirs", "logger", "paper"),
    "report",
)
"""Keys that do not change the result; ``data.workers`` and ``speed.keep_memory`` are others."""

PACKAGES = ("torch", "timm", "lightning", "peft")
WEIGHT_FILES = ("*.safetensors", "*.pth", "*.pt", "*.bin", "config.json")

_HERE = "<folder>"


def config_hash(config: DictConfig) -> str:
    """SHA-256 of what a config says of the result, as 64 hexadecimal digits; the same before and after it was saved.

    Args:
        config: with absolute paths; references to the environment count as written.
    """
    content = _plain(config)
    for key in LEFT_OUT:
        content.pop(key, None)
    for node, key in (("data", "workers"), ("speed", "keep_memory")):
        if isinstance(content.get(node), dict):
            content[node].pop(key, None)
    if "test" in content:
        content["test"] = content["test"] is not False
    text = json.dumps(content, sort_keys=True, default=str)
    # a saved config names its folder where the unsaved one refers to it
    own = json.dumps(str(config.get("folder") or _HERE))[1:-1]
    return hashlib.sha256(text.replace(own, _HERE).encode()).hexdigest()


def _plain(config: DictConfig) -> dict[str, Any]:
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    config.folder = _HERE
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        save_config(config, path)
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


@functools.cache
def code_version() -> str:
    """SHA-256 over Frostline's own code and conf and the versions of torch, timm and lightning.

    A person's own modules, which a ``_target_`` may name, are not looked at.
    """
    digest = hashlib.sha256()
    package = Path(str(importlib.resources.files("frostline")))
    for root, pattern in ((package, "*.py"), (conf_folder(), "*.yaml")):
        for file in sorted(root.rglob(pattern)):
            digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    for name in PACKAGES:
        # peft is an extra
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{name} {importlib.metadata.version(name)}\0".encode())
    return digest.hexdigest()


def weights_hash(config: DictConfig) -> str:
    """SHA-256 over the local files that the backbone is made from; empty where there are none."""
    digest = hashlib.sha256()
    found = False
    for key in ("backbone.name", "backbone.weights"):
        named = OmegaConf.select(config, key, default=None)
        for file in _weight_files(str(named or "").removeprefix("local-dir:")):
            found = True
            status = file.stat()
            digest.update(f"{file.name} {_file_hash(file, status.st_size, status.st_mtime_ns)}\0".encode())
    return digest.hexdigest() if found else ""


def _weight_files(named: str) -> list[Path]:
    path = Path(named).expanduser()
    if not named or not path.is_absolute() or not path.exists():
        return []
    if path.is_file():
        return [path]
    # a timm folder, or a run that holds one
    folder = path / "model" if (path / "model").is_dir() else path
    return sorted({file for pattern in WEIGHT_FILES for file in folder.glob(pattern)})


@functools.lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity_of(config: DictConfig) -> dict[str, str]:
    """What is known of a run's identity before it starts."""
    return {"config": config_hash(config), "code": code_version(), "weights": weights_hash(config)}


def write_identity(folder: RunFolder, config: DictConfig, overrides: Sequence[str]) -> None:
    """Write ``identity.json``, by which a later sweep finds this run; ``overrides`` say what its config was made of."""
    write_json(folder.identity, {**identity_of(config), "made": time.time_ns(), "overrides": list(overrides)})


def find_earlier(experiment: Path, config: DictConfig) -> list[RunFolder]:
    """The runs of an experiment that were asked for the same with the same code, newest first, finished or not.

    Args:
        experiment: its folder; runs lie in it and in the folders of its sweeps.
        config: of the run that is asked for now, with absolute paths.
    """
    wanted = identity_of(config)
    found = []
    for path in _identities(experiment):
        record = read_json(path)
        if all(record.get(key) == value for key, value in wanted.items()):
            found.append((int(record.get("made", 0)), RunFolder(path.parent)))
    found.sort(key=lambda item: item[0], reverse=True)
    return [folder for _, folder in found if _is_still(folder, wanted["config"])]


def _identities(experiment: Path) -> Iterator[Path]:
    yield from experiment.glob("*/identity.json")
    yield from experiment.glob("*-sweep-*/*/identity.json")


def _is_still(folder: RunFolder, wanted: str) -> bool:
    """Whether the config is the one that the run began with: one that was resumed may have got more epochs."""
    try:
        return config_hash(load_config(folder.config)) == wanted
    except ConfigError:
        return False


def recorded_fingerprint(folder: RunFolder) -> str | None:
    """The fingerprint of the data that a run was trained on; None where it had not come to load it."""
    value = read_json(folder.provenance).get("data_fingerprint")
    return None if value is None else str(value)


def recorded_splits(folder: RunFolder) -> dict[str, str]:
    """The fingerprint of each split of the data that a run was trained on, as far as they were written down."""
    data = read_json(folder.provenance).get("data")
    splits = data.get("splits") if isinstance(data, dict) else None
    found = splits.items() if isinstance(splits, dict) else ()
    return {
        name: str(split["fingerprint"]) for name, split in found if isinstance(split, dict) and "fingerprint" in split
    }


def recorded_division(folder: RunFolder) -> dict[str, int]:
    """How many pictures each split of a run had, as far as that was written down."""
    data = read_json(folder.provenance).get("data")
    splits = data.get("splits") if isinstance(data, dict) else None
    found = splits.items() if isinstance(splits, dict) else ()
    return {name: int(split["pictures"]) for name, split in found if isinstance(split, dict) and "pictures" in split}


def recorded_overrides(folder: RunFolder) -> tuple[str, ...]:
    """What was typed for a run; empty where it was made from Python, or by an older Frostline."""
    found = read_json(folder.identity).get("overrides")
    return tuple(map(str, found)) if isinstance(found, list) else ()
