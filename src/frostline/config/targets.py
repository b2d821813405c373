"""One pass over every ``_target_`` of a config, before anything is built: allowed, importable, arguments bind."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import _locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from frostline.config.schema import conf_folder
from frostline.errors import ConfigError, suggestion

_TARGET_LINE = re.compile(r"^\s*(?:-\s*)?_target_:\s*['\"]?([\w.]+)", re.MULTILINE)
_HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}
_NAME = re.compile(r"(?!__)\w+(?:\.(?!__)\w+)*")
# what a saved config holds, and what can only give a value: another key by its place, the environment, a path of ours
_REFERENCE = re.compile(r"\$\{(?:[\w.\[\]]+\}|(?:oc\.env|frostline\.weights):)")
_FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:[^${}]*\}")
_SHOWN = 200
# what our own conf/ named before: the runs of that time still do
_FORMER = frozenset({"lightning.pytorch.loggers.TensorBoardLogger"})


def trusted_targets(config_dirs: Sequence[str | Path] = ()) -> frozenset[str]:
    """Every ``_target_`` that our own ``conf/`` and the user's folders name, or that ours did once."""
    folders = [conf_folder(), *map(Path, config_dirs)]
    files = [file for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    named = frozenset(name for file in files for name in _TARGET_LINE.findall(file.read_text(encoding="utf-8")))
    return named | _FORMER


def targets_of(node: Any) -> list[str]:
    """Every ``_target_`` in a config; what refers to another key is found there."""
    if not isinstance(node, DictConfig | ListConfig):
        return []
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return []
    keys = range(len(node)) if isinstance(node, ListConfig) else list(node)
    own = [str(node["_target_"])] if isinstance(node, DictConfig) and "_target_" in node else []
    return own + [target for key in keys for target in targets_of(node._get_node(key))]


def check_trusted_names(config: DictConfig, allowed: frozenset[str], trust: Sequence[str] = ()) -> None:
    """Refuse a config that came with a run or a model unless all it names may run; imports nothing.

    Only what is written can be checked: a value may refer to another key, to ``${oc.env:...}`` and to
    ``${frostline.weights:...}``, but nothing may compute a node or a ``_target_``, since that could turn out
    otherwise later, when a key has changed.

    Args:
        config: the whole tree.
        allowed: the targets that may appear; see ``trusted_targets``.
        trust: import prefixes, or whole names, allowed beside them.

    Raises:
        ConfigError: listing all faults.
    """
    plain = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    faults = [
        fault for path, key, value in _values(plain, "") for fault in _trust_faults(path, key, value, allowed, trust)
    ]
    if faults:
        raise ConfigError.of(faults)


def check_targets(
    config: DictConfig, *, allowed: frozenset[str] | None = None, trust: Sequence[str] = (), supplied: Any = None
) -> None:
    """Refuse a config whose targets cannot be built, naming every fault at once.

    Args:
        config: the whole tree.
        allowed: the only targets that may appear (for a config that is not the user's own); None allows all. Where
            one may not, nothing is imported.
        trust: import prefixes, or whole names, allowed beside them.
        supplied: per top-level key, the arguments that the program adds when it builds the node.

    Raises:
        ConfigError: listing all faults.
    """
    if allowed is not None:
        check_trusted_names(config, allowed, trust)
    faults = []
    for path, node in _targets(config, ""):
        name = str(node["_target_"])
        extra = (supplied or {}).get(path.split(".")[0], ())
        by_prefix = allowed is not None and name not in allowed and name not in trust
        faults += _target_faults(path, name, node, extra, trust if by_prefix else None)
    if faults:
        raise ConfigError.of(faults)


def _values(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Every leaf below a plain node: the path of what holds it, its key, its value; references as they are written."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in children:
        if isinstance(value, dict | list) and key != "_target_":
            yield from _values(value, f"{path}.{key}" if path else str(key))
        else:
            yield path, str(key), value


def _trust_faults(
    path: str, key: str, value: Any, allowed: frozenset[str], trust: Sequence[str]
) -> Iterator[ConfigError]:
    where = _shown(f"{path}.{key}" if path else key)
    text = value if isinstance(value, str) else ""
    if text.count("${") != len(_REFERENCE.findall(text)):
        yield ConfigError(
            f"{where}={_shown(value)} computes its value, which the config of a run may not",
            mend="Write the value itself. ${oc.env:NAME} and ${other.key} may stay.",
        )
    elif key == "_target_":
        name = _from_environment(text) if _FROM_ENVIRONMENT.fullmatch(text) else value
        if not _may_run(name, allowed, trust):
            prefix = name.rpartition(".")[0] or name if isinstance(name, str) and _NAME.fullmatch(name) else None
            yield ConfigError(
                f"{where}={_shown(name)} is not one of Frostline's own or your --config-dir's",
                mend=f"If you trust it: trust='[{prefix}]'" if prefix else None,
            )


def _from_environment(reference: str) -> str | None:
    # the environment stays as it is between here and the building; another key need not
    try:
        return str(OmegaConf.create({"name": reference}).name)
    except OmegaConfBaseException:
        return None


def _may_run(name: Any, allowed: frozenset[str], trust: Sequence[str]) -> bool:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return False
    return name in allowed or any(_within(name, prefix) for prefix in trust)


def _shown(value: Any) -> str:
    """On one line, without what a terminal obeys, and not endless: the text is a stranger's."""
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


def _targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig) and "_target_" in node:
        yield path, node
    if isinstance(node, DictConfig | ListConfig):
        for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
            child = None if OmegaConf.is_missing(node, key) else node[key]
            yield from _targets(child, f"{path}.{key}" if path else str(key))


def _target_faults(
    path: str, name: str, node: DictConfig, extra: Sequence[str], trust: Sequence[str] | None
) -> list[ConfigError]:
    try:
        target = _locate(name)
    except Exception as error:  # importing runs the module, which may raise anything
        reason = " ".join(str(error).splitlines()[:2])
        return [ConfigError(f"{path}._target_={name} cannot be imported: {reason}")]
    if not callable(target):
        return [ConfigError(f"{path}._target_={name} is not a class or a function")]
    if trust is not None and not _at_home(target, trust):
        return [
            ConfigError(
                f"{path}._target_={name} is {_home(target)}, which lies outside what you trust",
                mend=f"Name it by its own module, and trust that, only if you mean it: trust='[{_home(target)}]'",
            )
        ]
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


def _at_home(target: Any, trust: Sequence[str]) -> bool:
    """Whether an object is defined in a trusted package: a module's ``import os`` makes ``module.os.system`` a name."""
    top = getattr(target, "__module__", None) or ""
    return any(top.split(".")[0] == prefix.split(".")[0] for prefix in trust)


def _home(target: Any) -> str:
    return f"{getattr(target, '__module__', None)}.{getattr(target, '__qualname__', type(target).__name__)}"
