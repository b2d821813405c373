"""The weights of several models, read tensor by tensor from their files, so that no more than one lies in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from frostline.errors import StorageError

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor, by its name."""

Named = Iterator[tuple[str, Tensor]]
"""The tensors of a model, one after the other, by their names."""


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in a ``.safetensors`` file, in alphabetical order of the names.

    Raises:
        StorageError: it cannot be read.
    """
    with _opened([file]) as (one,):
        return {name: tuple(one.get_slice(name).get_shape()) for name in sorted(one.keys())}


def mean_of(files: Sequence[Path]) -> Named:
    """The mean of each tensor over models, summed in float64 in the order of ``files`` and given in its own dtype.

    What is no floating-point number, such as the batches that a batch norm has counted, is that of the first file.

    Args:
        files: ``.safetensors`` files with tensors of the same names and shapes; at least one.

    Raises:
        StorageError: one cannot be read.
    """
    with _opened(files) as opened:
        for name in sorted(opened[0].keys()):
            first: Tensor = opened[0].get_tensor(name)
            if not first.is_floating_point() or len(opened) == 1:
                yield name, first
                continue
            total = first.double()
            for other in opened[1:]:
                total += other.get_tensor(name)
            yield name, (total / len(opened)).to(first.dtype)


def between(start: Mapping[str, Tensor], file: Path, alpha: float) -> Named:
    """``(1 - alpha) * start + alpha * file`` for the tensors of ``start``, and the others as they are in ``file``.

    Computed in float64. At 0 and 1 the tensors are bitwise those of one end; what is no floating-point number is that
    of ``file`` everywhere else.

    Args:
        start: by name, with the shapes of the file.
        file: a ``.safetensors`` file.
        alpha: from 0 to 1.

    Raises:
        StorageError: the file cannot be read.
    """
    with _opened([file]) as (end,):
        for name in sorted(end.keys()):
            tensor: Tensor = end.get_tensor(name)
            if name not in start or alpha == 1:
                yield name, tensor
            elif alpha == 0:
                yield name, start[name]
            elif tensor.is_floating_point():
                mixed = (1 - alpha) * start[name].double() + alpha * tensor.double()
                yield name, mixed.to(tensor.dtype)
            else:
                yield name, tensor


def unlike(files: Sequence[Path], start: Mapping[str, Tensor] | None = None) -> frozenset[str]:
    """The names of the tensors that are not bitwise the same in all files, nor in ``start`` where it has them.

    Raises:
        StorageError: a file cannot be read.
    """
    found = set()
    with _opened(files) as opened:
        for name in opened[0].keys():  # noqa: SIM118  # it is no mapping
            first = opened[0].get_tensor(name)
            others = [other.get_tensor(name) for other in opened[1:]]
            others += [start[name]] if start is not None and name in start else []
            if not all(torch.equal(first, other) for other in others):
                found.add(name)
    return frozenset(found)


def put(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy tensors into a model, in place and one by one; they have to be all that it has.

    Raises:
        StorageError: it has others.
    """
    state, given = model.state_dict(), set()
    with torch.no_grad():
        for name, tensor in tensors:
            if name not in state or state[name].shape != tensor.shape:
                raise StorageError(
                    f"The weights hold '{name}' of shape {tuple(tensor.shape)}, which the model has not."
                )
            state[name].copy_(tensor)
            given.add(name)
    if missing := sorted(state.keys() - given):
        raise StorageError(f"The weights hold no '{missing[0]}', which the model has.")


@contextmanager
def _opened(files: Sequence[Path]) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        opened = []
        for file in files:
            try:
                opened.append(stack.enter_context(safe_open(file, framework="pt")))
            except (OSError, SafetensorError) as fault:
                raise StorageError(
                    f"'{file}' cannot be read as weights: {fault}", mend="Train the run again."
                ) from fault
        yield opened
