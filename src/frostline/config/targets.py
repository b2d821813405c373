"""One pass over every ``_target_`` of a config, before anything is built: allowed, importable, arguments bind."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import _locate
from omegaconf import DictConfig, ListConfig, OmegaConf

from frostline.config.schema import conf_folder
from frostline.errors import ConfigError, suggestion

_TARGET_LINE = re.compile(r"^\s*(?:-\s*)?_target_:\s*['\"]?([\w.]+)", re.MULTILINE)
_HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}


def trusted_targets(config_dirs: Sequence[str | Path] = ()) -> frozenset[str]:
    """Every ``_target_`` that our own ``conf/`` and the user's folders name."""
    folders = [conf_folder(), *map(Path, config_dirs)]
    files = [file for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    return frozenset(name for file in files for name in _TARGET_LINE.findall(file.read_text(encoding="utf-8")))


def check_targets(
    config: DictConfig, *, allowed: frozenset[str] | None = None, trust: Sequence[str] = (), supplied: Any = None
) -> None:
    """Refuse a config whose targets cannot be built, naming every fault at once.

    Args:
        config: the whole tree.
        allowed: the only targets that may appear (for a config that is not the user's own); None allows all.
        trust: import prefixes allowed beside them.
        supplied: per top-level key, the arguments that the program adds when it builds the node.

    Raises:
        ConfigError: listing all faults.
    """
    faults = []
    for path, node in _targets(config, ""):
        name = str(node["_target_"])
        if allowed is not None and name not in allowed and not any(_within(name, prefix) for prefix in trust):
            faults.append(
                ConfigError(
                    f"{path}._target_={name} is not one of Frostline's own or your --config-dir's",
                    mend=f"If you trust it: trust='[{name.rpartition('.')[0]}]'",
                )
            )
            continue
        extra = (supplied or {}).get(path.split(".")[0], ())
        faults += _target_faults(path, name, node, extra)
    if faults:
        raise ConfigError.of(faults)


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


def _targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig) and "_target_" in node:
        yield path, node
    if isinstance(node, DictConfig | ListConfig):
        for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
            child = None if OmegaConf.is_missing(node, key) else node[key]
            yield from _targets(child, f"{path}.{key}" if path else str(key))


def _target_faults(path: str, name: str, node: DictConfig, extra: Sequence[str]) -> list[ConfigError]:
    try:
        target = _locate(name)
    except Exception as error:  # importing runs the module, which may raise anything
        reason = " ".join(str(error).splitlines()[:2])
        return [ConfigError(f"{path}._target_={name} cannot be imported: {reason}")]
    if not callable(target):
        return [ConfigError(f"{path}._target_={name} is not a class or a function")]
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return []
    given = [str(key) for key in node if str(key) not in _HYDRA_KEYS]
    parameters = signature.parameters.values()
    faults = []
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        faults += [
            ConfigError(f"{path}.{key}: {name} takes no such argument", mend=suggestion(key, signature.parameters))
            for key in given
            if key not in signature.parameters
        ]
    if not node.get("_partial_") and "_args_" not in node:
        needed = [
            p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        faults += [
            ConfigError(f"{path} ({name}) lacks '{need}'", mend=f"Add {path}.{need}=VALUE.")
            for need in needed
            if need not in given and need not in extra
        ]
    return faults
