"""Formulas for floating-point operations, from shapes alone, where torch has none or a wrong one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

aten = torch.ops.aten


def _convolution_backward(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *settings: Any, **_: Any
) -> int:
    """Each of the gradients of input and weight costs what the forward pass does.

    torch's own formula takes the gradient of a grouped convolution's weight for an ungrouped one, which is hundreds
    of times too much for a depth-wise convolution.
    """
    transposed, wanted = bool(settings[4]), settings[7]
    places = math.prod((x if transposed else gradient)[2:])
    return 2 * x[0] * places * math.prod(weight) * sum(map(bool, wanted[:2]))


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Two products: of queries and keys, and of their weights and the values."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(
    gradient: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Five products: the weights once more, their gradient, and those of queries, keys and values."""
    return 2 * math.prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


FORMULAS: dict[Any, Callable[..., int]] = {
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
