"""Which runs a comparison is over: of sweeps, lists and patterns; what is left out is named."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from frostline.config import load_config
from frostline.errors import ConfigError, suggestion
from frostline.runs.compare_settings import Config, printable, run_config
from frostline.runs.folder import RunFolder
from frostline.runs.identity import (
    recorded_division,
    recorded_fingerprint,
    recorded_overrides,
    recorded_splits,
)
from frostline.runs.sweep import recorded_jobs
from frostline.specs import PaperSpec


@dataclass
class Found:
    """The runs that were named.

    Attributes:
        folders: of finished runs, each once, in the order in which they were named.
        left_out: what was named and has no results, and why.
        sweeps: folders of sweeps among what was named.
    """

    folders: list[RunFolder] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    sweeps: list[Path] = field(default_factory=list)

    def add(self, folder: RunFolder, *, known_as: str = "", failure: str = "") -> None:
        """Take a run up, or note why it is left out."""
        name = known_as or str(folder.path)
        if folder.finished:
            if not any(folder.path.samefile(one.path) for one in self.folders):
                self.folders.append(folder)
        else:
            reason = "is being trained" if folder.locked else failure or "did not finish"
            self.left_out.append((name, reason))


def find_runs(named: Any) -> Found:
    """The runs that ``runs=`` names: sweeps, runs and patterns, one or a list of them.

    Raises:
        ConfigError: a name is nothing of these.
    """
    entries = [named] if isinstance(named, str) else list(named or [])
    if not entries or not all(isinstance(entry, str) and entry for entry in entries):
        raise ConfigError(
            f"runs={named}: which runs?", mend="Name a sweep's folder, a pattern or a list: runs='[RUN,RUN]'."
        )
    found = Found()
    for entry in entries:
        for path in _paths(entry):
            _look_into(path, found)
    return found


def _paths(entry: str) -> Iterator[Path]:
    path = Path(entry).expanduser().absolute()
    if path.exists() or not glob.has_magic(entry):
        if not (_is_run(path) or is_sweep(path)):
            mend = f"Name the folder of a run or of a sweep, or a pattern: runs='{entry.rstrip('/')}/*'."
            raise ConfigError(f"runs={entry} is neither a run nor a sweep", mend=mend)
        yield path
        return
    matches = [path for path in map(Path, sorted(glob.glob(str(path)))) if _is_run(path) or is_sweep(path)]
    if not matches:
        raise ConfigError(f"runs={entry}: no run and no sweep is called so", mend="Look with: ls -d PATTERN")
    yield from matches


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and not is_sweep(path)


def is_sweep(path: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return any(path.glob(".job-*.json"))


def _look_into(path: Path, found: Found) -> None:
    if not is_sweep(path):
        found.add(RunFolder(path))
        return
    found.sweeps.append(path)
    jobs = recorded_jobs(path)
    for job in jobs:
        known_as = f"job {job.number} ({' '.join(job.overrides)})"
        if job.exit_code and not job.folder.finished:
            found.left_out.append((known_as, f"failed: {job.failure}"))
        else:
            found.add(job.folder, known_as=known_as, failure="its folder is gone")
    # of a job that was killed with its sweep there is a folder and no record
    listed = {job.folder.path.name for job in jobs}
    for child in sorted(path.iterdir()):
        if child.name not in listed and _is_run(child):
            found.add(RunFolder(child))


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run as a comparison sees it.

    Attributes:
        folder: its files.
        value: of the metric that is compared.
        split: which ``metric`` is of; empty where it is of none.
        config: dotted key to leaf.
        overrides: what was typed for it, as far as that is known.
        data: the fingerprint of all its data; None where it was not written down.
        scored_on: the fingerprint of the pictures that were scored; None where there is none, or no split.
        overlap: pictures scored over pictures trained on; None where they were not counted, 0 without a split.
        paper: the published result that it names for the metric; None where it names none.
        made: nanoseconds; later runs are larger.
    """

    folder: RunFolder
    value: float
    split: str
    config: Config
    overrides: tuple[str, ...]
    data: str | None
    scored_on: str | None
    overlap: float | None
    paper: PaperSpec | None
    made: int


def read_runs(found: Found, metric: str) -> list[FinishedRun]:
    """The finished runs that have a metric; those that have it not are added to what is left out.

    Raises:
        ConfigError: there is none.
    """
    runs, known = [], set()
    for folder in found.folders:
        scores = folder.read_metrics()
        known |= set(scores)
        value = scores.get(metric)
        if isinstance(value, int | float) and math.isfinite(value):
            runs.append(_read(folder, metric, float(value)))
        else:
            found.left_out.append((str(folder.path), f"has no {metric}"))
    if not runs:
        raise _nothing(found.left_out, metric, sorted(known))
    return runs


def _nothing(left_out: Sequence[tuple[str, str]], metric: str, known: Sequence[str]) -> ConfigError:
    if not known:
        listed = "".join(f"\n  {name}: {why}" for name, why in left_out)
        return ConfigError(f"None of the runs is finished:{listed}", mend="Train them, or name others: runs=FOLDER.")
    mend = suggestion(metric, known, known_as="metrics")
    if metric.startswith("test/") and not any(name.startswith("test/") for name in known):
        mend = f"A sweep scores the test split with test=true alone. metric={metric.replace('test/', 'val/', 1)}"
    return ConfigError(f"metric={metric}: no run has it", mend=mend)


def _read(folder: RunFolder, metric: str, value: float) -> FinishedRun:
    split = metric.partition("/")[0] if "/" in metric else ""
    config = load_config(folder.config)
    return FinishedRun(
        folder,
        value,
        split,
        run_config(config),
        recorded_overrides(folder),
        recorded_fingerprint(folder),
        recorded_splits(folder).get(split),
        _overlap(split, recorded_division(folder)),
        _paper(config, metric),
        folder.metrics.stat().st_mtime_ns,
    )


def _overlap(split: str, counts: Mapping[str, int]) -> float | None:
    if not split:
        return 0.0
    scored, trained = counts.get(split, 0), counts.get("train", 0)
    return scored / trained if scored and trained else None


def _paper(config: DictConfig, metric: str) -> PaperSpec | None:
    value, source, of = (OmegaConf.select(config, f"paper.{key}") for key in ("value", "source", "metric"))
    if of != metric or not isinstance(value, int | float) or not isinstance(source, str):
        return None
    return PaperSpec(float(value), printable(source), metric)
