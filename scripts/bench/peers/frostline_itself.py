"""Proofs 1 to 3 on Frostline, by its public command; run with an environment in which Frostline is installed.

The same model, sizes and phases as the peers get, and more that has a state: strong augmentation and an average of the
weights. One run is stopped by SIGTERM at every step and every end of an epoch, and goes on with ``resume=true`` each
time. The callbacks in this file are the runs' own, so its folder is put on ``PYTHONPATH``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from proofs import ACCUMULATE, PROOFS, SIZE, CompareRanks, Setting, WatchFrozen, judged, same, sorts

EPOCHS = 6
STEPS = 3  # an epoch: 5 batches, of which the last is a step of its own
HERE = Path(__file__).parent
THREE_PHASES = Setting(
    lambda folder: [],
    {0: ("model.fc",), 2: ("model.fc", "model.layer3", "model.layer4"), 4: ("model.fc", "model.layer4")},
)
PHASES = [
    "freeze=linear_probe",
    "freeze.phases.probe.until={epochs: 2}",
    "freeze.phases.thaw={train: head + top:2, until: {epochs: 2}}",
    "freeze.phases.freeze={train: head + top:1}",
]
RUN = [
    "backbone.name=test_resnet",
    "backbone.weights=none",
    "+backbone.kwargs.drop_rate=0.3",
    "data=folder",
    f"data.size={SIZE}",
    "augment=strong",
    "optimizer=sgd",
    "optimizer.lr=0.05",
    "optimizer.weight_decay=0.01",
    "lr=constant",
    f"trainer.max_epochs={EPOCHS}",
    f"trainer.accumulate_grad_batches={ACCUMULATE}",
    "trainer.log_every_n_steps=1",
    "logger=csv",
    "test=false",
]
ONE, TWO = ["trainer=cpu", "data.batch_size=8"], ["trainer=ddp_cpu", "data.batch_size=4"]
AVERAGED = ["callbacks=ema", "callbacks.ema.decay=0.8", "callbacks.early_stopping=null"]
NOT_AVERAGED = ["callbacks=no_early_stopping"]


class WriteRanks(CompareRanks):
    """Writes what ``CompareRanks`` found to a file."""

    def __init__(self, out: str) -> None:
        super().__init__(THREE_PHASES)
        self.out = Path(out)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.out.write_text(json.dumps(self.epochs))


class WriteFrozen(WatchFrozen):
    """Writes what ``WatchFrozen`` found to a file."""

    def __init__(self, out: str) -> None:
        super().__init__(THREE_PHASES)
        self.out = Path(out)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        moved = {kind: sorts(names, pl_module) for kind, names in self.moved.items()}
        found = {"moved": moved, "frozen": sorts(self.frozen, pl_module)}
        self.out.write_text(json.dumps(found))


class StopEverywhere(Callback):
    """Sends SIGTERM to its own run after each optimizer step and at each end of an epoch, each once."""

    def __init__(self, marks: str) -> None:
        self.marks = Path(marks)

    def _stop(self, name: str) -> None:
        if not (self.marks / name).exists():
            (self.marks / name).touch()
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if 0 < trainer.global_step < EPOCHS * STEPS:
            self._stop(f"step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch < EPOCHS - 1:
            self._stop(f"end of epoch {trainer.current_epoch}")


def make_pictures(root: Path) -> None:
    """40 pictures of three classes to train with, and 6 to validate."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 6)):
        for index in range(count):
            folder = root / split / f"class{index % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 200, (SIZE, SIZE, 3), dtype=np.uint8)
            pixels[..., index % 3] += 50
            Image.fromarray(pixels).save(folder / f"{index}.png")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``frostline train`` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "frostline.cli", "train", *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=900)


def succeed(*arguments: str) -> None:
    done = command(*arguments)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())


def overrides(folder: Path, *more: str) -> list[str]:
    return [*RUN, *PHASES, f'data.root="{folder / "pictures"}"', f'output="{folder}"', *more]


def run_of(folder: Path, name: str) -> Path:
    (run,) = (folder / name).iterdir()
    return run


def prove_ranks(folder: Path) -> dict[str, Any]:
    out = folder / "ranks.json"
    watch = f'+callbacks.watch={{_target_: frostline_itself.WriteRanks, out: "{out}"}}'
    succeed(*overrides(folder, *TWO, *NOT_AVERAGED, watch))
    return judged(json.loads(out.read_text()), THREE_PHASES)


def prove_frozen(folder: Path, averaging: Sequence[str]) -> dict[str, Any]:
    out = folder / "frozen.json"
    watch = f'+callbacks.watch={{_target_: frostline_itself.WriteFrozen, out: "{out}"}}'
    succeed(*overrides(folder, *ONE, *averaging, watch))
    found: dict[str, Any] = json.loads(out.read_text())
    return {"holds": not any(sum(kinds.values()) for kinds in found["moved"].values()), **found}


def newest(run: Path) -> dict[str, Any]:
    """What the last checkpoint holds of weights and optimizer."""
    content = torch.load(max((run / "checkpoints").glob("step-*.ckpt")), weights_only=True)
    kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "global_step")
    return {key: content[key] for key in kept}


def prove_resume(folder: Path) -> dict[str, Any]:
    marks = folder / "marks"
    marks.mkdir()
    succeed(*overrides(folder, *ONE, *AVERAGED, "name=straight"))
    stop = f'+callbacks.stop={{_target_: frostline_itself.StopEverywhere, marks: "{marks}"}}'
    done, stops = command(*overrides(folder, *ONE, *AVERAGED, "name=stopped", stop)), 0
    while done.returncode == 143:
        stops += 1
        print(f"Frostline: stop {stops}", file=sys.stderr, flush=True)
        done = command(f'run="{run_of(folder, "stopped")}"', "resume=true", "trust=[frostline_itself]")
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    equal = same(newest(run_of(folder, "straight")), newest(run_of(folder, "stopped")))
    outcomes = {"equal" if equal else "other weights or optimizer": sorted(mark.name for mark in marks.iterdir())}
    return {"holds": equal, "stops": stops, "equal": stops if equal else 0, "outcomes": outcomes}


MEASUREMENTS = {
    ("ranks", "its default"): prove_ranks,
    ("resume", "one run stopped at every step and epoch"): prove_resume,
    ("frozen", "no average"): lambda folder: prove_frozen(folder, NOT_AVERAGED),
    ("frozen", "EMA"): lambda folder: prove_frozen(folder, AVERAGED),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Proofs 1 to 3 on Frostline, as JSON.")
    parser.add_argument("--only", choices=PROOFS, nargs="+", default=list(PROOFS))
    options = parser.parse_args()
    rows = []
    for (proof, how), prove in MEASUREMENTS.items():
        if proof not in options.only:
            continue
        with tempfile.TemporaryDirectory() as name:
            make_pictures(Path(name) / "pictures")
            try:
                found = prove(Path(name))
            except RuntimeError as error:
                found = {"holds": False, "error": str(error)[-300:]}
        rows.append({"setting": "head, head + top:2, head + top:1", "proof": proof, "how": how, **found})
        print(f"Frostline: {proof}, {how}: {found['holds']}", file=sys.stderr, flush=True)
    versions = {package: version(package) for package in ("torch", "timm", "lightning", "frostline")}
    print(json.dumps({"name": "Frostline", "versions": versions, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
