"""Frostline, by the public ``train`` with all that a run does: checkpoints, the run folder, its thaw plot and tables.

The settings are those of the peers: no augmentation, AdamW without weight decay at a constant rate, fused,
channels_last, bfloat16 on a GPU. Whether features are computed once is left to ``cache.mode=auto``, or, to compare,
off; pictures are decoded anew in each epoch, as the peers do, or kept in memory. What a run imports is imported before
the clock starts, as the peers' imports are.
"""

from __future__ import annotations

import json
from functools import partial

from epoch_clock import EpochClock
from job import Job, Outcome, main

import frostline.runs.train


def overrides(job: Job, *, cache: str, decoded: str) -> list[str]:
    """What stands behind ``frostline train`` for this job."""
    kind = "lp_ft" if job.head_epochs and job.full_epochs else "linear_probe" if job.head_epochs else "full"
    lr = job.head_lr if job.head_epochs else job.full_lr
    chosen = [
        "data=folder",
        f"data.root={json.dumps(job.root)}",
        f"data.size={job.size}",
        f"data.batch_size={job.batch_size}",
        f"data.workers={job.workers}",
        f"data.decoded={decoded}",
        "backbone=timm",
        f"backbone.name={json.dumps(f'local-dir:{job.weights}')}",
        "augment=none",
        f"freeze={kind}",
        f"optimizer.lr={lr}",
        "optimizer.weight_decay=0",
        "++optimizer.fused=true",
        "lr=constant",
        f"trainer={'gpu' if job.on_gpu else 'cpu'}",
        f"trainer.max_epochs={job.epochs}",
        "callbacks=no_early_stopping",
        f"+callbacks.epoch_clock._target_={EpochClock.__module__}.{EpochClock.__name__}",
        "logger=csv",
        "speed.channels_last=true",
        f"speed.compile={str(job.compiled).lower()}",
        f"seed={job.seed}",
        f"output={json.dumps(job.scratch)}",
    ]
    if job.head_epochs:
        chosen.append(f"freeze.phases.probe.cache.mode={cache}")
    if kind == "lp_ft":
        chosen.append(f"freeze.phases.probe.until.fraction={job.head_epochs / job.epochs}")
        chosen.append(f"freeze.phases.full.lr.scale={job.full_lr / job.head_lr}")
    return chosen


def run(job: Job, *, cache: str = "auto", decoded: str = "null") -> Outcome:
    """Both phases."""
    finished = frostline.train(overrides(job, cache=cache, decoded=decoded))
    return Outcome(finished.metrics["test/accuracy"], EpochClock.latest.seconds, job.pictures)


if __name__ == "__main__":
    main({"train": run, "uncached": partial(run, cache="off"), "decoded": partial(run, decoded="memory")})
