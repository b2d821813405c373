"""From overrides to a checked config, without importing torch; every fault is reported at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from frostline.config.checking import faults_of
from frostline.config.schema import COMMANDS, conf_folder, register
from frostline.errors import ConfigError, suggestion
from frostline.specs import PretrainSpec, TrainSpec

QUOTING = (
    "A value with '=', spaces, commas, parentheses or letters outside ASCII needs quotes of its own, inside the "
    "shell's: 'data.root=\"/data/my set (1)\"'"
)


@contextmanager
def hydra_session(config_dirs: Sequence[str | Path] = ()) -> Iterator[Hydra]:
    """Hydra over our ``conf/`` and the user's folders, leaving any Hydra of the calling program as it was.

    Raises:
        ConfigError: one of ``config_dirs`` is not a folder.
    """
    register()
    search_path = create_config_search_path(str(conf_folder()))
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise ConfigError(f"--config-dir '{folder}' is not a folder", mend="Name an existing folder of configs.")
        # ahead of ours, so that a user's file of the same name is the one taken
        search_path.prepend("command-line", f"file://{Path(folder).absolute()}")
    # these two alone, and not Singleton's state: that copies every config and looks for plugins anew each time
    current, its_config = GlobalHydra.instance(), HydraConfig.instance()
    outer, outer_config = current.hydra, its_config.cfg
    current.clear()
    try:
        yield Hydra.create_main_hydra2(task_name="frostline", config_search_path=search_path)
    finally:
        current.hydra, its_config.cfg = outer, outer_config


def compose(command: str, overrides: Sequence[str] = (), config_dirs: Sequence[str | Path] = ()) -> DictConfig:
    """The config of ``command``, checked.

    Args:
        command: ``train``, ``inspect``, ``evaluate``, ``predict`` or ``pretrain``.
        overrides: as on the command line: ``["freeze=linear_probe", "optimizer.lr=1e-4"]``.
        config_dirs: folders of the user's own configs, searched before ours.

    Raises:
        ConfigError: with every fault found.
    """
    if command not in COMMANDS:
        raise ConfigError(f"There is no command '{command}'", mend=suggestion(command, COMMANDS))
    with hydra_session(config_dirs) as hydra:
        return compose_job(hydra, command, overrides)


def compose_job(hydra: Hydra, command: str, overrides: Sequence[str], *, complete: bool = True) -> DictConfig:
    """As ``compose``, within a session. With ``complete`` False, missing values are not faults yet."""
    parsed, faults = parse(hydra, overrides)
    faults += [_sweep_fault(override) for override in parsed if override.is_sweep_override()]
    faults += _group_faults(hydra, command, parsed)
    if not faults:
        try:
            config = _compose_raw(hydra, command, overrides)
        except (HydraException, OmegaConfBaseException):
            faults += _value_faults(hydra, command, parsed)
            if not faults:
                raise
        else:
            faults += faults_of(config, complete=complete)
            if not faults:
                return config
    raise ConfigError.of(faults)


def override_saved(hydra: Hydra, command: str, saved: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A saved config of ``train`` or ``pretrain`` with single keys changed, checked like a composed one.

    Raises:
        ConfigError: with every fault found; a whole group cannot be chosen anew.
    """
    parsed, faults = parse(hydra, overrides)
    schema = TrainSpec if command == "train" else PretrainSpec
    try:
        config = OmegaConf.merge(OmegaConf.structured(schema), saved)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"The config of the run is none of this Frostline: {reason}") from error
    assert isinstance(config, DictConfig)
    OmegaConf.set_struct(config, True)
    for override in parsed:
        if override.is_sweep_override():
            faults.append(_sweep_fault(override))
        elif _is_group(hydra, override):
            mend = f"Change its keys one by one: {override.key_or_group}.KEY=VALUE."
            faults.append(
                ConfigError(f"'{_text(override)}': a resumed run keeps its {override.key_or_group}", mend=mend)
            )
        else:
            try:
                ConfigLoaderImpl._apply_overrides_to_config([override], config)
            except (HydraException, OmegaConfBaseException) as error:
                faults.append(_value_fault(override, error, config, hydra))
    faults = faults or faults_of(config)
    if faults:
        raise ConfigError.of(faults)
    return config


def parse(hydra: Hydra, overrides: Sequence[str]) -> tuple[list[Override], list[ConfigError]]:
    """Each override by itself, so that one that does not parse does not hide the next."""
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    parsed: list[Override] = []
    faults: list[ConfigError] = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            form = "" if "=" in text else " An override is KEY=VALUE."
            faults.append(ConfigError(f"'{text}' is not an override: {_reason(error)}", mend=QUOTING + form))
    return parsed, faults


def _reason(error: Exception) -> str:
    first = str(error).splitlines()[0]
    return first.split(": ", 1)[-1] if first.startswith("Error parsing override") else first


def _compose_raw(hydra: Hydra, command: str, overrides: Sequence[str]) -> DictConfig:
    config = hydra.compose_config(command, list(overrides), run_mode=RunMode.RUN, from_shell=False)
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    OmegaConf.set_struct(config, True)
    return config


def _sweep_fault(override: Override) -> ConfigError:
    return ConfigError(
        f"'{override.input_line}' has several values",
        mend=f"Add -m to run one job for each, or quote a list: '{override.key_or_group}=[a,b]'. {QUOTING}",
    )


def _text(override: Override) -> str:
    return override.input_line or ""


def _is_group(hydra: Hydra, override: Override) -> bool:
    return bool(group_options(hydra, override.key_or_group.lstrip("+~"), None))


def group_options(hydra: Hydra, group: str, kind: ObjectType | None = ObjectType.CONFIG) -> list[str]:
    """What there is to choose from in a group; empty where it is none.

    It asks the repository itself: the loader copies all of it for each question.
    """
    loader = hydra.config_loader
    assert isinstance(loader, ConfigLoaderImpl)
    return loader.repository.get_group_options(group, kind)


def _group_faults(hydra: Hydra, command: str, parsed: Sequence[Override]) -> list[ConfigError]:
    faults = []
    for override in parsed:
        if override.is_delete() or not _is_group(hydra, override):
            continue
        group = override.key_or_group
        if override.value() is None and group != "experiment":
            faults.append(ConfigError(f"{group}=null: a part cannot be left out", mend=f"Choose a {group}."))
            continue
        options = [option for option in group_options(hydra, group) if option != "schema"]
        chosen = override.value()
        for name in chosen if isinstance(chosen, list) else [chosen]:
            if isinstance(name, str) and name not in options and not override.is_sweep_override():
                faults.append(
                    ConfigError(f"{group}={name}: there is no such {group}", mend=suggestion(name, options)),
                )
    return faults


def _value_faults(hydra: Hydra, command: str, parsed: Sequence[Override]) -> list[ConfigError]:
    """Applies each value override alone on top of the chosen groups, to find all that fail."""
    groups = [_text(override) for override in parsed if _is_group(hydra, override)]
    base = _compose_raw(hydra, command, groups)
    faults = []
    for override in parsed:
        if _text(override) in groups:
            continue
        try:
            ConfigLoaderImpl._apply_overrides_to_config([override], copy.deepcopy(base))
        except (HydraException, OmegaConfBaseException) as error:
            faults.append(_value_fault(override, error, base, hydra))
    return faults


def _value_fault(override: Override, error: Exception, base: DictConfig, hydra: Hydra) -> ConfigError:
    key = override.key_or_group
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) and error.__cause__ else error
    if str(error).startswith("Could not override"):
        parent, wrong, options = _first_unknown(base, key)
        if not parent:
            options += group_options(hydra, "")
        shown = f"{parent}.{wrong}" if parent else wrong
        return ConfigError(
            f"'{override.input_line}': there is no key '{shown}'",
            mend=f"{suggestion(wrong, options, known_as='keys')} (+{override.input_line} adds a new one.)",
        )
    reason = str(cause).splitlines()[0]
    return ConfigError(f"'{override.input_line}': {reason}")


def _first_unknown(config: DictConfig, key: str) -> tuple[str, str, list[str]]:
    """The path that exists, the first part of ``key`` that does not, and the names that stand beside it."""
    node: Any = config
    known: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            names = [str(name) for name in node] if isinstance(node, DictConfig) else []
            return ".".join(known), part, names
        node = node._get_node(part)
        known.append(part)
    return ".".join(known[:-1]), known[-1], []
