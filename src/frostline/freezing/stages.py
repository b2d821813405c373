"""The stages of a network: its parts of equal resolution, as ``stage:N`` counts them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile

from torch import nn

from frostline.freezing.layers import is_norm

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NUMBERED = re.compile(r"(layer|stage|level|s)_?\d+")


def stages(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The parameter names of each stage of ``model``, in order; empty where it has no stages.

    timm's ``feature_info`` names a module at the end of each stage: a stage is what is registered after the one before,
    through that module, so that a downsampling between two stages belongs to the second. Where all of these modules
    have one resolution (the blocks of a ViT), there are no stages. Without such a list, or with one that names other
    modules, stages are the children ``layer1``, ``layer2``, ... or the entries of a top-level container of containers.
    What comes before the first stage (the stem) and after the last (a norm, a last convolution, the head) is in none.

    Args:
        model: the unwrapped network; works on the meta device too.
    """
    layout = _Layout(model)
    features = _features(model)
    known = features and layout.starts.keys() >= features.keys()
    cuts = _by_features(model, layout, features) if known else _by_children(model, layout)
    held = [tuple(layout.names[first:last]) for first, last in pairwise(cuts) if first < last]
    return tuple(held) if len(held) > 1 and cuts == sorted(cuts) else ()


class _Layout:
    """Where modules stand among the parameters of a model, in the order of registration."""

    def __init__(self, model: nn.Module) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        known, count = set(self.names), 0
        self.starts: dict[str, int] = {}
        for path, module in model.named_modules():
            self.starts[path] = count
            own = (f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False))
            count += len(known.intersection(own))

    def start(self, path: str) -> int:
        """The position of the first parameter of a module, or of what follows one that has none."""
        return self.starts[path]

    def end(self, path: str) -> int:
        """The position after the last parameter of a module."""
        return self.starts[path] + sum(name.startswith(f"{path}.") for name in self.names)


def _features(model: nn.Module) -> dict[str, object]:
    """The modules that ``feature_info`` names, in order, with their resolution."""
    info = getattr(model, "feature_info", None)
    reductions: dict[str, object] = {}
    for entry in info if isinstance(info, (list, tuple)) else ():
        if isinstance(entry, Mapping) and entry.get("module"):
            reductions.setdefault(entry["module"], entry.get("reduction"))
    return reductions


def _by_features(model: nn.Module, layout: _Layout, reductions: Mapping[str, object]) -> list[int]:
    """Where the first stage begins and each ends; empty where all have one resolution."""
    paths = list(reductions)
    if len(set(reductions.values())) < 2:
        return []
    ends = [_end(model, layout, path) for path in paths]
    if _is_stem(model, paths[0]):
        return [_stem_end(model, layout, paths[0], ends[0]), *ends[1:]]
    return [_begin(model, layout, paths[0]), *ends]


def _is_stem(model: nn.Module, path: str) -> bool:
    """Whether the first entry of ``feature_info`` is in the stem: by name, or as a single layer that stands alone."""
    if "stem" in path or path == "layer0":
        return True
    part = _part(model, path)
    weights = sum(parameter.ndim > 1 for parameter in model.get_submodule(part).parameters())
    return weights < 2 and not _is_entry(part)


def _stem_end(model: nn.Module, layout: _Layout, path: str, end: int) -> int:
    """Where the stem ends that ``path`` is in: with the module called so, and the norms that stand behind it."""
    parts = path.split(".")
    length = next((i for i, part in enumerate(parts, start=1) if "stem" in part), len(parts))
    parent, (*_, last) = ".".join(parts[: length - 1]), parts[:length]
    end = max(end, layout.end(".".join(parts[:length])))
    siblings = list(model.get_submodule(parent).named_children())
    behind = siblings[[name for name, _ in siblings].index(last) + 1 :]
    for name, _ in takewhile(lambda named: is_norm(named[1]), behind):
        end = max(end, layout.end(f"{parent}.{name}" if parent else name))
    return end


def _is_entry(path: str) -> bool:
    return path.rpartition(".")[2].isdecimal()


def _part(model: nn.Module, path: str) -> str:
    """The part of the model that ``path`` stands for: an entry of a container, or what holds it at the top level."""
    return path if _is_entry(path) else _unit(model, path)


def _begin(model: nn.Module, layout: _Layout, path: str) -> int:
    """Where the first stage begins: with what ``path`` is in, or with the container that this is an entry of."""
    part = _part(model, path)
    return layout.start(part.rpartition(".")[0] if _is_entry(part) else part)


def _end(model: nn.Module, layout: _Layout, path: str) -> int:
    """Where the stage that ``path`` ends does; an activation inside a block must not tear the block."""
    start, end = layout.start(path), layout.end(path)
    unit = _unit(model, path)
    if start < end or unit == path:
        return end
    before, after = layout.start(unit), layout.end(unit)
    return before if start - before <= after - start else after


def _unit(model: nn.Module, path: str) -> str:
    """The top-level module of ``path``, or its entry where that is a container."""
    parts = path.split(".")
    return ".".join(parts[: 2 if isinstance(model.get_submodule(parts[0]), _CONTAINERS) else 1])


def _by_children(model: nn.Module, layout: _Layout) -> list[int]:
    """The same from the names of top-level modules."""
    paths: Sequence[str] = [name for name, _ in model.named_children() if _NUMBERED.fullmatch(name)]
    if len(paths) < 2:
        paths = _entries(model)
    return [layout.start(paths[0]), *(layout.end(path) for path in paths)] if paths else []


def _entries(model: nn.Module) -> list[str]:
    """The entries of the first container of stages: one that is called so, or whose entries are containers."""
    children = dict(model.named_children())
    for name in ("stages", "levels", "layers", "blocks"):
        container = children.get(name)
        if not isinstance(container, _CONTAINERS) or len(container) < 2:
            continue
        if name in ("stages", "levels") or all(type(entry) in _CONTAINERS for entry in container.children()):
            return [f"{name}.{entry}" for entry, _ in container.named_children()]
    return []
