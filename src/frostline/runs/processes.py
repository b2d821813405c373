"""The processes of a run while features are computed: one does, and the others wait, without a collective.

A collective that waits for a long pass would run into its time limit; so they tell each other by the key-value store
that they have met in.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from lightning import Trainer
from torch import nn

from frostline import signals
from frostline.features import Computed, NotCached, Stopped
from frostline.tasks import take_buffers_of_first

_STOP = "frostline/stop"
_SECONDS = 0.05


class Processes:
    """The processes of a run; `frostline.features.feeding.Peers`.

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

    def agree(self, holds: bool) -> bool:
        """Whether it holds on all of them, which call it together; each has the buffers of the first afterwards.

        Batch-norm statistics that a phase before has changed differ between them until their next step.
        """
        if not self.several:
            return holds
        take_buffers_of_first(self._model)
        return bool(self._trainer.strategy.reduce_boolean_decision(holds, all=True))

    def shared(self, key: str, compute: Callable[[], Computed], find: Callable[[], Computed]) -> Computed:
        """What the first process of each machine computes, and the others find then; all call it together.

        Raises:
            NotCached: one of those that computed could not keep it; on all.
            Stopped: a signal has come to any process. One that is done by then need not have it.
            RuntimeError: one of those that computed failed.
        """
        if not self.several:
            return compute()
        self._asked[key] += 1
        place = f"frostline/features/{key}/{self._asked[key]}"
        first = self._trainer.local_rank == 0
        computed = self._first(f"{place}/{self._trainer.node_rank}", compute) if first else None
        for node in range(self._trainer.num_nodes):
            self._obey(self._outcome(f"{place}/{node}"))
        return find() if computed is None else computed

    @property
    def _store(self) -> Any:
        # private, and held by tests/runs/test_processes.py
        return torch.distributed.distributed_c10d._get_default_store()

    def _first(self, place: str, compute: Callable[[], Computed]) -> Computed | None:
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
            raise RuntimeError(f"the process that computes features failed: {reason}")
