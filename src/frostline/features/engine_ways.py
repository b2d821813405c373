"""The ways to run a frozen part: each makes ready, of a module and a chunk of pictures, what runs on such chunks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frostline.specs import Engine

Run = Callable[[Tensor], Tensor]
"""``[B, C, H, W]`` pictures to ``[B, ...]`` what a frozen part makes of them, on the device that they are on."""

PLAIN = "plain"
_WARM = 3  # calls: traced code is made faster in the second


@dataclass(frozen=True)
class Way:
    """One way to run a frozen part.

    Attributes:
        name: as the person reads it.
        make: takes the part, in eval, and a chunk of pictures, without a graph; gives what runs on chunks of exactly
            that shape. The part stays as it is. May raise anything.
        guess: seconds that ``make`` takes, as far as that can be said beforehand.
        is_half: whether it computes in bfloat16 where the run does not.
    """

    name: str
    make: Callable[[nn.Module, Tensor], Run]
    guess: float = 0.0
    is_half: bool = False


def ways(wanted: Engine, device: torch.device, *, autocast: bool) -> tuple[Way, ...]:
    """Those that may stand in for the plain one, the likelier and the quicker to make first.

    Args:
        wanted: ``plain`` has none; a way that is named is the only one.
        device: where the part is.
        autocast: whether the run computes under autocast already, which traced code does not obey.
    """
    if wanted is Engine.auto or wanted is Engine.bf16:
        if device.type not in ("cpu", "cuda"):
            return ()
        fused = () if autocast else (FUSED,)
        if wanted is Engine.auto or autocast:
            return (CHANNELS_LAST, *fused, COMPILED)
        return (CHANNELS_LAST, HALF, *fused, HALF_COMPILED)
    named = {Engine.channels_last: CHANNELS_LAST, Engine.fused: FUSED, Engine.compiled: COMPILED}
    return (named[wanted],) if wanted in named else ()


def _last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _channels_last(part: nn.Module, chunk: Tensor) -> Run:
    return lambda images: part(_last(images))


def _fused(part: nn.Module, chunk: Tensor) -> Run:
    """Traced, its weights made constants, batch norms folded into convolutions and these joined with what follows."""
    # torch 2.14 calls torch.jit deprecated; nothing else in it joins a convolution with what follows within a second
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = torch.jit.trace(part, _last(chunk), check_trace=False)  # type: ignore[no-untyped-call]  # torch's
        made = torch.jit.optimize_for_inference(traced)
    if any(issubclass(one.category, torch.jit.TracerWarning) for one in caught):  # type: ignore[attr-defined]  # public
        raise ValueError("its code asks for numbers of a tensor, which a trace would hold fast")
    return _warmed(lambda images: made(_last(images)), chunk)


def _compiled(part: nn.Module, chunk: Tensor) -> Run:
    """Compiled for this shape, with its weights as constants."""
    from torch._inductor import config

    # a copy of the module around the same tensors: the compiled code goes when it does
    own = copy.copy(part)
    made = torch.compile(own, dynamic=False)
    with warnings.catch_warnings(), config.patch(freezing=True):
        # hints of the compiler, such as on the precision of matrix products
        warnings.simplefilter("ignore")
        return _warmed(lambda images: made(_last(images)), chunk)


def _warmed(run: Run, chunk: Tensor) -> Run:
    for _ in range(_WARM):
        run(chunk)
    return run


def _half(make: Callable[[nn.Module, Tensor], Run]) -> Callable[[nn.Module, Tensor], Run]:
    def made(part: nn.Module, chunk: Tensor) -> Run:
        kind = chunk.device.type
        with torch.autocast(kind, torch.bfloat16):
            inner = make(part, chunk)

        def run(images: Tensor) -> Tensor:
            with torch.autocast(kind, torch.bfloat16):
                return inner(images)

        return run

    return made


CHANNELS_LAST = Way("channels_last", _channels_last)
FUSED = Way("fused", _fused, guess=2.0)
COMPILED = Way("compiled", _compiled, guess=60.0)
HALF = Way("channels_last+bf16", _half(_channels_last), is_half=True)
HALF_COMPILED = Way("compiled+bf16", _half(_compiled), guess=60.0, is_half=True)
