"""Any ``nn.Module`` that classifies, as a backbone: its head, its input and its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.backbones.building import CONSTRUCTED, Built, classifier_tensors
from frostline.backbones.loading import LoadReport, fresh_report, load_weights
from frostline.backbones.module_config import input_faults, is_run
from frostline.backbones.reading import WEIGHT_SUFFIXES, read_tensors
from frostline.errors import ConfigError, StorageError, near_misses, suggestion
from frostline.specs import BackboneSpec, InputSpec
from frostline.types import Preprocessing

Head = nn.Linear | nn.Conv2d

_SHOWN = 3  # names in a message


def check_module(spec: BackboneSpec, module: object) -> nn.Module:
    """``module``, where it can be what ``spec`` speaks of.

    Raises:
        ConfigError: it is no module, has layers whose shapes are not known yet, or ``spec`` has what is for timm.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"backbone.module gives a {type(module).__name__}, which is no torch.nn.Module.",
            mend="backbone.module._target_ names a class of modules, or a function that makes one.",
        )
    if spec.kwargs:
        name = next(iter(spec.kwargs))
        raise ConfigError(
            f"backbone.kwargs.{name} is an argument of timm's models, and backbone.module is none.",
            mend=f"+backbone.module.{name}=VALUE",
        )
    lazy = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise ConfigError(
            f"backbone.module: the shape of {lazy[0]} is not known before the first picture.",
            mend="Give the layer its number of inputs, in place of a lazy one.",
        )
    return module


def find_head(model: nn.Module, path: str | None) -> Head:
    """The classifier of a module.

    Args:
        model: any module.
        path: of a linear layer, or of a convolution over single cells, with logits as its outputs.

    Raises:
        ConfigError: there is no such layer at ``path``; what could be meant is listed.
    """
    found = dict(model.named_modules(remove_duplicate=False)).get(path or "")
    if path and _is_linear(found):
        return found
    name = type(model).__name__
    if not path:
        problem = f"backbone.head is not set: the path of the classifier of {name}."
    elif found is None:
        problem = f"backbone.head={path}: {name} has no such layer."
    else:
        problem = f"backbone.head={path}: this layer of {name} is a {type(found).__name__}, not a Linear or 1x1 Conv2d."
    raise ConfigError(problem, mend=_heads_like(model, path or ""))


def fit_head(model: nn.Module, path: str | None, num_classes: int) -> bool:
    """Give a module a new classifier, in place, where its own has not ``num_classes`` outputs; whether it did.

    Raises:
        ConfigError: there is no classifier at ``path``, or it is of a kind that cannot be made anew.
    """
    head = find_head(model, path)
    if outputs_of(head) == num_classes:
        return False
    if type(head).forward not in (nn.Linear.forward, nn.Conv2d.forward):
        raise ConfigError(
            f"backbone.head={path} is a {type(head).__name__} with {outputs_of(head)} outputs, which Frostline cannot "
            f"make anew for {num_classes} classes.",
            mend="Give backbone.module the number of classes, by the argument of its constructor.",
        )
    new = _anew(head, num_classes).train(head.training)
    for place, module in list(model.named_modules(remove_duplicate=False)):
        if module is head:
            parent, _, name = place.rpartition(".")
            setattr(model.get_submodule(parent), name, new)
    return True


def outputs_of(head: Head) -> int:
    """How many logits a classifier gives."""
    return head.out_features if isinstance(head, nn.Linear) else head.out_channels


def input_of(spec: InputSpec, size: int | None = None) -> Preprocessing:
    """What the input of a module must look like, as ``spec`` says it.

    Args:
        spec: ``backbone.input``.
        size: height and width in pixels, in place of ``spec.size``.

    Raises:
        ConfigError: a value is none; all are named.
    """
    found = Preprocessing(
        size=(len(spec.mean), size or spec.size, size or spec.size),
        mean=tuple(spec.mean),
        std=tuple(spec.std),
        interpolation=spec.interpolation,
        crop_pct=spec.crop_pct,
    )
    faults = [ConfigError(f"backbone.input.{problem}") for problem in input_faults(found)]
    if faults:
        raise ConfigError.of(faults)
    return found


def weigh(model: nn.Module, spec: BackboneSpec, *, new_head: bool) -> LoadReport:
    """Load the weights that ``spec`` names into a module, in place, or say what its constructor has loaded.

    Args:
        model: with its classifier at ``spec.head``.
        spec: ``weights`` is ``pretrained``, ``none``, a file, or a folder whose tensors are those of the module.
        new_head: whether the classifier is another than the constructor's.

    Raises:
        ConfigError: the weights do not fit.
        StorageError: they cannot be read.
    """
    if spec.weights == "none":
        return fresh_report(model)
    if spec.weights == "pretrained":
        return _constructed(model, classifier_tensors(model, spec.head) if new_head else frozenset())
    path = Path(spec.weights).expanduser()
    file = _weight_file(path, spec.weights)
    if path.is_dir():
        _require_same_body(model, file, spec)
    built = Built(model, lambda state, _: state, {}, head=spec.head)
    return load_weights(built, file, label=spec.weights, keeps_head=is_run(path))


def _is_linear(module: object) -> TypeGuard[Head]:
    """Whether a layer is a linear map of the channels of each cell."""
    if isinstance(module, nn.Conv2d):
        plain = module.groups == 1 and module.padding in ((0, 0), "valid", "same")
        return plain and module.kernel_size == module.stride == (1, 1)
    return isinstance(module, nn.Linear)


def _heads_like(model: nn.Module, path: str) -> str:
    """What may be meant by a path that names no classifier: its like, what lies below it, the last linear layers."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    linear = linear or [name for name, module in model.named_modules() if _is_linear(module)]
    if not linear:
        return "It has neither a Linear nor a 1x1 Conv2d, so that Frostline cannot give it a classifier."
    below = [name for name in linear if path and name.startswith(f"{path}.")]
    close = below[-1:] or near_misses(path, linear)
    meant = f"Did you mean '{close[0]}'? " if close else ""
    return f"{meant}Its last linear layers: {', '.join(linear[: -_SHOWN - 1 : -1])}."


def _anew(head: Head, outputs: int) -> Head:
    has_bias = head.bias is not None
    if isinstance(head, nn.Linear):
        return nn.Linear(head.in_features, outputs, has_bias, head.weight.device, head.weight.dtype)
    device, dtype = head.weight.device, head.weight.dtype
    return nn.Conv2d(head.in_channels, outputs, kernel_size=1, bias=has_bias, device=device, dtype=dtype)


def _constructed(model: nn.Module, new: frozenset[str]) -> LoadReport:
    names = list(model.state_dict())
    missing = tuple(name for name in names if name in new)
    return LoadReport(CONSTRUCTED, len(names) - len(missing), missing, (), None)


def _weight_file(path: Path, weights: str) -> Path:
    """The file of ``backbone.weights``: itself, or the one in the folder or run that it names."""
    file = path / ("model" if is_run(path) else "") / "model.safetensors" if path.is_dir() else path
    if file.is_file() and file.suffix in WEIGHT_SUFFIXES:
        return file
    if file.is_file():
        raise ConfigError(
            f"backbone.weights='{weights}' is no weight file.", mend=f"Known: {', '.join(WEIGHT_SUFFIXES)}."
        )
    close = near_misses(weights, ["pretrained", "none"])
    raise (ConfigError if close else StorageError)(
        f"backbone.weights='{weights}': there is no weight file '{file}'.",
        mend=suggestion(weights, close)
        if close
        else "Give pretrained, none, a .safetensors or .pth file, or the folder of a finished run.",
    )


def _require_same_body(model: nn.Module, file: Path, spec: BackboneSpec) -> None:
    """Raise where the tensors of a folder are not those of the module, the classifier aside."""
    head = classifier_tensors(model, spec.head)
    saved, own = _shapes(read_tensors(file), head), _shapes(model.state_dict(), head)
    different = sorted(name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name))
    if different:
        raise ConfigError(
            f"backbone.weights='{spec.weights}' holds another model than this {type(model).__name__}: "
            f"{', '.join(different[:_SHOWN])}{', ...' if len(different) > _SHOWN else ''} differ.",
            mend="Set backbone.module to what that run trained, as its config.yaml has it.",
        )


def _shapes(tensors: Any, leave_out: frozenset[str]) -> dict[str, Sequence[int]]:
    return {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor) and name not in leave_out
    }
