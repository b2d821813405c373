"""What a ``BackboneSpec`` asks for: an architecture, its configuration, and the file that its weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import timm.models

from frostline.backbones import hub
from frostline.backbones.reading import WEIGHT_SUFFIXES
from frostline.backbones.timm_config import describe, read_timm_config
from frostline.errors import ConfigError, StorageError, near_misses, suggestion
from frostline.specs import BackboneSpec


@dataclass(frozen=True)
class Source:
    """Where a backbone comes from.

    Attributes:
        architecture: the timm architecture, without a tag.
        config: timm's pretrained config, as a plain mapping.
        model_args: constructor arguments that the weights were made with.
        weights: the weight file; None for fresh weights.
        label: where the weights come from, as the config says it.
        keeps_head: True where the classifier of the weights is wanted too.
        labels: class names that came with the weights.
    """

    architecture: str
    config: Mapping[str, Any] = field(default_factory=dict)
    model_args: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    label: str = "none"
    keeps_head: bool = False
    labels: tuple[str, ...] = ()


def find_source(spec: BackboneSpec) -> Source:
    """Resolve the name and the weights of a spec to files at hand, fetching them where they are on the hub.

    Raises:
        ConfigError: no such model, no weights for it, or a weights entry that names nothing.
        StorageError: a file or folder is missing or unreadable, or there is no network and nothing cached.
    """
    own_weights = spec.weights == "pretrained"
    kind, _, place = spec.name.partition(":")
    if kind == "local-dir":
        own = from_folder(Path(place).expanduser(), spec.name, own_weights)
    elif kind in ("hf-hub", "hf_hub"):
        own = _from_hub(place, spec.name, own_weights)
    else:
        own = _from_registry(spec.name, own_weights)
    if own_weights or spec.weights == "none":
        return own
    return _with_weights(own, spec.weights)


def from_folder(folder: Path, label: str, wants_weights: bool = True) -> Source:
    """A timm folder, ``config.json`` beside a weight file, or a run folder that holds one in ``model/``.

    Raises:
        StorageError: the folder, its config or its weights are missing or unreadable.
        ConfigError: its config names no timm model.
    """
    if not folder.is_dir():
        raise StorageError(f"'{label}' names the folder '{folder}', which does not exist.", mend="Check the path.")
    if _is_run(folder):
        folder = folder / "model"
    told = read_timm_config(folder / "config.json", label)
    source = Source(told.architecture, told.config, told.model_args, labels=told.labels)
    return replace(source, weights=_weights_in(folder), label=label) if wants_weights else source


def _is_run(folder: Path) -> bool:
    return (folder / "model").is_dir() and not (folder / "config.json").is_file()


def _weights_in(folder: Path) -> Path:
    """The weight file of a timm folder: the usual names first, safetensors before pickles."""
    usual = [folder / name for name in hub.WEIGHTS]
    others = [path for suffix in WEIGHT_SUFFIXES for path in sorted(folder.glob(f"*{suffix}"))]
    for path in (*usual, *others):
        if path.is_file():
            return path
    raise StorageError(f"The folder '{folder}' holds no weights.", mend="It should hold model.safetensors.")


def _from_hub(repo: str, name: str, wants_weights: bool) -> Source:
    told = read_timm_config(hub.fetch(repo, hub.CONFIG, model=name), name)
    source = Source(told.architecture, told.config, told.model_args, labels=told.labels)
    if not wants_weights:
        return source
    return replace(
        source, weights=hub.fetch(repo, hub.weight_names(told.config.get("hf_hub_filename")), model=name), label=name
    )


def _from_registry(name: str, wants_weights: bool) -> Source:
    architecture, config = _registered(name)
    repo, address = config.get("hf_hub_id"), config.get("url")
    source = Source(architecture, describe(config))
    if not wants_weights:
        return source
    if repo:
        file = hub.fetch(repo, hub.weight_names(config.get("hf_hub_filename")), model=name)
    elif address:
        file = hub.fetch_address(address, model=name)
    else:
        raise ConfigError(f"timm has no pretrained weights for '{name}'.", mend=_other_weights(architecture))
    return replace(source, weights=file, label=str(repo or address))


def _registered(name: str) -> tuple[str, dict[str, Any]]:
    """The architecture and pretrained config of one of timm's own names, with or without a tag."""
    if any(mark in name for mark in "/\\:"):
        raise ConfigError(
            f"'{name}' is no name of a timm model.",
            mend=f"Write backbone.name=hf-hub:{name} for the hub, or backbone.name=local-dir:{name} for a folder.",
        )
    architecture, tag = timm.models.split_model_name_tag(name)
    if architecture not in timm.list_models():
        raise ConfigError(f"There is no timm model '{name}'.", mend=_other_names(name, architecture))
    try:
        found = timm.models.get_pretrained_cfg(name)
    except RuntimeError as fault:
        tags = list(timm.models.get_arch_pretrained_cfgs(architecture))
        raise ConfigError(
            f"'{architecture}' has no weights with the tag '{tag}'.", mend=suggestion(name, tags)
        ) from fault
    return architecture, {key: value for key, value in vars(found).items() if value is not None} if found else {}


def _other_names(name: str, architecture: str) -> str:
    if renamed := timm.models.get_deprecated_models().get(architecture):
        return f"It is now called '{renamed}'."
    close = near_misses(name, [*timm.list_models(), *timm.list_pretrained()])
    return suggestion(name, close) if close else "timm.list_models() lists the names."


def _other_weights(architecture: str) -> str:
    tagged = [
        name for name in timm.models.get_arch_pretrained_cfgs(architecture) if timm.models.is_model_pretrained(name)
    ]
    return "Set backbone.weights=none to start from random weights" + (
        f", or use {', '.join(tagged)}." if tagged else "."
    )


def _with_weights(own: Source, weights: str) -> Source:
    """``own``'s architecture with the weights of a file, a timm folder or a run."""
    path = Path(weights).expanduser()
    if path.is_dir():
        other = from_folder(path, weights)
        # A folder says how its weights were made and are fed; of another architecture, that says nothing here.
        same = other.architecture == own.architecture
        return replace(other if same else own, weights=other.weights, label=weights, keeps_head=same and _is_run(path))
    if path.is_file() and path.suffix in WEIGHT_SUFFIXES:
        return replace(own, weights=path, label=weights)
    if path.is_file():
        raise ConfigError(
            f"backbone.weights='{weights}' is no weight file.", mend=f"Known: {', '.join(WEIGHT_SUFFIXES)}."
        )
    if path.name == weights and near_misses(weights, ["pretrained", "none"]):
        raise ConfigError(f"backbone.weights='{weights}' is unknown.", mend=suggestion(weights, ["pretrained", "none"]))
    raise StorageError(
        f"backbone.weights='{weights}' is neither a file nor a folder here.",
        mend="Give pretrained, none, a .safetensors or .pth file, a timm folder, or the folder of a finished run.",
    )
