"""What each rank of a distributed run holds, in one place."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def of_all_ranks(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """``state`` of each rank, in order, on the CPU; every rank calls it, and gets the same."""
    on_cpu = {name: value.cpu() for name, value in state.items()}
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [on_cpu]
    gathered: list[dict[str, Tensor]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, on_cpu)
    return gathered


def take_buffers_of_first(model: nn.Module) -> None:
    """Give every rank the buffers of the first, as DDP does at its next step; all ranks call it."""
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)
