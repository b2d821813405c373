"""Callbacks for runs on several processes: what of the ranks is not the same, and a run that does not wrap anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from frostline.callbacks import FollowSchedule, freezing
from frostline.types import Batch


class CompareRanks(Callback):
    """Writes a line of JSON for each optimizer step and validation batch: the tensors that are not bitwise the same.

    Args:
        file: gets the lines. Their keys: ``step``; ``phase``; ``at``, ``step`` or ``validation``; ``parameters``,
            ``average`` (its parameters) and ``optimizer``; the buffers of modules that ``learning`` or ``frozen``
            parameters belong to; ``farthest``, the largest difference of a parameter; ``pictures``, how many were in
            the batches of several ranks.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        averages = [one for one in trainer.callbacks if isinstance(one, WeightAveraging)]
        own: dict[str, dict[str, Tensor]] = {
            "parameters": dict(pl_module.model.named_parameters()),
            "average": {n: p for one in averages for n, p in one._average_model.module.model.named_parameters()},
            "optimizer": _moments(trainer, pl_module.model),
            **_buffers(pl_module.model),
        }
        self._write(trainer, "step", own, batch.indices.tolist())

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        own = {"parameters": dict(pl_module.model.named_parameters()), **_buffers(pl_module.model)}
        self._write(trainer, "validation", own, [])

    def _write(self, trainer: Trainer, at: str, own: dict[str, dict[str, Tensor]], pictures: list[int]) -> None:
        own = {kind: {name: tensor.detach() for name, tensor in held.items()} for kind, held in own.items()}
        everywhere: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everywhere, (own, pictures))
        if not trainer.is_global_zero:
            return
        (first, seen), (second, others) = everywhere
        assert [*first] == [*second]
        assert all(first[kind].keys() == second[kind].keys() for kind in first)
        (follow,) = (one for one in trainer.callbacks if isinstance(one, FollowSchedule))
        line: dict[str, Any] = {"step": trainer.global_step, "phase": follow.phase.name, "at": at}
        line |= {
            kind: [n for n, value in held.items() if not value.equal(second[kind][n])] for kind, held in first.items()
        }
        apart = [(value - second["parameters"][n]).abs().max() for n, value in first["parameters"].items()]
        line |= {"farthest": float(max(apart)), "pictures": len({*seen} & {*others})}
        with self.file.open("a") as file:
            print(json.dumps(line), file=file)


def _moments(trainer: Trainer, model: nn.Module) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = trainer.optimizers[0].state
    return {f"{names[id(p)]}.{key}": value for p, held in state.items() for key, value in held.items()}


def _buffers(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {"learning": {}, "frozen": {}}
    for path, module in model.named_modules():
        learns = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        own = {f"{path}.{name}": buffer for name, buffer in module.named_buffers(recurse=False)}
        found["learning" if learns else "frozen"].update(own)
    return found


class WithoutRewrap(Callback):
    """The negative control: transitions leave the model in the wrapper that it had at the start."""

    def __init__(self) -> None:
        freezing.rewrap = _leave


def _leave(trainer: Trainer) -> None:
    """In the place of ``frostline.callbacks.rewrapping.rewrap``."""
