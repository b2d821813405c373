"""In what the configs of several runs differ, in few and readable columns.

What makes two runs the same is their resolved config, whatever was typed. A config group that differs as a whole is
one column of option names, such as ``freeze``: the name that was typed, or the option whose values the run has. What
differs beyond that has a column for each key.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from frostline.config import conf_folder, flat, hydra_session
from frostline.errors import ConfigError, suggestion
from frostline.runs.identity import LEFT_OUT
from frostline.runs.sweep_means import AVERAGED

Config = Mapping[str, Any]
"""Dotted key to leaf, of a resolved config."""

# beside what makes no other run of it: where the same pictures lie, and what is done after training
_NO_SETTING = (
    *LEFT_OUT,
    "test",
    "data.workers",
    "speed.keep_memory",
    "data.root",
    "data.table",
    "callbacks.checkpoint",
)
_HERE = "<folder>"
_ABSENT = "-"


def run_config(config: DictConfig) -> Config:
    """What a saved config says of the result, and what is averaged over; references stay as they are written."""
    own = str(config.get("folder") or _HERE)
    return {
        key: value.replace(own, _HERE) if isinstance(value, str) else value
        for key, value in flat(config).items()
        if not any(key == one or key.startswith(f"{one}.") for one in _NO_SETTING)
    }


def text_of(value: Any) -> str:
    """A leaf as it stands in a table."""
    if isinstance(value, float):
        return f"{value:g}"
    if value is None:
        return "null"
    return printable(str(value).lower() if isinstance(value, bool) else str(value))


def printable(text: str) -> str:
    """Text of someone else's config without what a terminal obeys."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def settings_of(
    configs: Sequence[Config],
    overrides: Sequence[Sequence[str]],
    *,
    by: Sequence[str] | None = None,
    config_dirs: Sequence[str] = (),
) -> tuple[list[str], list[tuple[str, ...]], list[tuple[str, ...]]]:
    """The columns, each run's cells in them, and in what else the runs of a row differ.

    Without ``by`` two runs have the same cells if and only if their configs differ in nothing but seeds and folds.

    Args:
        configs: see ``run_config``.
        overrides: what was typed for each run; empty where it is not known.
        by: groups and keys to be columns; None takes all in which the configs differ.
        config_dirs: folders with options of the user's own.

    Raises:
        ConfigError: ``by`` names no group and no key.
    """
    labels = _Labels(configs, overrides, config_dirs)
    found: dict[str, list[str]] = {}
    differing = {key.partition(".")[0] for key in _differing(configs)}
    for top in dict.fromkeys(key.partition(".")[0] for config in configs for key in config):
        found |= labels.columns(top) if top in differing else {}
    if by is None:
        return list(found), _rows(found, len(configs)), [()] * len(configs)
    chosen = {name: _asked_for(name, labels) for name in dict.fromkeys(by)}
    rows = _rows(chosen, len(configs))
    # what a row has one value of alone is no part of what its runs differ in
    pooled = {
        name: cells
        for name, cells in found.items()
        if name not in chosen and len(set(zip(rows, cells, strict=True))) > len(set(rows))
    }
    return list(chosen), rows, _rows(pooled, len(configs))


def _rows(columns: Mapping[str, Sequence[str]], count: int) -> list[tuple[str, ...]]:
    return [tuple(cells[index] for cells in columns.values()) for index in range(count)]


def _differing(configs: Sequence[Config]) -> list[str]:
    """The keys in which configs differ, but for what is averaged over."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if key not in AVERAGED and _varies(key, configs)]


def _varies(key: str, configs: Sequence[Config]) -> bool:
    # a repr tells 1 from True and from 1.0, and a list can be in it
    return len({repr(config[key]) if key in config else None for config in configs}) > 1


def _cells(key: str, configs: Sequence[Config]) -> list[str]:
    return [text_of(config[key]) if key in config else _ABSENT for config in configs]


def _asked_for(name: str, labels: _Labels) -> list[str]:
    if name in labels.options:
        return labels.of(name)
    if any(name in config for config in labels.configs):
        return _cells(name, labels.configs)
    known = dict.fromkeys([*labels.options, *(key for config in labels.configs for key in config)])
    mend = suggestion(name, known, known_as="groups and keys")
    raise ConfigError(f"by names '{name}', which is no group and no key of the runs", mend=mend)


class _Labels:
    """What the choices of config groups are called in some runs."""

    def __init__(
        self, configs: Sequence[Config], overrides: Sequence[Sequence[str]], config_dirs: Sequence[str]
    ) -> None:
        self.configs = configs
        self.overrides = overrides
        self.config_dirs = config_dirs
        self.options = _options([conf_folder(), *map(Path, config_dirs)])

    def columns(self, top: str) -> dict[str, list[str]]:
        """The columns of what differs under a key of the root."""
        keys = [key for key in _differing(self.configs) if key == top or key.startswith(f"{top}.")]
        if top not in self.options:
            return {key: _cells(key, self.configs) for key in keys}
        labels = self.of(top)
        found = {top: labels} if len(set(labels)) > 1 else {}
        for key in keys:
            of_one = [
                [config for config, own in zip(self.configs, labels, strict=True) if own == label]
                for label in dict.fromkeys(labels)
            ]
            if any(_varies(key, some) for some in of_one):
                found[key] = _cells(key, self.configs)
        return found

    def of(self, group: str) -> list[str]:
        """What each run's choice in a group is called; equal content has one name."""
        contents = [_part(config, group) for config in self.configs]
        typed = [_typed(group, own) for own in self.overrides]
        names: dict[str, str] = {}
        for content, name in zip(contents, typed, strict=True):
            if name is not None:
                names.setdefault(repr(content), name)
        if any(repr(content) not in names for content in contents):
            known = _load_options(group, tuple(self.options[group]), tuple(self.config_dirs))
            for content in contents:
                names.setdefault(repr(content), _matching(content, known) or _summary(group, content))
        return [text_of(names[repr(content)]) for content in contents]


def _options(folders: Sequence[Path]) -> dict[str, list[str]]:
    """The config groups and the names of their options."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.glob("*/*.yaml"):
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(names) for group, names in found.items()}


def _part(config: Config, group: str) -> dict[str, Any]:
    own = (key for key in config if key == group or key.startswith(f"{group}."))
    return {key: config[key] for key in own if key not in AVERAGED}


def _typed(group: str, overrides: Sequence[str]) -> str | None:
    found = None
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and key.lstrip("+/") == group and value.replace("_", "").replace("-", "").isalnum():
            found = value
    return found


@functools.cache
def _load_options(group: str, names: tuple[str, ...], config_dirs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The content of each option that can be loaded by itself."""
    found = {}
    with hydra_session(config_dirs) as hydra:
        for name in names:
            with contextlib.suppress(HydraException, OmegaConfBaseException):
                loaded = hydra.config_loader.load_configuration(f"{group}/{name}", [], run_mode=RunMode.RUN)
                found[name] = _part(run_config(loaded), group)
    return found


def _matching(content: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The option with these keys and these words in which the fewest numbers are others."""
    alike = {
        name: sum(repr(content[key]) != repr(option[key]) for key in option)
        for name, option in options.items()
        if content.keys() == option.keys() and all(_same_words(content[key], option[key]) for key in option)
    }
    return min(alike, key=alike.__getitem__, default=None)


def _same_words(value: Any, option: Any) -> bool:
    if isinstance(option, str) and ("${" in option or option == "???"):
        return True
    return value == option or not (isinstance(value, str) or isinstance(option, str))


def _summary(group: str, content: Mapping[str, Any]) -> str:
    """What an option of the user's own, or one that was changed, is called: by its phases, or by what it builds."""
    prefix = f"{group}.phases."
    phases = dict.fromkeys(key[len(prefix) :].partition(".")[0] for key in content if key.startswith(prefix))
    target = str(content.get(f"{group}._target_", "")).rpartition(".")[2]
    return " > ".join(phases) or target or "its own"
