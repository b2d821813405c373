"""Blocks: the parts of a model that stand one behind the other, read from how its modules nest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median_low

from torch import nn

_LISTS = (nn.ModuleList, nn.ModuleDict)
_CONTAINERS = (nn.Sequential, *_LISTS)


def blocks_of(model: nn.Module, body: Sequence[str]) -> dict[str, str]:
    """The block of each parameter, as its module path; a parameter outside of all blocks is left out.

    A block is an entry of a series (``blocks.3``, ``layer1.0``) or a module of several layers that stands by itself.
    Series are opened wherever they stand: containers with two entries or more that have several layers, and what holds
    such a container (stages). So is what holds over half of the body. Tensors and single layers of an opened module,
    lists of such, and what a stage has beside its series (``stages.1.downsample``) belong to no block. Where all this
    finds no two blocks, each layer is one.

    Args:
        model: any module.
        body: names of its parameters without the head.
    """
    blocks: dict[str, str] = {}
    for path in _blocks_below("", model, body, len(body)):
        blocks.update({name: path for name in body if name.startswith(f"{path}.")})
    return blocks if len(set(blocks.values())) > 1 else _layers(model, body)


def _blocks_below(path: str, module: nn.Module, inside: Sequence[str], total: int) -> Iterator[str]:
    """Paths of the blocks in an opened module, of which ``inside`` are the parameters."""
    stage = path.rpartition(".")[2].isdigit() and not isinstance(module, _CONTAINERS)
    for name, child in module.named_children():
        where = f"{path}.{name}" if path else name
        held = [parameter for parameter in inside if parameter.startswith(f"{where}.")]
        if not held:
            continue
        if _has_layers(child) and (_is_series(child) or isinstance(child, _LISTS) or 2 * len(held) > total):
            yield from _blocks_below(where, child, held, total)
        elif _is_entry(child, module) if not _has_layers(child) else not stage:
            yield where


def _layers(model: nn.Module, body: Sequence[str]) -> dict[str, str]:
    """The module of each parameter that has a matrix or a kernel."""
    paths = {name.rpartition(".")[0] for name in body if model.get_parameter(name).ndim > 1} - {""}
    return {name: path for name in body if (path := name.rpartition(".")[0]) in paths}


def _has_layers(module: nn.Module) -> bool:
    """Whether ``module`` is made of two layers with a matrix or kernel at least; a convolution and its norm are one."""
    return sum(tensor.ndim > 1 for child in module.children() for tensor in child.parameters()) > 1


def _is_entry(module: nn.Module, around: nn.Module) -> bool:
    """Whether a module of one layer stands in a row with others; a list of bare layers is no row."""
    in_row = isinstance(around, nn.Sequential) or (isinstance(around, _LISTS) and any(True for _ in module.children()))
    return in_row and any(tensor.ndim > 1 for tensor in module.parameters())


def _is_series(module: nn.Module) -> bool:
    """Whether ``module`` is a container of several blocks, or a stage around one; branches side by side are a block."""
    children = [child for child in module.children() if _has_layers(child)]
    if isinstance(module, _CONTAINERS):
        return len(children) > 1 or any(_is_series(child) for child in children)
    return sum(_is_series(child) for child in children if isinstance(child, _CONTAINERS)) == 1


def places_of(blocks: Mapping[str, str], body: Sequence[str], ranks: Mapping[str, float]) -> dict[str, int]:
    """Blocks as places 1, 2, ... in order of first use, with what can only belong beside them.

    A layer of a stage (``stages.1.downsample``) goes with the nearest block of that stage. What comes before the first
    entry of a series goes with the block before it, as position tables with the patch embedding; where there is none,
    it is place 0. What else stands outside of blocks is left out.

    Args:
        blocks: from ``blocks_of``.
        body: names of the parameters without the head.
        ranks: the position of each one's first use.
    """
    held: dict[str, list[float]] = {}
    for name, block in blocks.items():
        held.setdefault(block, []).append(ranks[name])
    first = {block: min(of) for block, of in held.items()}
    order = sorted(held, key=lambda block: median_low(held[block]))
    place = {block: position for position, block in enumerate(order, start=1)}
    places = {name: place[block] for name, block in blocks.items()}
    loose = [name for name in body if name not in blocks]
    for name in loose:
        beside = _of_stage(name, order)
        if beside:
            places[name] = place[_nearest(beside, first, ranks[name])]
    series = next((block for block in order if block.rpartition(".")[2].isdigit()), None)
    entry = [name for name in loose if name not in places and (series is None or ranks[name] < first[series])]
    has_layers = any("." in name for name in entry)
    for name in entry:
        before = [block for block in order if first[block] <= ranks[name]]
        if before or has_layers:
            places[name] = place[before[-1]] if before else 0
    return places


def _of_stage(name: str, order: Sequence[str]) -> list[str]:
    """The blocks of the innermost numbered module around a parameter that has any."""
    parts = name.split(".")[:-1]
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end]) + "."
        beside = [block for block in order if block.startswith(prefix)] if parts[end - 1].isdigit() else []
        if beside:
            return beside
    return []


def _nearest(beside: Sequence[str], first: Mapping[str, float], rank: float) -> str:
    """The last block of ``beside`` that starts before ``rank``, else the first of them."""
    return next((block for block in reversed(beside) if first[block] <= rank), beside[0])
