"""Many runs from one command line: each job in its own folder, one failure names itself and stops no other."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from frostline.config import compose_job, parse
from frostline.errors import ConfigError
from frostline.runs.folder import RunFolder, make_folder, overrides_hash
from frostline.runs.starting import prepare, run_job


@dataclass(frozen=True)
class Job:
    """One row of the table at the end of a sweep."""

    number: int
    overrides: tuple[str, ...]
    folder: RunFolder
    exit_code: int

    @property
    def failure(self) -> str:
        """The first line of what went wrong, or an empty string."""
        if self.exit_code == 0:
            return ""
        if self.folder.failure.is_file():
            return str(json.loads(self.folder.failure.read_text(encoding="utf-8"))["message"]).splitlines()[0]
        return f"ended by signal {-self.exit_code}" if self.exit_code < 0 else f"exit code {self.exit_code}"


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
    """Run all jobs of a sweep through Hydra's sweeper and launcher; the sweep's folder and its jobs, in order."""
    first = hydra.compose_config(command, [], run_mode=_run_mode())
    base = _plain_overrides(hydra, overrides)
    settings = hydra.compose_config(command, base, run_mode=_run_mode())
    parent = make_folder(Path(settings.output).absolute() / str(settings.name), "sweep-" + overrides_hash(overrides))
    untested = [] if any(item.startswith("test=") for item in overrides) or "test" not in first else ["test=false"]
    own = [f"hydra.sweep.dir='{_quoted(parent)}'", "hydra.sweep.subdir=."]
    hydra.multirun(
        config_name=command,
        task_function=functools.partial(_job, command, str(parent)),
        overrides=[*overrides, *untested, *own],
        with_log_configuration=True,
    )
    return parent, _jobs(parent)


def _quoted(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace("'", "\\'")


def _run_mode() -> Any:
    from hydra.types import RunMode

    return RunMode.RUN


def _plain_overrides(hydra: Hydra, overrides: Sequence[str]) -> list[str]:
    parsed, _ = parse(hydra, overrides)
    return [override.input_line or "" for override in parsed if not override.is_sweep_override()]


def _job(command: str, parent: str, config: DictConfig) -> float | None:
    """One job, called by Hydra's launcher; its objective, or None when it failed."""
    hydra_config = HydraConfig.get()
    number = int(hydra_config.job.num)
    overrides = [item for item in hydra_config.overrides.task if not item.startswith("test=")]
    config = config.copy()
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    folder = prepare(config, overrides, parent=Path(parent), label=f"{number:03d}-")
    print(f"job {number}: {' '.join(overrides)}", flush=True)
    code = run_job(command, config, folder)
    record = {"number": number, "overrides": overrides, "folder": str(folder.path), "exit_code": code}
    (Path(parent) / f".job-{number:05d}.json").write_text(json.dumps(record), encoding="utf-8")
    monitor = config.get("monitor")
    return folder.read_metrics().get(monitor.metric) if monitor and code == 0 else None


def _jobs(parent: Path) -> list[Job]:
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(parent.glob(".job-*.json"))]
    return [Job(r["number"], tuple(r["overrides"]), RunFolder(Path(r["folder"])), int(r["exit_code"])) for r in records]


def table(jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what differs between the jobs, their scores, and their folders."""
    settings = [dict(item.split("=", 1) for item in job.overrides if "=" in item) for job in jobs]
    keys = list(dict.fromkeys(key for setting in settings for key in setting))
    varied = [key for key in keys if len({setting.get(key) for setting in settings}) > 1]
    scores = [job.folder.read_metrics() for job in jobs]
    names = [
        name
        for name in ("val/accuracy", "val/macro_f1", "val/loss", "test/accuracy", "test/macro_f1", "seconds")
        if any(name in score for score in scores)
    ]
    rows = []
    for job, setting, score in zip(jobs, settings, scores, strict=True):
        shown = [f"{score[name]:.4f}" if name in score else "" for name in names]
        status = "failed: " + job.failure if job.exit_code else "done"
        rows.append([str(job.number), *[setting.get(key, "") for key in varied], *shown, status, str(job.folder.path)])
    return ["job", *varied, *names, "status", "folder"], rows


def write_table(parent: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write ``sweep.csv`` and ``sweep.md`` into the sweep's folder."""
    with (parent / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    (parent / "sweep.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
