"""A config as a file: paths absolute, everything resolved except references to the environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # ships no types
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from frostline.config.schema import register_resolvers
from frostline.errors import ConfigError

PATH_KEYS = (
    "output",
    "run",
    "images",
    "data.root",
    "data.table",
    "data.exclude",
    "data.split_file",
    "audit.exclude",
    "root",
)
PREFIXED_PATH_KEYS = ("backbone.name",)
MAYBE_PATH_KEYS = ("backbone.weights",)
_LARGEST = 1_000_000  # bytes


def absolute_paths(config: DictConfig) -> None:
    """Make the paths in ``config`` absolute, in place, against the working directory."""
    for key in PATH_KEYS:
        _change(config, key, _absolute if key != "data.root" else _absolute_unless_on_hub(config))
    for key in PREFIXED_PATH_KEYS:
        _change(config, key, _absolute_local_dir)
    for key in MAYBE_PATH_KEYS:
        _change(config, key, lambda value: _absolute(value) if Path(value).expanduser().exists() else value)


def _change(config: DictConfig, key: str, change: Callable[[str], str]) -> None:
    parent_key, _, name = key.rpartition(".")
    parent = OmegaConf.select(config, parent_key) if parent_key else config
    if not isinstance(parent, DictConfig) or name not in parent or OmegaConf.is_missing(parent, name):
        return
    # an interpolation stays as it is: resolving it here could write a secret
    if not OmegaConf.is_interpolation(parent, name) and isinstance(parent[name], str):
        parent[name] = change(parent[name])


def _absolute(value: str) -> str:
    return os.path.abspath(os.path.expanduser(value))


def _absolute_unless_on_hub(config: DictConfig) -> Callable[[str], str]:
    # ORG/NAME of a data set on the hub looks like a path, and is one only where there is such a folder
    target = str(OmegaConf.select(config, "data._target_", default=""))
    on_hub = target.endswith(".HuggingFaceData")
    return lambda value: value if on_hub and not Path(value).expanduser().exists() else _absolute(value)


def _absolute_local_dir(value: str) -> str:
    scheme, colon, path = value.partition(":")
    return f"{scheme}:{_absolute(path)}" if colon and scheme == "local-dir" else value


def save_config(config: DictConfig, path: Path) -> None:
    """Write ``config`` as YAML, resolved except for what comes from ``${oc.env:...}``, so that no secret is saved."""
    OmegaConf.register_new_resolver("oc.env", _environment_reference, replace=True)
    try:
        plain = _resolved(config)
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(plain)), encoding="utf-8")


def _environment_reference(name: str, *default: Any) -> str:
    return "${oc.env:" + ",".join([name, *map(_literal, default)]) + "}"


def _literal(value: Any) -> str:
    if value is None:
        return "null"
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _resolved(node: Any) -> Any:
    if isinstance(node, ListConfig):
        return [_value(node, index) for index in range(len(node))]
    return {str(key): _value(node, key) for key in node}


def _value(node: Any, key: Any) -> Any:
    if OmegaConf.is_missing(node, key):
        return "???"
    try:
        value = node[key]
    except OmegaConfBaseException:
        # a typed key (an integer, say) that the environment fills
        return node._get_node(key)._value()
    if isinstance(value, DictConfig | ListConfig):
        return _resolved(value)
    return value.name if isinstance(value, Enum) else value


def load_config(path: Path) -> DictConfig:
    """Read a saved config.

    Raises:
        ConfigError: the file is absent or is no config.
    """
    register_resolvers()
    if not path.is_file():
        raise ConfigError(f"{path} is missing, so {path.parent} is no run", mend="Name the folder of a run.")
    if path.stat().st_size > _LARGEST:
        raise ConfigError(f"{path} cannot be read: no config has more than {_LARGEST} bytes")
    try:
        text = path.read_text(encoding="utf-8")
        if "*" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            # each is copied where it stands, and a few lines of them fill the memory
            raise ValueError("it has an alias (*name), which no saved config has")
        config = OmegaConf.load(path)
    except Exception as error:  # yaml raises several kinds
        raise ConfigError(f"{path} cannot be read: {str(error)[:500]}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} is no config: it holds a list")
    return config


def flat(config: DictConfig) -> dict[str, Any]:
    """Dotted key to leaf, references left as they are."""
    found: dict[str, Any] = {}

    def visit(node: Any, path: str) -> None:
        if isinstance(node, dict) and node:
            for key, child in node.items():
                visit(child, f"{path}.{key}" if path else str(key))
        else:
            found[path] = node

    visit(OmegaConf.to_container(config, resolve=False, enum_to_str=True), "")
    return found
