"""The parameters of a body in groups from the stem on: which source is taken, and what is corrected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from frostline.backbones.depth_order import check_order, filled
from frostline.backbones.matching import Matched, matched
from frostline.backbones.segments import blocks_of, places_of
from frostline.backbones.titles import main_module, titles
from frostline.backbones.tracing import first_uses
from frostline.errors import ConfigError
from frostline.specs import DepthSource


@dataclass(frozen=True)
class BodyOrder:
    """The groups of a body, with where they come from.

    Attributes:
        held: parameter names by group.
        titles: the name of each group.
        source: ``matcher``, ``trace`` or ``modules``.
        corrections: sentences; see ``Depth``.
    """

    held: tuple[tuple[str, ...], ...]
    titles: tuple[str, ...]
    source: str
    corrections: tuple[str, ...]


def order_body(
    model: nn.Module, body: Sequence[str], source: DepthSource, input_size: tuple[int, int, int]
) -> BodyOrder:
    """Groups of ``body``, the parameters without the head; see ``depth_of``.

    Raises:
        ConfigError: the source that was asked for is of no use.
    """
    kind = type(model).__name__
    by_timm = Matched({}, "it was not asked for") if source is DepthSource.trace else matched(model, body)
    if source is DepthSource.matcher:
        if by_timm.fault:
            raise ConfigError(
                f"freeze.depth.source=matcher: timm's group matcher of {kind} is of no use: {by_timm.fault}.",
                mend="Set freeze.depth.source to auto or trace.",
            )
        return _by_matcher(model, body, _completed(by_timm.places, body))
    trace = first_uses(model, input_size)
    if source is DepthSource.trace and trace.fault:
        raise ConfigError(
            f"freeze.depth.source=trace: no forward pass of {kind} can be traced: {trace.fault}.",
            mend="Set freeze.depth.source to auto or matcher.",
        )
    if trace.fault:
        return _unchecked(model, body, by_timm, trace.fault)
    return _checked(model, body, by_timm, filled(trace.ranks, body), asked=source is DepthSource.trace)


def _unchecked(model: nn.Module, body: Sequence[str], by_timm: Matched, fault: str) -> BodyOrder:
    """The matcher as it is, else the blocks in the order of their registration."""
    if not by_timm.fault:
        note = f"the order of timm's matcher is not checked: no forward pass can be traced ({fault})"
        return _by_matcher(model, body, _completed(by_timm.places, body), note)
    registered = {name: float(index) for index, name in enumerate(body)}
    notes = (
        f"timm's matcher is not followed: {by_timm.fault}",
        f"blocks are in the order of their registration: no forward pass can be traced ({fault})",
    )
    return _by_blocks(model, body, registered, "modules", *notes)


def _checked(
    model: nn.Module, body: Sequence[str], by_timm: Matched, ranks: Mapping[str, float], *, asked: bool
) -> BodyOrder:
    """The matcher where no block contradicts it, else (or where ``asked`` for) the blocks in the order of first use."""
    if asked:
        return _by_blocks(model, body, ranks, "trace")
    fault = by_timm.fault
    if not fault:
        checked = check_order(by_timm.places, ranks, blocks_of(model, body))
        if not checked.contradictions:
            order = _by_matcher(model, body, checked.places)
            return replace(order, corrections=tuple(_moves(order, checked.places, by_timm.places)))
        fault = f"it has {_listed(checked.contradictions)} in another order than the forward pass"
    return _by_blocks(model, body, ranks, "trace", f"timm's matcher is not followed: {fault}")


def _by_matcher(model: nn.Module, body: Sequence[str], places: Mapping[str, int], *notes: str) -> BodyOrder:
    held = _gathered(model, places, body)
    return BodyOrder(held, titles(held), "matcher", notes)


def _by_blocks(
    model: nn.Module, body: Sequence[str], ranks: Mapping[str, float], source: str, *notes: str
) -> BodyOrder:
    blocks = blocks_of(model, body)
    held = _gathered(model, check_order(places_of(blocks, body, ranks), ranks, blocks).places, body)
    return BodyOrder(held, titles(held, blocks), source, notes)


def _gathered(model: nn.Module, places: Mapping[str, int], body: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Names by place, in order, tied ones together; norms alone at the end belong to the block before them."""
    layers: dict[int, list[str]] = {}
    lowest: dict[str, int] = {}
    tied = tied_names(model)
    for name in body:
        lowest[tied[name]] = min(places[name], lowest.get(tied[name], places[name]))
    for name in body:
        layers.setdefault(lowest[tied[name]], []).append(name)
    held = [tuple(layers[place]) for place in sorted(layers)]
    while len(held) > 1 and all(model.get_parameter(name).ndim < 2 for name in held[-1]):
        held[-2:] = [(*held[-2], *held[-1])]
    return tuple(held)


def tied_names(model: nn.Module) -> dict[str, str]:
    """For each parameter the first name of one that begins at the same place of the same storage: its own, or a tie."""
    first: dict[tuple[int, int], str] = {}
    return {
        name: first.setdefault((parameter.untyped_storage()._cdata, int(parameter.storage_offset())), name)
        for name, parameter in model.named_parameters()
    }


def _completed(places: Mapping[str, int], body: Sequence[str]) -> dict[str, int]:
    """``places`` with all of ``body``: root tensors first, the others beside the one registered before them."""
    complete = {}
    first = place = min(places.values(), default=0)
    for name in body:
        if "." in name:
            place = places.get(name, place)
        complete[name] = place if "." in name else places.get(name, first)
    return complete


def _moves(order: BodyOrder, places: Mapping[str, int], proposed: Mapping[str, int]) -> Iterator[str]:
    """A sentence for each layer or tensor that is in another group than timm's matcher has it in."""
    group = {name: index for index, names in enumerate(order.held) for name in names}
    home = {place: group[name] for name, place in places.items()}
    moved: dict[tuple[str, str, str], list[str]] = {}
    for name, index in group.items():
        place = proposed.get(name)
        # timm puts what its expressions leave out behind all groups
        came_from = len(order.held) - 1 if place is None else home.get(place)
        if came_from != index:
            came = "the end" if place is None else _title(place, came_from, order.titles, proposed)
            layer = name.rpartition(".")[0] or name
            moved.setdefault((layer, came, order.titles[index]), []).append(name)
    for (layer, came, goes), names in moved.items():
        yield f"{names[0] if len(names) == 1 else layer} moved from {came} to {goes} (first used there)"


def _title(place: int, index: int | None, known_as: Sequence[str], proposed: Mapping[str, int]) -> str:
    """The name of a group of the matcher, also of one that nothing is left of."""
    if index is not None:
        return known_as[index]
    return main_module([name for name, proposed_place in proposed.items() if proposed_place == place])


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
