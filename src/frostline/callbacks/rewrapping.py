"""DistributedDataParallel learns which parameters have gradients when it is made; so a transition makes it anew."""

from __future__ import annotations

import gc
from typing import Any

from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel


def rewrap(trainer: Trainer) -> None:
    """Wrap the model of a distributed run again, so that what learns now, and only that, is reduced over the ranks.

    Without it the gradients of thawed parameters would stay each rank's own, and a reducer that waits for those of
    frozen ones would raise. All ranks call it together; parameters and buffers become those of the first.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy) or not isinstance(strategy.model, DistributedDataParallel):
        return
    module: Any = strategy.model.module
    # the hooks of the old reducer go with it
    strategy.model = module
    gc.collect()
    strategy.model = strategy._setup_model(module)
    strategy._register_ddp_hooks()
