"""A cut through the frozen part of a network: as late as one tensor with a row for each picture holds all that passes.

The forward pass is traced with whole modules as nodes. Only a module in which something frozen comes before the first
thing that learns is opened, so that most of a network stays as it is. What is below the cut is one graph, what is above
it another, and both run the very modules of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from frostline.features.boundary import Forward, NotCached, close, counted, left_alone, noise
from frostline.features.tracing import MODEL, Traced, Untraceable, output_of, trace
from frostline.freezing import keeps_statistics

_DEEPEST = 12  # modules inside each other that are opened
_TRACED, _CHECKED = 3, 2  # pictures; another number, so that one that was taken for a constant is found


@dataclass(frozen=True)
class Restless:
    """What of a model is not the same each time while a phase trains.

    Attributes:
        learning: names of parameters.
        moving: names of modules, each with a clause that says what changes in it.
    """

    learning: frozenset[str]
    moving: Mapping[str, str]


@dataclass(frozen=True)
class _Spot:
    """A node, known in another trace of the same modules by what it runs and as which of several."""

    op: str
    target: Any
    number: int

    @classmethod
    def of(cls, graph: fx.Graph, node: fx.Node) -> _Spot:
        alike = [one for one in graph.nodes if (one.op, one.target) == (node.op, node.target)]
        return cls(node.op, node.target, alike.index(node))

    def within(self, graph: fx.Graph) -> fx.Node:
        alike = (one for one in graph.nodes if (one.op, one.target) == (self.op, self.target))
        found: fx.Node | None = next(islice(alike, self.number, None), None)
        if found is None:
            raise NotCached("its forward pass takes another way in training than in evaluation")
        return found


@dataclass(eq=False)
class Cut:
    """A place in the forward pass of a model; see `find_cut`.

    Attributes:
        title: what comes right before it.
        key: what is below it as text: the operations, and the modules by their names.
        size: channels, height and width of the pictures.
    """

    title: str
    key: str
    size: tuple[int, int, int]
    _model: nn.Module
    _spot: _Spot
    _opened: tuple[nn.Module, ...]
    _below: fx.Interpreter
    _above: dict[tuple[bool, ...], fx.Interpreter] = field(default_factory=dict)

    def below(self, name: str) -> bool:
        """Whether a module, parameter or buffer of this name is run below the cut."""
        return any(name == used or name.startswith(f"{used}.") for used in self._used)

    def above(self, name: str) -> bool:
        """Whether it is not."""
        return not self.below(name)

    def runner(self, model: nn.Module) -> Forward:
        """What makes the features out of pictures, with the model in eval."""
        return lambda images: self._below.run(images)

    def part(self, model: nn.Module) -> nn.Module:
        """The same as a module; unlike `runner`, whoever compiles or traces it sees all of it."""
        return fx.GraphModule(self._below.module, self._below.graph)

    def features(self, model: nn.Module, forward: Forward, images: Tensor) -> Tensor:
        """``[B, ...]``, without a graph.

        Args:
            model: unused: the cut holds its own.
            forward: runs `runner`.
            images: ``[B, C, H, W]``.
        """
        with torch.no_grad():
            features: Tensor = forward(images)
        return features.detach().contiguous()

    def rest(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """What makes the logits out of features, in the modes that the modules are in."""

        def run(features: Tensor) -> Tensor:
            logits: Tensor = self._graph_above().run(features)
            return logits

        return run

    def __post_init__(self) -> None:
        targets = (node.target for node in self._below.graph.nodes if node.op in ("call_module", "get_attr"))
        self._used = sorted({str(target).removeprefix(f"{MODEL}.") for target in targets})

    def _graph_above(self) -> fx.Interpreter:
        modes = tuple(module.training for module in self._opened)
        if modes not in self._above:
            device = next(self._model.parameters()).device
            with left_alone(self._model), torch.inference_mode(False):
                traced = _traced(self._model, self._opened, noise(_TRACED, self.size, device))
            self.add(modes, traced)
        return self._above[modes]

    def add(self, modes: tuple[bool, ...], traced: Traced) -> None:
        """Take what is above from a trace in which the opened modules are in these modes."""
        above = _part(traced, self._spot.within(traced.graph), output_of(traced.graph))
        self._above[modes] = _interpreter(traced, above)


def find_cut(
    model: nn.Module,
    restless: Restless,
    size: tuple[int, int, int],
    as_trained: Callable[[], None],
) -> Cut:
    """The last place in the forward pass below which everything is still and one tensor holds all that passes.

    Args:
        model: in any modes, which are kept.
        restless: what has to be above.
        size: channels, height and width of the pictures.
        as_trained: puts the modules in the modes that they have in training.

    Raises:
        NotCached: there is none, or the forward pass cannot be traced.
    """
    images = noise(_TRACED, size, next(model.parameters()).device)
    with left_alone(model):
        as_trained()
        opened, flow = _opened(model, restless, images)
        place = flow.place()
        spot = _Spot.of(flow.traced.graph, place)
        modes = tuple(module.training for module in opened)
        model.eval()
        traced = _traced(model, opened, images)
        below = _part(traced, next(iter(traced.graph.nodes)), spot.within(traced.graph))
    if not any(node.op == "call_module" for node in below.nodes):
        raise NotCached(f"{flow.first_reason()} at once")
    modules = [str(node.target).removeprefix(f"{MODEL}.") for node in below.nodes if node.op == "call_module"]
    cut = Cut(f"after {modules[-1]}", _key(below), size, model, spot, opened, _interpreter(traced, below))
    cut.add(modes, flow.traced)
    cut.add((False,) * len(opened), traced)
    return cut


def check_cut(model: nn.Module, cut: Cut, as_trained: Sequence[Callable[[], None]]) -> tuple[Tensor, float]:
    """See on two pictures of noise that the model is what is below the cut, then what is above, in training too.

    Args:
        model: in any modes, which are kept.
        cut: of it.
        as_trained: each puts the modules in modes that they have in training.

    Returns:
        ``[2, ...]`` features; and the share of the operations of the forward pass that are below the cut.

    Raises:
        NotCached: it is not.
    """
    images = noise(_CHECKED, cut.size, next(model.parameters()).device)
    with left_alone(model), torch.no_grad():
        model.eval()
        below, features = counted(lambda: cut.features(model, cut.runner(model), images))
        rest = cut.rest(model)
        above, logits = counted(lambda: rest(features))
        if not close(model.forward(images), logits):
            raise NotCached(f"its logits are not what comes of the features {cut.title}")
        for enter in as_trained:
            enter()
            torch.manual_seed(0)
            whole = model.forward(images)
            torch.manual_seed(0)
            if not close(whole, rest(features)):
                raise NotCached(f"its logits in training are not what comes of the features {cut.title}")
    return features, below / max(below + above, 1)


class _Flow:
    """What in a traced forward pass depends on the pictures, and what of that is not the same each time."""

    def __init__(self, model: nn.Module, traced: Traced, restless: Restless) -> None:
        self.traced = traced
        self._learning = {id(tensor): name for name, tensor in model.named_parameters() if name in restless.learning}
        self._moving = restless.moving
        self._live = _ancestors(traced.graph.output_node())
        self._position: dict[fx.Node, int] = {node: at for at, node in enumerate(traced.graph.nodes)}
        self._fed = _fed_by_pictures(traced)
        self._late: dict[fx.Node, str] = {}
        for node in traced.graph.nodes:
            reasons = (self._own_reason(node), *(self._late.get(given) for given in node.all_input_nodes))
            if reason := next(filter(None, reasons), None):
                self._late[node] = reason

    def first(self) -> fx.Node:
        """The first node that depends on the pictures and is not the same each time."""
        return next(node for node in self._position if node in self._late and node in self._fed and node in self._live)

    def first_reason(self) -> str:
        """Why it is not."""
        return self._late[self.first()]

    def place(self) -> fx.Node:
        """The last node before it of which the value is all that passes.

        Raises:
            NotCached: there is none.
        """
        until = self._position[self.first()]
        before = [node for node in self._position if self._position[node] < until and node in self._fed & self._live]
        for at in reversed(range(until)):
            passing = [node for node in before if self._passes(node, at)]
            if len(passing) == 1 and passing[0].op != "placeholder" and self._has_rows(passing[0]):
                return passing[0]
        raise NotCached(f"{self.first_reason()}, and nothing comes before that as one tensor with a row a picture")

    def _passes(self, node: fx.Node, at: int) -> bool:
        return self._position[node] <= at < max(self._position[user] for user in node.users if user in self._live)

    def _has_rows(self, node: fx.Node) -> bool:
        value = self.traced.values[node]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return False
        return value.ndim > 1 and len(value) == _TRACED

    def _own_reason(self, node: fx.Node) -> str | None:
        name = str(node.target).removeprefix(f"{MODEL}.")
        if node.op == "get_attr":
            tensor = self.traced.values[node]
            return f"{self._learning[id(tensor)]} learns" if id(tensor) in self._learning else None
        if node.op == "call_module":
            module = self.traced.root.get_submodule(str(node.target))
            learning = next((self._learning[id(one)] for one in module.parameters() if id(one) in self._learning), None)
            moving = next((why for at, why in self._moving.items() if at == name or at.startswith(f"{name}.")), None)
            return f"{learning} learns" if learning else moving
        return "there is dropout" if _is_dropout(node) else None


def _is_dropout(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return "drop" in name and node.kwargs.get("training", True) is not False


def _is_size(value: object) -> bool:
    """Whether a value is a shape, a part of one, or a device."""
    if isinstance(value, tuple | list):
        return all(map(_is_size, value))
    return isinstance(value, int | torch.device)


def _opened(model: nn.Module, restless: Restless, images: Tensor) -> tuple[tuple[nn.Module, ...], _Flow]:
    """The modules that have to be opened so that what learns first in them has a node of its own."""
    opened: tuple[nn.Module, ...] = (model,)
    flow = _Flow(model, _traced(model, opened, images), restless)
    for _ in range(_DEEPEST):
        first = flow.first()
        if first.op != "call_module":
            break
        module = flow.traced.root.get_submodule(str(first.target))
        if not _is_mixed(model, module, restless):
            break
        try:
            inner = trace(model, (*opened, module), images)
        except Untraceable:
            break
        opened, flow = (*opened, module), _Flow(model, inner, restless)
    return opened, flow


def _is_mixed(model: nn.Module, module: nn.Module, restless: Restless) -> bool:
    """Whether a module may begin with something frozen, and loses nothing where it is opened."""
    learning = {id(tensor) for name, tensor in model.named_parameters() if name in restless.learning}
    frozen = any(id(tensor) not in learning for tensor in module.parameters())
    # an opened batch norm would not count its batches; an opened module calls no hooks
    closed = keeps_statistics(module) or module._forward_hooks or module._forward_pre_hooks
    return frozen and bool(list(module.children())) and not closed


def _traced(model: nn.Module, opened: Sequence[nn.Module], images: Tensor) -> Traced:
    try:
        return trace(model, opened, images)
    except Untraceable as fault:
        raise NotCached(f"the forward pass of {type(model).__name__} cannot be cut ({fault})") from fault


def _ancestors(end: fx.Node) -> set[fx.Node]:
    """A node and all that it takes."""
    seen, ahead = {end}, [end]
    while ahead:
        new = [given for given in ahead.pop().all_input_nodes if given not in seen]
        seen.update(new)
        ahead += new
    return seen


def _fed_by_pictures(traced: Traced) -> set[fx.Node]:
    """The nodes with values that depend on the pictures, and not on their shape alone."""
    fed: set[fx.Node] = set()
    for node in traced.graph.nodes:
        of_pictures = node.op == "placeholder" or not fed.isdisjoint(node.all_input_nodes)
        if of_pictures and not _is_size(traced.values.get(node)):
            fed.add(node)
    return fed


def _sizes(traced: Traced, start: fx.Node) -> set[fx.Node]:
    """The sizes of pictures, or of what comes of them, that follow from something else than the value of a node."""
    sizes: set[fx.Node] = set()
    of_pictures: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if node is not start and (node.op == "placeholder" or not of_pictures.isdisjoint(node.all_input_nodes)):
            of_pictures.add(node)
            if _is_size(traced.values.get(node)):
                sizes.add(node)
    return sizes


def _part(traced: Traced, start: fx.Node, end: fx.Node) -> fx.Graph:
    """The graph of what leads from the value of one node to that of another; all else that it takes is made in it."""
    part = fx.Graph()
    entry = part.placeholder("given")
    copies = {node: _size_again(part, entry, traced.values[node]) for node in _sizes(traced, start)} | {start: entry}
    wanted, ahead = {start}, [end]
    while ahead:
        node = ahead.pop()
        if node not in wanted and node not in copies:
            wanted.add(node)
            ahead += node.all_input_nodes
    for node in traced.graph.nodes:
        if node in wanted and node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[end])
    return part


def _size_again(part: fx.Graph, entry: fx.Node, value: Any) -> Any:
    """A size or a device as it follows from the features."""
    if isinstance(value, tuple | list):
        return tuple(_size_again(part, entry, one) for one in value)
    if isinstance(value, torch.device):
        return part.call_function(getattr, (entry, "device"))
    if type(value) is int and value == _TRACED:
        return part.call_method("size", (entry, 0))
    return value


def _key(below: fx.Graph) -> str:
    return hashlib.sha256("\n".join(str(node.format_node()) for node in below.nodes).encode()).hexdigest()


def _interpreter(traced: Traced, graph: fx.Graph) -> fx.Interpreter:
    interpreter = fx.Interpreter(traced.root, graph=graph)
    interpreter.extra_traceback = False
    return interpreter
