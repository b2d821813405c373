"""The processes of a run while features are computed: one does, and the others wait, without a collective.

A collective that waits for a long pass would run into its time limit; so they tell each other by the key-value store
that they have met in.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning import Trainer
from torch import nn

from frostline import signals
from frostline.features import NotCached, Stopped
from frostline.tasks import take_buffers_of_first

_STOP = "frostline/stop"
_SECONDS = 0.05
_GRACE = 5.0

Result = TypeVar("Result")


class Processes:
    """The processes of a run; `frostline.features.feeding.Peers`, which is asked where there are several.

    Args:
        trainer: of the run.
        model: unwrapped.
    """

    def __init__(self, trainer: Trainer, model: nn.Module) -> None:
        self._trainer, self._model = trainer, model
        self._asked: Counter[str] = Counter()

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self._trainer.world_size > 1

    def is_stopping(self) -> bool:
        """Whether a signal has come to any of them."""
        received = signals.STOP.received is not None
        if not self.several:
            return received
        if received:
            self._store.set(_STOP, "1")
        return received or bool(self._store.check([_STOP]))

    def agree(self, place: str) -> bool:
        """Whether all of them, which call it together, name the same place; each then has the buffers of the first.

        Batch-norm statistics that a phase before has changed differ between them until their next step.
        """
        take_buffers_of_first(self._model)
        if torch.distributed.get_rank() > 0:
            # what is known of a tensor goes by how often it was written to, which a broadcast does not count
            for buffer in self._model.buffers():
                torch.autograd.graph.increment_version(buffer)
        places: list[str] = [""] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(places, place)
        return set(places) == {place}

    def shared(self, key: str, compute: Callable[[], Result], find: Callable[[], Result]) -> Result:
        """What the first process of each machine computes, and the others find then; all call it together.

        Raises:
            NotCached: one of those that computed could not keep it, on all of them; or one does not find it.
            Stopped: a signal has come to any process. One that is done by then need not have it.
            RuntimeError: one of those that computed failed.
        """
        self._asked[key] += 1
        place = f"frostline/features/{key}/{self._asked[key]}"
        computed = self._first(f"{place}/{self._trainer.node_rank}", compute) if self._trainer.local_rank == 0 else None
        outcomes = [self._outcome(f"{place}/{node}") for node in range(self._trainer.num_nodes)]
        for outcome in outcomes:
            self._obey(outcome)
        return find() if computed is None else computed

    @property
    def _store(self) -> Any:
        # private, and held by tests/runs/test_processes.py
        return torch.distributed.distributed_c10d._get_default_store()

    def _first(self, place: str, compute: Callable[[], Result]) -> Result | None:
        """Computes, and tells the others how that ended; None where they and this one are to obey it."""
        try:
            computed = compute()
        except (NotCached, Stopped) as reason:
            self._store.set(place, "stopped" if isinstance(reason, Stopped) else f"refused {reason}")
            return None
        except BaseException as error:
            self._store.set(place, f"failed {type(error).__name__}")
            raise
        self._store.set(place, "done")
        return computed

    def _outcome(self, place: str) -> str:
        while not self._store.check([place]):
            if self.is_stopping():
                # the one that computes sees it as well
                raise Stopped
            time.sleep(_SECONDS)
        found: bytes = self._store.get(place)
        return found.decode()

    @staticmethod
    def _obey(outcome: str) -> None:
        kind, _, reason = outcome.partition(" ")
        if kind == "refused":
            raise NotCached(reason)
        if kind == "stopped":
            raise Stopped
        if kind == "failed":
            # that one says why, first
            time.sleep(_GRACE)
            raise RuntimeError(f"the process that computes features failed: {reason}")
