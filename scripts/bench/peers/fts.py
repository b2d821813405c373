"""Proofs 1 to 3 on finetuning-scheduler, with an explicit schedule of three phases.

It thaws only: a parameter stands in one phase, and what was thawed cannot be frozen again. The schedule ends its phases
by ``max_transition_epoch``. Settings: ``epoch_transitions_only``, or its default, where its own early stopping (with
more patience than the run has epochs) may end a phase too; ``restore_best``; ``frozen_bn_track_running_stats``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint, FTSEarlyStopping

from proofs import Setting, main

SCHEDULE = Path(__file__).with_name("fts_schedule.yaml")
THREE_PHASES = {
    0: ("head",),
    2: ("head", "backbone.layer3", "backbone.layer4"),
    4: ("head", "backbone"),
}


def scheduled(*, early_stopping: bool, restore_best: bool, running_stats: bool) -> Setting:
    def callbacks(folder: Path) -> list[Any]:
        scheduler = FinetuningScheduler(
            ft_schedule=str(SCHEDULE),
            epoch_transitions_only=not early_stopping,
            restore_best=restore_best,
            frozen_bn_track_running_stats=running_stats,
            log_dir=folder.parent,
        )
        checkpoint = FTSCheckpoint(dirpath=folder, monitor="val_loss", save_top_k=1)
        stopping = [FTSEarlyStopping(monitor="val_loss", patience=100)] if early_stopping else []
        return [scheduler, checkpoint, *stopping]

    return Setting(callbacks, THREE_PHASES)


SETTINGS = {
    "its defaults": scheduled(early_stopping=True, restore_best=True, running_stats=True),
    "frozen_bn_track_running_stats=False": scheduled(early_stopping=True, restore_best=True, running_stats=False),
    "epoch_transitions_only, restore_best=False, frozen_bn_track_running_stats=False": scheduled(
        early_stopping=False, restore_best=False, running_stats=False
    ),
}

if __name__ == "__main__":
    main("finetuning-scheduler", SETTINGS, ["finetuning-scheduler"])
