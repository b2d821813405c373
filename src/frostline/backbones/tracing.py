"""In which order a forward pass first uses the parameters of a model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# two pictures: a batch of one is squeezed away by some models
_PICTURES = 2


@dataclass(frozen=True)
class Trace:
    """What a forward pass used, and when.

    Attributes:
        ranks: for each parameter that was used, as named in ``model.named_parameters()``, the position of the operation
            that used it first; what one operation takes together shares a position. Empty where no pass succeeded.
        fault: why no forward pass could be traced; None where one was.
    """

    ranks: Mapping[str, int]
    fault: str | None = None


def first_uses(model: nn.Module, input_size: tuple[int, int, int]) -> Trace:
    """The order in which ``model(pictures)`` first uses each parameter, in eval mode and without gradients.

    A copy runs on the meta device, where tensors have a shape and no memory. A model that looks at values, which a
    meta tensor has none of, runs once more on its real parameters, which the copy shares; buffers are copied. The model
    itself and torch's global generator stay as they are.

    Args:
        model: on any device.
        input_size: channels, height and width of a picture in pixels.
    """
    if any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return Trace({}, "a lazy layer has no shape before its first batch")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # what a model says about tracing or shapes here it says again when it trains
        warnings.simplefilter("ignore")
        trace = _attempted(model, input_size, _shape_of, torch.device("meta"))
        device = next((parameter.device for parameter in model.parameters()), torch.device("meta"))
        if trace.fault is None or device.type == "meta":
            return trace
        real = _attempted(model, input_size, _itself, device)
        return trace if real.fault else real


def _attempted(
    model: nn.Module, input_size: tuple[int, int, int], stand_in: Callable[[Tensor], Tensor], device: torch.device
) -> Trace:
    try:
        twin = _twin(model, stand_in).eval()
        pictures = torch.zeros(_PICTURES, *input_size, device=device)
        noted = _Noted(twin.named_parameters())
        with torch.no_grad(), device, _Layers(noted), _Operations(noted):
            twin(pictures)
    except Exception as fault:  # any code may stand in a forward method; what it raises is the answer
        lines = str(fault).strip().splitlines()
        return Trace({}, f"{type(fault).__name__}: {lines[0]:.160}" if lines else type(fault).__name__)
    if not noted.ranks:
        return Trace({}, "the forward pass uses no parameter")
    return Trace(noted.ranks)


def _twin(model: nn.Module, stand_in: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the modules alone, each tensor replaced by its stand-in; tied parameters stay tied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = stand_in(tensor)
    # deepcopy keeps what it copied alive in the memo under its own id; so must what was put there
    memo[id(memo)] = list(memo.values())
    with _TensorCopies(stand_in):
        return copy.deepcopy(model, memo)


def _shape_of(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _itself(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


class _TensorCopies(TorchFunctionMode):
    """Has ``deepcopy`` take the stand-in of a tensor that is neither parameter nor buffer."""

    def __init__(self, stand_in: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._stand_in = stand_in

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            with torch._C.DisableTorchFunction():
                return self._stand_in(args[0])
        return func(*args, **(kwargs or {}))


class _Noted:
    """Positions of first use, by parameter name."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.ranks: dict[str, int] = {}
        self._names = {id(parameter): name for name, parameter in parameters}
        self._clock = 0

    def operation(self, arguments: Iterable[Any]) -> None:
        self._clock += 1
        for argument in arguments:
            if isinstance(argument, (list, tuple)):
                self._note(argument)
            else:
                self._note((argument,))

    def _note(self, arguments: Iterable[Any]) -> None:
        for argument in arguments:
            name = self._names.get(id(argument))
            if name is not None:
                self.ranks.setdefault(name, self._clock)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the arguments of every operation, whatever module, function or method it comes from."""

    def __init__(self, noted: _Noted) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noted = noted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._noted.operation((*args, *kwargs.values()) if kwargs else args)
        return func(*args, **(kwargs or {}))


class _Layers(TorchFunctionMode):
    """Answers at once for layers whose output has a known shape, and which torch computes step by step on meta tensors.

    An LSTM would be unrolled (20 seconds for timm's sequencer); normalization is half of the time of a convolutional
    network.
    """

    def __init__(self, noted: _Noted) -> None:
        super().__init__()
        self._noted = noted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _LAYERS and args and isinstance(args[0], Tensor) and args[0].is_meta:
            output = _LAYERS[name](*args)
            if output is not None:
                self._noted.operation((*args, *kwargs.values()))
                return output
        return func(*args, **kwargs)


def _normalized(images: Tensor, *_: Any) -> Any:
    return torch.empty_like(images)


def _recurrent(images: Tensor, state: Any, *rest: Any) -> Any:
    if len(rest) != 7 or len(state) != 2:  # a packed sequence
        return None
    *_, bidirectional, _ = rest
    features = state[0].shape[-1] * (1 + bidirectional)
    return images.new_empty(*images.shape[:-1], features), *state


_LAYERS: dict[str, Callable[..., Any]] = {
    "batch_norm": _normalized,
    "group_norm": _normalized,
    "layer_norm": _normalized,
    "lstm": _recurrent,
}
