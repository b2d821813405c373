"""A forward pass as a graph of modules and operations, with the values that they have for some pictures."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

MODEL = "model"
"""Under which name the graph knows the model: its own names follow after a dot."""


class Untraceable(Exception):  # noqa: N818  # an answer, which the caller puts into words
    """The forward pass is no graph; the message says why."""


@dataclass(frozen=True)
class Traced:
    """A forward pass of a model.

    Attributes:
        root: holds the model as ``MODEL``; names in the graph are relative to it.
        graph: one placeholder, the pictures; one output, a tensor.
        values: what each node gave.
    """

    root: nn.Module
    graph: fx.Graph
    values: dict[fx.Node, Any]


class _Whole(nn.Module):
    """Calls a model with nothing but pictures; its ``forward`` itself, as compiled code cannot be traced."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model.forward(images)


def trace(model: nn.Module, opened: Collection[nn.Module], images: Tensor) -> Traced:
    """The graph of ``model(images)``, in the modes that its modules are in.

    The pass is computed on the way, so that a branch that a shape decides is taken as it is for these pictures. Nothing
    is kept of it but the values: not of buffers that it writes to, which the caller has to keep.

    Args:
        model: on the device of ``images``.
        opened: the modules whose own ``forward`` becomes nodes; every other one is a node as a whole.
        images: ``[B, C, H, W]``.

    Raises:
        Untraceable: the values of a tensor decide what is computed, or the output is no tensor.
    """
    root = _Whole(model)
    tracer = _Tracer((root, *opened), images)
    try:
        with torch.no_grad():
            graph = tracer.trace(root)
    except Exception as fault:  # any code may stand in a forward method; what it raises is the answer
        said = str(fault).partition("\n")[0].partition(". ")[0]
        raise Untraceable(said or type(fault).__name__) from fault
    foreign = [str(node.target) for node in graph.nodes if node.op == "get_attr" and not _is_of_model(node)]
    if foreign:
        raise Untraceable("it makes a tensor of its own")
    if not isinstance(output_of(graph), fx.Node) or not isinstance(tracer.values[output_of(graph)], Tensor):
        raise Untraceable("it gives no tensor")
    return Traced(root, graph, tracer.values)


def output_of(graph: fx.Graph) -> fx.Node:
    """The node that a graph gives."""
    return cast(fx.Node, graph.output_node().args[0])


def _is_of_model(node: fx.Node) -> bool:
    return str(node.target).startswith(f"{MODEL}.")


class _Tracer(fx.Tracer):
    """Computes each node as it is made; torch's own knows no values, and gives up where a shape is looked at."""

    proxy_buffer_attributes = True

    def __init__(self, opened: Collection[nn.Module], images: Tensor) -> None:
        super().__init__()
        self._opened = {id(module) for module in opened}
        self._images = images
        self._computing = False
        self.values: dict[fx.Node, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self._opened

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._computing else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *more, **named)
        if kind != "output":
            self._computing = True
            try:
                self.values[node] = self._value(node)
            finally:
                self._computing = False
        return node

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.values[obj.node]
        return super().to_bool(obj) if isinstance(value, Tensor) else bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        entries: Any = obj
        return iter([entries[at] for at in range(len(self.values[obj.node]))])

    def _value(self, node: fx.Node) -> Any:
        target: Any = node.target
        args: Any = fx.node.map_arg(node.args, self.values.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, self.values.__getitem__)
        if node.op == "placeholder":
            return self._images
        if node.op == "get_attr":
            return operator.attrgetter(target)(self.root)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return (self.root.get_submodule(target) if node.op == "call_module" else target)(*args, **kwargs)
