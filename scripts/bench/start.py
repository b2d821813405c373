"""How long it takes until something happens: the overview, a help page, a config, a wrong override, a first step.

Each command is started anew in turn, several times. The first step is the end of the first batch of the default run
(handwritten digits), from the command on; beside it stands what importing torch, Lightning, timm and torchmetrics alone
takes, and the difference. Prints a Markdown table of medians: seconds of the processor, children included, and on the
wall. On a machine that does other work the processor's are the ones to compare.

    python scripts/bench/start.py --repeats 5
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning import Callback

    Base = Callback
else:
    # the plain commands are measured without Lightning in this process
    Base = sys.modules["lightning"].Callback if "lightning" in sys.modules else object

HERE = Path(__file__).resolve().parent
IMPORTS = "imports alone"
FIRST_STEP = "first step of train"
COMMAND = (sys.executable, "-m", "frostline.cli")
COMMANDS: dict[str, tuple[str, ...]] = {
    "--help": (*COMMAND, "--help"),
    "train --help": (*COMMAND, "train", "--help"),
    "train --cfg job": (*COMMAND, "train", "--cfg", "job"),
    "train optimizer.lrr=3": (*COMMAND, "train", "optimizer.lrr=3"),
    "train backbone=timm backbone.name=nosuch": (*COMMAND, "train", "backbone=timm", "backbone.name=nosuch"),
    IMPORTS: (sys.executable, "-c", "import torch, lightning, timm, torchmetrics"),
    FIRST_STEP: (*COMMAND, "train", "+callbacks.first={_target_: start.FirstStep}"),
}


class FirstStep(Base):
    """Ends the process after the first batch."""

    def on_train_batch_end(self, *_: Any) -> None:
        os._exit(0)


def timed(command: Sequence[str], folder: str) -> tuple[float, float]:
    """Seconds of the processor and on the wall of a command that runs to its end."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode != (2 if "optimizer.lrr=3" in command or "backbone.name=nosuch" in command else 0):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            for name, command in COMMANDS.items():
                found[name].append(timed(command, folder))
    print("| | processor | wall |")
    print("|---|---|---|")
    for name, times in found.items():
        print(
            f"| `{name}` | {' | '.join(f'{statistics.median(column):.2f} s' for column in zip(*times, strict=True))} |"
        )
    pairs = list(zip(found[FIRST_STEP], found[IMPORTS], strict=True))
    beyond = [statistics.median(step[clock] - imports[clock] for step, imports in pairs) for clock in (0, 1)]
    print(f"| first step beyond the imports | {' | '.join(f'{seconds:.2f} s' for seconds in beyond)} |")


if __name__ == "__main__":
    main()
