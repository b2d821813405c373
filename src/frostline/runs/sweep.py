"""Many runs from one command line: each job in its own folder, one failure names itself and stops no other.

A job that an earlier sweep or run has done is not done again; one that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from frostline.config import absolute_paths, build, compose_job, parse
from frostline.errors import ConfigError, FrostlineError, StorageError
from frostline.runs.earlier import earlier_runs, go_on_with
from frostline.runs.folder import RunFolder, make_folder, overrides_hash, write_json
from frostline.runs.jobs import STOPPING, ask_forked
from frostline.runs.starting import prepare, run_job


@dataclass(frozen=True)
class Job:
    """One row of the table at the end of a sweep.

    Attributes:
        number: from 0, in order.
        overrides: what sets it apart.
        folder: of its run, which an earlier sweep may have made.
        exit_code: 0 where the run is finished; negative for a signal.
        before: whether an earlier run had done it.
        message: why it was not started, where it was not.
    """

    number: int
    overrides: tuple[str, ...]
    folder: RunFolder
    exit_code: int
    before: bool = False
    message: str = ""

    @property
    def failure(self) -> str:
        """The first line of what went wrong, or an empty string."""
        if self.exit_code == 0:
            return ""
        return self.message or _recorded_failure(self.folder, self.exit_code) or _ending(self.exit_code)

    @property
    def status(self) -> str:
        """What the table says of it."""
        if self.exit_code:
            return "failed: " + self.failure
        return "done before" if self.before else "done"


def _recorded_failure(folder: RunFolder, exit_code: int) -> str:
    if not folder.failure.is_file():
        return ""
    record = json.loads(folder.failure.read_text(encoding="utf-8"))
    return str(record["message"]).splitlines()[0] if record["exit_code"] == exit_code else ""


def _ending(exit_code: int) -> str:
    return f"ended by signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"


def check_jobs(hydra: Hydra, command: str, overrides: Sequence[str]) -> int:
    """Compose every job of a grid before the first one starts; how many there are.

    Raises:
        ConfigError: with the faults of all jobs.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parsed, faults = parse(hydra, overrides)
    if faults:
        raise ConfigError.of(faults)
    try:
        batches = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        raise ConfigError(
            str(error), mend="A grid takes lists, ranges and choices: seed=0,1 or 'seed=range(3)'."
        ) from error
    seen: dict[str, ConfigError] = {}
    for job in batches[0]:
        try:
            compose_job(hydra, command, [item for item in job if not item.startswith("hydra")])
        except ConfigError as error:
            seen.setdefault(str(error), error)
    if seen:
        raise ConfigError.of(list(seen.values()))
    return len(batches[0])


def sweep(hydra: Hydra, command: str, overrides: Sequence[str]) -> tuple[Path, list[Job]]:
    """Run all jobs of a sweep through Hydra's sweeper and launcher; the sweep's folder and its jobs, in order.

    After a signal these are the jobs up to the one that it stopped; see ``exit_code``.

    Raises:
        StorageError: the sweep's folder cannot be written.
    """
    base = _plain_overrides(hydra, overrides)
    settings = hydra.compose_config(command, base, run_mode=_run_mode())
    parent = make_folder(Path(settings.output).absolute() / str(settings.name), "sweep-" + overrides_hash(overrides))
    without = [*untested(hydra, overrides, settings), *unreported(hydra, overrides, settings)]
    own = [f"hydra.sweep.dir='{_quoted(parent)}'", "hydra.sweep.subdir=."]
    fingerprints: dict[str, str | None] = {}
    with STOPPING.listening(), writing(parent):
        try:
            hydra.multirun(
                config_name=command,
                task_function=functools.partial(_job, command, str(parent), fingerprints),
                overrides=[*overrides, *without, *own],
                with_log_configuration=True,
            )
        except KeyboardInterrupt:
            if not STOPPING.signum:
                raise
            name = signal.Signals(STOPPING.signum).name
            print(f"{name}: the sweep is stopped. The same command goes on with what is missing.", file=sys.stderr)
    return parent, recorded_jobs(parent)


def untested(hydra: Hydra, overrides: Sequence[str], settings: DictConfig) -> list[str]:
    """``test=false`` for the jobs of a sweep, which leaves the test split alone unless it is asked for.

    A cross-validation whose set has no test split of its own needs no asking: each fold is the test split of one run,
    nothing is selected among the runs, and each picture is scored once for each seed.

    Args:
        hydra: its session.
        overrides: of the sweep.
        settings: its config without what it varies, and with Hydra's own.
    """
    parsed, _ = parse(hydra, overrides)
    if "test" not in settings or any(override.key_or_group == "test" for override in parsed):
        return []
    if not _is_cross_validation([item.key_or_group for item in parsed if item.is_sweep_override()], settings):
        return ["test=false"]
    if ask_forked(has_own_test_split, _data_node(settings)) is not False:
        return ["test=false"]
    print("Each run scores its fold, which is the test split of this set; nothing is selected among the runs.")
    return []


def unreported(hydra: Hydra, overrides: Sequence[str], settings: DictConfig) -> list[str]:
    """``report=false`` for the jobs of a sweep, of which one page is wanted and not many, unless it is asked for."""
    parsed, _ = parse(hydra, overrides)
    asked = "report" not in settings or any(override.key_or_group == "report" for override in parsed)
    return [] if asked else ["report=false"]


def _is_cross_validation(swept: Sequence[str], settings: DictConfig) -> bool:
    """Whether the runs of a sweep differ in nothing but their folds and seeds."""
    sweeper = settings.hydra.sweeper
    keys = {*swept, *(sweeper.get("params") or {})}
    if OmegaConf.select(settings, "data.folds") is None or not sweeper._target_.endswith("BasicSweeper"):
        return False
    return "data.fold" in keys and keys <= {"data.fold", "seed"}


def _data_node(settings: DictConfig) -> Any:
    config = settings.copy()
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    absolute_paths(config)
    return OmegaConf.to_container(config.data, resolve=True)


def has_own_test_split(node: dict[str, Any]) -> bool:
    """Whether the data that a ``data`` node names comes with a test split; needs torch.

    Raises:
        FrostlineError: the data cannot be read.
    """
    official = {key: value for key, value in node.items() if key not in ("folds", "fold")}
    data = build(OmegaConf.create({**official, "val_fraction": 0.0, "test_fraction": 0.0}), "data")
    data.load()
    return "test" in data.splits


def exit_code(jobs: Sequence[Job]) -> int:
    """The exit code of the sweep that was run last: 130 or 143 after a signal, 1 when a job failed, else 0."""
    return STOPPING.exit_code or int(any(job.exit_code for job in jobs))


@contextlib.contextmanager
def writing(parent: Path) -> Iterator[None]:
    """Make a fault of the disk a `StorageError` that names the sweep's folder."""
    try:
        yield
    except BrokenPipeError:
        # nobody reads what is printed
        raise
    except OSError as error:
        mend = "See to the disk; the same command then goes on with what is missing."
        raise StorageError(f"{parent}: the sweep cannot go on: {error}", mend=mend) from error


def _quoted(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace("'", "\\'")


def _run_mode() -> Any:
    from hydra.types import RunMode

    return RunMode.RUN


def _plain_overrides(hydra: Hydra, overrides: Sequence[str]) -> list[str]:
    parsed, _ = parse(hydra, overrides)
    return [override.input_line or "" for override in parsed if not override.is_sweep_override()]


def _job(command: str, parent: str, fingerprints: dict[str, str | None], config: DictConfig) -> float | None:
    """One job, called by Hydra's launcher; its objective, or None when it failed."""
    STOPPING.raise_if_stopped()
    hydra_config = HydraConfig.get()
    number = int(hydra_config.job.num)
    overrides = tuple(item for item in hydra_config.overrides.task if not item.startswith(("test=", "report=")))
    config = config.copy()
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    print(f"job {number}: {' '.join(overrides)}", flush=True)
    try:
        job = _run(command, config, Job(number, overrides, RunFolder(Path(parent)), 0), fingerprints)
    except FrostlineError as error:
        job = Job(number, overrides, RunFolder(Path(parent)), error.exit_code, message=str(error).splitlines()[0])
    _write_record(Path(parent), job)
    STOPPING.raise_if_stopped()
    monitor = config.get("monitor")
    return job.folder.read_metrics().get(monitor.metric) if monitor and job.exit_code == 0 else None


def _run(command: str, config: DictConfig, job: Job, fingerprints: dict[str, str | None]) -> Job:
    """Do what is missing of a job, whose ``folder`` is the sweep's until it has its own."""
    absolute_paths(config)
    earlier = [] if config.get("rerun") else earlier_runs(config, fingerprints)
    done = next((folder for folder in earlier if folder.finished), None)
    if done is not None:
        print(f"done before: {done.path}", flush=True)
        return replace(job, folder=done, before=True)
    busy = next((folder for folder in earlier if folder.locked), None)
    if busy is not None:
        return replace(
            job, folder=busy, exit_code=StorageError.exit_code, message="is being trained by another process"
        )
    # a signal may have ended the look at the data
    STOPPING.raise_if_stopped()
    folder = _resumed(command, config, earlier) or prepare(
        config, job.overrides, parent=job.folder.path, label=f"{job.number:03d}-"
    )
    code = run_job(command, config, folder)
    if code == 0 and not folder.finished:
        return replace(job, folder=folder, exit_code=1, message="exit code 0, but there are no results")
    return replace(job, folder=folder, exit_code=code)


def _resumed(command: str, config: DictConfig, earlier: Sequence[RunFolder]) -> RunFolder | None:
    folder = go_on_with(command, config, earlier)
    if folder is not None:
        print(f"resumed: {folder.path}", flush=True)
    return folder


def _write_record(parent: Path, job: Job) -> None:
    content = {**asdict(job), "folder": str(job.folder.path)}
    write_json(parent / f".job-{job.number:05d}.json", content)


def recorded_jobs(parent: Path) -> list[Job]:
    """The jobs of a sweep by its folder, in order; none where it is no sweep's.

    Args:
        parent: its folder, which may have been moved with the runs in it.
    """
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(parent.glob(".job-*.json"))]
    return [
        Job(**{**record, "overrides": tuple(record["overrides"]), "folder": _folder_now(parent, record["folder"])})
        for record in records
    ]


def _folder_now(parent: Path, recorded: str) -> RunFolder:
    path = Path(recorded)
    moved = parent / path.name
    return RunFolder(moved if not path.exists() and moved.exists() else path)


SCORES = ("val/accuracy", "val/macro_f1", "val/loss", "test/accuracy", "test/macro_f1", "seconds")
"""What the tables of a sweep show of each run."""


def varied_settings(jobs: Sequence[Job]) -> tuple[list[dict[str, str]], list[str]]:
    """What each job sets, key to value as text, and the keys in which the jobs differ."""
    settings = [dict(item.split("=", 1) for item in job.overrides if "=" in item) for job in jobs]
    keys = dict.fromkeys(key for setting in settings for key in setting)
    return settings, [key for key in keys if len({setting.get(key) for setting in settings}) > 1]


def table(jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what differs between the jobs, their scores, and their folders."""
    settings, varied = varied_settings(jobs)
    scores = [job.folder.read_metrics() for job in jobs]
    names = [name for name in SCORES if any(name in score for score in scores)]
    rows = []
    for job, setting, score in zip(jobs, settings, scores, strict=True):
        shown = [f"{score[name]:.4f}" if name in score else "" for name in names]
        own = [setting.get(key, "") for key in varied]
        rows.append([str(job.number), *own, *shown, job.status, str(job.folder.path)])
    return ["job", *varied, *names, "status", "folder"], rows


def write_table(parent: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write ``sweep.csv`` and ``sweep.md`` into the sweep's folder.

    Raises:
        StorageError: it cannot be written.
    """
    with writing(parent):
        write_csv(parent / "sweep.csv", header, rows)
        (parent / "sweep.md").write_text(markdown(header, rows), encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table for a program."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]]) + "\n"
