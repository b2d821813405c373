"""Building a timm model with fresh weights, and learning how timm would adapt a checkpoint to it."""

from __future__ import annotations

import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import timm.models
from timm.models import _builder as timm_builder
from torch import Tensor, nn

from frostline.errors import ConfigError, suggestion

CheckpointFilter = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]

# What the run decides elsewhere, or what would change where weights come from.
RESERVED = {
    "num_classes": "the number of classes comes from the data",
    "pretrained": "set backbone.weights",
    "pretrained_cfg": "set backbone.name or backbone.weights",
    "pretrained_cfg_overlay": "set backbone.name or backbone.weights",
    "pretrained_model_args": "set backbone.name or backbone.weights",
    "checkpoint_path": "set backbone.weights",
    "cache_dir": "set HF_HUB_CACHE in the environment",
    "features_only": "a run trains a classifier",
    "out_indices": "a run trains a classifier",
    "model_name": "set backbone.name",
}

CONSTRUCTED = "constructor"
"""Where the weights of a module come from that loads nothing but what its constructor does."""

_UNEXPECTED = re.compile(r"unexpected keyword argument(?:\(s\):)? \[?'(\w+)'")
_building = threading.Lock()


@dataclass(frozen=True)
class Built:
    """A model with fresh weights.

    Attributes:
        model: the timm model, its classifier included.
        adapt: what timm does to a checkpoint of this architecture before loading it: renames tensors of the
            original authors, resamples position tables to the model's input size.
        config: timm's resolved pretrained config.
        head: the path of its classifier; None for that of timm's ``get_classifier()``.
    """

    model: nn.Module
    adapt: CheckpointFilter
    config: dict[str, Any]
    head: str | None = None


def build(
    architecture: str,
    *,
    config: Mapping[str, Any],
    saved_args: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    num_classes: int,
    size: int | None,
) -> Built:
    """Build ``architecture``; ``size`` reaches its constructor as ``img_size`` where that takes one.

    Args:
        architecture: a timm architecture without a tag.
        config: the pretrained config that describes the weights to come (normalization, input size, ...).
        saved_args: constructor arguments that came with the weights.
        kwargs: the user's constructor arguments, which win over the saved ones.
        num_classes: outputs of the classifier; 0 for none.
        size: height and width of the input in pixels; None keeps the model's own.

    Raises:
        ConfigError: an argument is reserved, unknown, or has a value that the constructor refuses.
    """
    args = _arguments(architecture, saved_args, kwargs, size)
    if size is not None:
        try:
            return _build_once(architecture, config, saved_args, {**args, "img_size": size}, num_classes)
        except TypeError as fault:
            if _unexpected(fault) != "img_size":
                raise _refused(architecture, fault, {**args, "img_size": size}) from fault
            args.pop("img_size", None)
        except Exception as fault:
            raise _refused(architecture, fault, {**args, "img_size": size}) from fault
    try:
        return _build_once(architecture, config, saved_args, args, num_classes)
    except Exception as fault:
        raise _refused(architecture, fault, args) from fault


def classifier_tensors(model: nn.Module, head: str | None = None) -> frozenset[str]:
    """Names in ``state_dict()`` of the classifier's tensors, by identity of its modules; empty where it has none.

    Args:
        model: a timm model, or any other where ``head`` is given.
        head: the path of the classifier; None for that of timm's ``get_classifier()``.

    Raises:
        ConfigError: the model is one of timm's few bare encoders, which cannot be given a classifier.
    """
    classifier = _classifier(model) if head is None else model.get_submodule(head)
    # distilled models have two heads; an Identity is what num_classes=0 leaves
    heads = classifier if isinstance(classifier, (tuple, list, nn.ModuleList)) else (classifier,)
    members = {id(module) for one in heads if isinstance(one, nn.Module) for module in one.modules()}
    found = {f"{path}." for path, module in model.named_modules(remove_duplicate=False) if id(module) in members}
    return frozenset(name for name in model.state_dict() if name[: name.rfind(".") + 1] in found)


def _classifier(model: nn.Module) -> Any:
    timm_model: Any = model
    if not hasattr(model, "get_classifier"):
        raise ConfigError(
            f"{type(model).__name__} is an encoder that timm gives no classifier.",
            mend="Take the model without '_enc' at the end of its name.",
        )
    return timm_model.get_classifier()


def _arguments(
    architecture: str, saved_args: Mapping[str, Any], kwargs: Mapping[str, Any], size: int | None
) -> dict[str, Any]:
    for name in kwargs:
        if name in RESERVED:
            raise ConfigError(f"backbone.kwargs.{name} cannot be set: {RESERVED[name]}.", mend="Leave it out.")
    own = kwargs.get("img_size")
    if size is not None and own is not None and own not in (size, [size, size], (size, size)):
        raise ConfigError(f"backbone.kwargs.img_size={own} and data.size={size} disagree.", mend="Set data.size alone.")
    kept = {name: value for name, value in saved_args.items() if name not in RESERVED}
    return {**kept, **{str(name): value for name, value in kwargs.items()}}


def _build_once(
    architecture: str,
    config: Mapping[str, Any],
    saved_args: Mapping[str, Any],
    args: Mapping[str, Any],
    num_classes: int,
) -> Built:
    with _loading_put_off() as seen:
        model = timm.create_model(
            architecture,
            pretrained=True,
            pretrained_cfg=dict(config),
            pretrained_model_args=dict(saved_args),
            num_classes=num_classes,
            **args,
        )
    if not seen:
        raise RuntimeError(
            f"timm {timm.__version__} no longer loads weights through timm.models._builder.load_pretrained."
        )
    return Built(model, seen.get("filter_fn") or _unchanged, dict(seen["pretrained_cfg"]))


@contextmanager
def _loading_put_off() -> Iterator[dict[str, Any]]:
    """While this holds, ``create_model(pretrained=True)`` loads nothing and its loading arguments are noted.

    The checkpoint filter of an architecture is a local of its constructor function, so this is the one place
    where it can be seen; reading the file ourselves is what makes loading safe, countable and mendable.
    """
    seen: dict[str, Any] = {}

    def note(model: nn.Module, **arguments: Any) -> None:
        seen.update(arguments)

    with _building:
        original = timm_builder.load_pretrained
        vars(timm_builder)["load_pretrained"] = note
        try:
            yield seen
        finally:
            vars(timm_builder)["load_pretrained"] = original


def _unchanged(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return state


def _unexpected(fault: Exception) -> str | None:
    found = _UNEXPECTED.search(str(fault))
    return found.group(1) if found else None


def _refused(architecture: str, fault: Exception, args: Mapping[str, Any]) -> ConfigError:
    name = _unexpected(fault)
    if name is not None and name in args:
        mend = (
            "Set data.size alone." if name == "img_size" else suggestion(name, _known(architecture), known_as="taken")
        )
        return ConfigError(f"{architecture} takes no argument '{name}' (backbone.kwargs.{name}).", mend=mend)
    given = ", ".join(f"{key}={value}" for key, value in args.items()) or "no arguments"
    lines = str(fault).strip().splitlines()
    reason = f"{type(fault).__name__}: {lines[0]}" if lines else type(fault).__name__
    return ConfigError(
        f"{architecture} cannot be built with {given} ({reason}).",
        mend="Check data.size and backbone.kwargs against the model's constructor.",
    )


def _known(architecture: str) -> list[str]:
    """Argument names of the architecture's class, for a suggestion; a few that all of timm's models share otherwise."""
    names = {"drop_rate", "drop_path_rate", "global_pool", "in_chans"}
    module = sys.modules[timm.models.model_entrypoint(architecture).__module__]
    for kind in vars(module).values():
        if inspect.isclass(kind) and hasattr(kind, "get_classifier") and kind.__module__ == module.__name__:
            names |= set(inspect.signature(kind).parameters) - {"args", "kwargs", "cfg", *RESERVED}
    return sorted(names)
