"""The runs of a sweep that differ in folds and seeds alone, taken together: mean and standard deviation.

Over folds the deviation is no standard error of independent samples: two of five folds share three quarters of what
they train on. It says how much a result depends on which pictures were left out, not how sure its mean is.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from frostline.runs.sweep import SCORES, Job, markdown, varied_settings, write_csv, writing
from frostline.runs.tables import print_table

AVERAGED = ("data.fold", "seed", "data.split_seed", "data.subset_seed")
"""Keys whose values are draws of the same experiment."""


@dataclass(frozen=True)
class Mean:
    """The runs of one setting.

    Attributes:
        setting: the keys that vary beside the averaged ones, with their values as text.
        runs: finished and counted once each, though two jobs may have come to the same run.
        failed: jobs of this setting without results.
        scores: mean and sample standard deviation (over n - 1; None for a single run) of what all ``runs`` have.
    """

    setting: Mapping[str, str]
    runs: int
    failed: int
    scores: Mapping[str, tuple[float, float | None]]


def averaged_keys(jobs: Sequence[Job]) -> list[str]:
    """The keys that the jobs of a sweep differ in and that are averaged over."""
    return [key for key in varied_settings(jobs)[1] if key in AVERAGED]


def means_of(jobs: Sequence[Job]) -> list[Mean]:
    """One for each setting of the other varied keys, in the order of the jobs; none where no averaged key varies."""
    settings, varied = varied_settings(jobs)
    others = [key for key in varied if key not in AVERAGED]
    if len(others) == len(varied):
        return []
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job, setting in zip(jobs, settings, strict=True):
        groups.setdefault(tuple(setting.get(key, "") for key in others), []).append(job)
    return [_mean(dict(zip(others, values, strict=True)), group) for values, group in groups.items()]


def _mean(setting: Mapping[str, str], jobs: Sequence[Job]) -> Mean:
    done = {job.folder.path: job.folder.read_metrics() for job in jobs if job.exit_code == 0}
    found = {name: [scores[name] for scores in done.values() if name in scores] for name in SCORES}
    # a mean over fewer runs than the row says would mislead
    scores = {name: _spread(values) for name, values in found.items() if values and len(values) == len(done)}
    return Mean(setting, len(done), sum(job.exit_code != 0 for job in jobs), scores)


def _spread(values: Sequence[float]) -> tuple[float, float | None]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_table(means: Sequence[Mean]) -> tuple[list[str], list[list[str]]]:
    """Header and rows as a person reads them."""
    names = _names(means)
    rows = [
        [*mean.setting.values(), str(mean.runs), str(mean.failed), *(_cell(name, mean) for name in names)]
        for mean in means
    ]
    return [*means[0].setting, "runs", "failed", *names], rows


def _names(means: Sequence[Mean]) -> list[str]:
    return [name for name in SCORES if any(name in mean.scores for mean in means)]


def _cell(name: str, mean: Mean) -> str:
    if name not in mean.scores:
        return ""
    middle, deviation = mean.scores[name]
    digits = 1 if name == "seconds" else 4
    return f"{middle:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def mean_figures(means: Sequence[Mean]) -> tuple[list[str], list[list[object]]]:
    """Header and rows for a program: numbers as they are, an empty cell where there is none."""
    names = _names(means)
    header = [*means[0].setting, "runs", "failed", *(f"{name} {kind}" for name in names for kind in ("mean", "sd"))]
    rows: list[list[object]] = [
        [
            *mean.setting.values(),
            mean.runs,
            mean.failed,
            *(figure for name in names for figure in mean.scores.get(name, (None, None))),
        ]
        for mean in means
    ]
    return header, rows


def title(averaged: Sequence[str]) -> str:
    """What stands above the table."""
    text = f"Mean ± standard deviation over {', '.join(averaged)}"
    return text + (" (folds share training pictures: no standard error)" if "data.fold" in averaged else "")


def report_means(parent: Path, jobs: Sequence[Job]) -> None:
    """Print the table, write ``sweep_mean.csv`` and add it to ``sweep.md``; nothing where no averaged key varies, or
    where all runs failed.

    Raises:
        StorageError: the sweep's folder cannot be written.
    """
    means = means_of(jobs)
    if not any(mean.runs for mean in means):
        return
    above = title(averaged_keys(jobs))
    header, rows = mean_table(means)
    with writing(parent):
        write_csv(parent / "sweep_mean.csv", *mean_figures(means))
        with (parent / "sweep.md").open("a", encoding="utf-8") as file:
            file.write(f"\n{above}\n\n{markdown(header, rows)}")
    print(f"\n{above}")
    print_table(header, rows)
