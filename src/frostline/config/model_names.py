"""The names of timm's models, read off its source: to import it takes seconds, and a wrong name is told at once."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from frostline.config.targets import targets_of
from frostline.errors import ConfigError, near_misses, suggestion

# packages that register no model of their own with timm; any other that a config names may
_KNOWN = ("frostline", "lightning", "torch", "torchmetrics", "torchvision", "timm")
_REGISTERED = re.compile(rb"^@register_model\s+def (\w+)\(", re.MULTILINE)


def name_faults(config: DictConfig) -> list[ConfigError]:
    """A fault where ``backbone.name`` is an architecture that timm does not have.

    Nothing is said where code of a person's own might register one, nor of a tag: whoever creates the model looks at
    both again.
    """
    name, module = (OmegaConf.select(config, f"backbone.{key}") for key in ("name", "module"))
    if module is not None or not isinstance(name, str) or not re.fullmatch(r"\w+(\.\w+)?", name):
        return []
    if not _only_known_code(config):
        return []
    architecture, sources = name.partition(".")[0], _sources()
    if not sources or any(f"def {architecture}(".encode() in source for source in sources):
        return []
    if renamed := _renamed(architecture, sources):
        return [ConfigError(f"There is no timm model '{name}'.", mend=f"It is now called '{renamed}'.")]
    known = [found.decode() for source in sources for found in _REGISTERED.findall(source)]
    close = near_misses(architecture, known)
    mend = suggestion(architecture, close) if close else "timm.list_models() lists the names."
    return [ConfigError(f"There is no timm model '{name}'.", mend=mend)]


def _only_known_code(config: DictConfig) -> bool:
    # a program that has imported timm may have registered models as well
    return "timm" not in sys.modules and all(target.partition(".")[0] in _KNOWN for target in targets_of(config))


@cache
def _sources() -> list[bytes]:
    found = importlib.util.find_spec("timm")
    folders = found.submodule_search_locations if found else None
    return [path.read_bytes() for folder in folders or () for path in sorted((Path(folder) / "models").glob("*.py"))]


def _renamed(architecture: str, sources: list[bytes]) -> str | None:
    old_to_new = re.compile(rf"""['"]{architecture}['"]\s*:\s*['"](\w+(?:\.\w+)?)['"]""".encode())
    found = next((match for source in sources if (match := old_to_new.search(source))), None)
    return found[1].decode() if found else None
