"""The order of events: pictures, weights, the environment, the contests in turns, the other scripts, the files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from contest import KINDS, Contest, Entrant, Kind, entrants_of, turns
from environment import make_environment
from measuring import Failed, Measured, measure, reason, watch
from pictures import SPLITS, divided, make_pictures, make_weights
from plot import draw
from tables import section

BENCH = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Script:
    """Another benchmark of this folder.

    Attributes:
        letters: of ``--only``.
        file: beside this folder.
        title: of its section.
        gpu: its arguments for a GPU; None where it does not concern one.
    """

    letters: str
    file: str
    title: str
    gpu: tuple[str, ...] | None = ("--device", "cuda")


SCRIPTS = (
    Script("dh", "grid.py", "(d, h) Many heads at once; many pictures"),
    Script("e", "half_frozen.py", "(e) A phase that is frozen in part"),
    Script("f", "decode.py", "(f) Decoding", gpu=None),
    Script("g", "start.py", "(g) The start", gpu=None),
    Script("i", "cached_probe.py", "(i) The head alone, epoch by epoch", gpu=("--device", "gpu")),
    Script("j", "engine.py", "(j) The forward engine", gpu=("--device", "cuda", "--precision", "bf16")),
    Script("k", "loop.py", "(k) The training loop"),
)


class Comparison:
    """All that was asked for.

    Args:
        arguments: of the command line.
        scratch: an empty folder, for pictures, weights, runs, caches and the environment of the peers.
    """

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self._arguments, self._scratch = arguments, scratch
        self._contests: list[Contest] = []
        self._parts: list[str] = []

    def run(self) -> None:
        """Measure one after the other, and write what there is after each."""
        arguments = self._arguments
        self._parts.append(
            "<!-- written by scripts/bench/speed/run -->\n\n# Speed, against others\n\n" + machine(arguments.device)
        )
        kinds = [kind for letter, kind in KINDS.items() if letter in arguments.only]
        if kinds:
            root, weights = self._material()
            python = arguments.peers_python or self._environment()
            for kind in kinds:
                contest = Contest(kind, count(root / "test"))
                self._contests.append(contest)
                self._hold(contest, root, weights, python)
                self._parts.append(section(contest, self._what(kind, root)))
                self._write()
        for script in SCRIPTS:
            if set(script.letters) & set(arguments.only):
                self._parts.append(f"## {script.title}\n\n{self._output_of(script)}\n")
                self._write()

    def _material(self) -> tuple[Path, Path]:
        arguments = self._arguments
        root, weights = self._scratch / "pictures", arguments.weights
        if arguments.folder is None:
            make_pictures(root, arguments.pictures, arguments.side)
        else:
            root = divided(arguments.folder, root)
        if weights is None:
            weights = self._scratch / "weights"
            make_weights(weights, arguments.backbone, root, arguments.size)
        return root.resolve(), weights.resolve()

    def _environment(self) -> str:
        say("an environment for the peers")
        return make_environment(self._scratch / "environment")

    def _hold(self, contest: Contest, root: Path, weights: Path, python: str) -> None:
        """All repeats of a contest."""
        for repeat in range(self._arguments.repeats):
            for entrant in turns(self._entrants(contest.kind), repeat):
                result = self._measured(contest.kind, entrant, repeat, root, weights, python)
                contest.add(entrant.name, result)
                say(f"{contest.kind} {repeat + 1}: {entrant.name}: {short(result)}")

    def _entrants(self, kind: Kind) -> list[Entrant]:
        return [one for one in entrants_of(kind) if re.search(self._arguments.entrants, one.name)]

    def _measured(
        self, kind: Kind, entrant: Entrant, repeat: int, root: Path, weights: Path, python: str
    ) -> Measured | Failed:
        place = self._scratch / "runs" / kind / str(repeat)
        job = {
            **self._epochs(kind),
            "root": str(root),
            "weights": str(weights),
            "scratch": str(place / name_of(entrant.name)),
            "size": self._arguments.size,
            "batch_size": self._arguments.batch_size,
            "head_lr": self._arguments.lr,
            "full_lr": self._arguments.full_lr,
            # who follows another is not to find that one's run
            "seed": repeat + (1000 if entrant.follows else 0),
            "workers": self._arguments.workers,
            "device": self._arguments.device,
            "threads": self._arguments.threads,
        }
        cache = place / "cache" / name_of(entrant.follows or entrant.name)
        interpreter = sys.executable if entrant.role == "own" else python
        return measure(interpreter, entrant.file, entrant.way, job, cache=cache, limit=self._arguments.limit)

    def _epochs(self, kind: Kind) -> dict[str, int]:
        arguments = self._arguments
        head = {"probe": arguments.epochs, "lp_ft": arguments.head_epochs, "full": 0}
        full = {"probe": 0, "lp_ft": arguments.full_epochs, "full": arguments.rate_epochs}
        return {"head_epochs": head[kind], "full_epochs": full[kind]}

    def _what(self, kind: Kind, root: Path) -> str:
        """What was done, in words."""
        arguments, epochs = self._arguments, self._epochs(kind)
        pictures = [f"{count(root / split)} {split}" for split in SPLITS]
        source = "pictures of the folder given" if arguments.folder else f"JPEG textures of {arguments.side} pixels"
        model = "the weights given" if arguments.weights else f"{arguments.backbone} with random weights"
        whose = {"head_epochs": "of the head", "full_epochs": "of everything"}
        length = " and ".join(
            f"{number} epoch{'s' * (number > 1)} {whose[name]}" for name, number in epochs.items() if number
        )
        rates = {"head_epochs": f"{arguments.lr:g}", "full_epochs": f"{arguments.full_lr:g}"}
        rate = " and ".join(rates[name] for name, number in epochs.items() if number)
        taken = f"the median over {arguments.repeats} seed{'s' * (arguments.repeats > 1)}, in turns"
        if kind == "full":
            taken = f"{taken}, and of the epochs after the first"
        return (
            f"On {model}: {', '.join(pictures)} {source} at {arguments.size} pixels; {length} in batches of "
            f"{arguments.batch_size}, AdamW at {rate}; {arguments.workers} workers; {arguments.device}; {taken}. "
            "Seconds are from after the imports to the test score, validation after each epoch and keeping the best "
            "included. Ratios are medians of those within a repeat. Intervals are at 95 % over the seeds."
        )

    def _output_of(self, script: Script) -> str:
        """The Markdown that another benchmark prints and what it took, or why there is none."""
        path = BENCH / script.file
        if not path.exists():
            return f"Left out: there is no {script.file}."
        command = [sys.executable, str(path)]
        if self._arguments.device == "cuda":
            if script.gpu is None:
                return "Left out: it does not concern the GPU."
            command += script.gpu
        say(" ".join(command[1:]))
        output, errors = (self._scratch / f"{path.stem}.{ending}" for ending in ("md", "txt"))
        environment = {**os.environ, "XDG_CACHE_HOME": str(self._scratch / "cache" / path.stem)}
        with output.open("wb") as told, errors.open("wb") as said:
            watched = watch(command, environment, self._arguments.limit, stdout=told, stderr=said)
        if watched.code is None:
            return f"failed: not done after {self._arguments.limit:.0f} s"
        if watched.code:
            return f"failed: {reason(errors, watched.code)}"
        peak = "" if watched.peak_mib is None else f", at most {watched.peak_mib:,.0f} MiB at once"
        took = f"All of this took {watched.wall:,.0f} s, {watched.cpu:,.0f} s of the processors{peak}."
        return f"{tables_of(output.read_text(encoding='utf-8', errors='replace'))}\n\n{took}"

    def _write(self) -> None:
        folder = self._arguments.output
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join(self._parts)
        (folder / "speed.md").write_text(text, encoding="utf-8")
        if self._contests:
            draw(self._contests, folder / "speed.svg")
        raw = {
            contest.kind: {name: [asdict(result) for result in results] for name, results in contest.taken.items()}
            for contest in self._contests
        }
        (folder / "speed.json").write_text(json.dumps(raw, indent=1), encoding="utf-8")
        print(f"\n{self._parts[-1]}", flush=True)


def machine(device: str) -> str:
    """What it ran on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    on = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    return (
        f"{cores} cores ({processor()}), {on}, Python {platform.python_version()}, torch {torch.__version__}; load at "
        f"the start, from other work: {os.getloadavg()[0]:.1f}.\n"
    )


def processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    named = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return named[1] if named else platform.machine()


def count(folder: Path) -> int:
    """How many pictures lie in the class folders of a split."""
    return sum(1 for path in folder.glob("*/**/*") if path.is_file())


def name_of(entrant: str) -> str:
    """An entrant's name as a folder's."""
    return re.sub(r"\W+", "-", entrant).strip("-")


def tables_of(text: str) -> str:
    """Of what a script printed, from the first table to the last, with what stands between and one line before."""
    lines = text.strip().splitlines()
    inside = [number for number, line in enumerate(lines) if line.startswith("|")]
    if not inside:
        return text.strip()
    return "\n".join(lines[max(0, inside[0] - 2) : inside[-1] + 1]).strip()


def short(result: Measured | Failed) -> str:
    """A result in a line."""
    if isinstance(result, Failed):
        return f"failed: {result.reason}"
    scored = "" if result.accuracy is None else f", accuracy {result.accuracy:.3f}"
    return f"{result.wall:.1f} s, {result.cpu:.1f} s of CPU{scored}"


def say(line: str) -> None:
    """Tell what goes on, apart from the tables."""
    print(line, file=sys.stderr, flush=True)
