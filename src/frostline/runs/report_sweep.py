"""From a sweep's folder to its page."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup
from omegaconf import OmegaConf

from frostline.config import load_config
from frostline.errors import ConfigError, suggestion
from frostline.reports import (
    Axis,
    Dot,
    PageTable,
    SweepPage,
    SweepRun,
    Thread,
    parallel_chart,
    scatter_chart,
    sweep_page,
)
from frostline.runs.compare import larger_is_better, table_of
from frostline.runs.compare_rows import drawn_keys
from frostline.runs.compare_runs import FinishedRun, Found, find_runs, read_runs
from frostline.runs.compare_settings import printable, text_of
from frostline.runs.compare_tables import ComparisonTable, cells, footnotes, header
from frostline.runs.folder import RunFolder
from frostline.runs.sweep_means import AVERAGED
from frostline.specs import CompareSpec, Mode, ReportSpec

_NAMES = 12  # places of an axis of names that are written out
_RUNS = 500
_LOG_FROM = 20.0


def sweep_report(sweep: Path, page: Path, spec: ReportSpec) -> None:
    """Write the page of a sweep from what its runs have written.

    Args:
        sweep: its folder.
        page: the file.
        spec: the metric and the axis that are asked for.

    Raises:
        ConfigError: no run has the metric, which way is better is not known, or the runs do not differ in ``axis``.
        OSError: the page cannot be written.
    """
    found = find_runs(str(sweep))
    metric, mode = _metric(found, spec)
    runs = read_runs(found, metric)
    larger = larger_is_better(metric, mode)
    comparing = CompareSpec(runs=str(sweep), metric=metric, mode=mode, config_dirs=spec.config_dirs)
    compared = table_of(comparing, runs, found, larger=larger)
    columns, ranked = _ranked(compared, larger=larger)
    axis = _axis(spec.axis, ranked, columns)
    shown = ranked[:_RUNS]
    left_out = [[printable(name), printable(why)] for name, why in found.left_out]
    sweep_page(
        page,
        SweepPage(
            title=f"Sweep {sweep.name}",
            facts=_facts(ranked, metric, found),
            notes=[*_too_many(ranked), *(printable(note) for note in compared.notes if "left out: " not in note)],
            parallel=_parallel(shown, columns, metric, larger=larger) if columns else None,
            scatter=None if axis is None else _scatter(shown, axis, columns[axis], metric),
            compared=PageTable(
                f"Compared by {metric}",
                header(compared),
                [_compared(compared, number) for number in range(len(compared.rows))],
                texts=len(compared.columns),
                bold=[number for number in range(len(compared.rows)) if compared.is_best(number)],
            ),
            captions=[*compared.caption, *footnotes(compared)],
            header=[*columns, metric, "folder"],
            runs=[
                SweepRun(one.key, [*one.cells, f"{one.run.value:.4f}", one.run.folder.path.name], _link(one.run, page))
                for one in shown
            ],
            unfinished=PageTable("Without results", ["run", "why"], left_out, texts=2) if left_out else None,
            footer="Made by Frostline from the files of the runs; `frostline compare` has more of the table.",
        ),
    )


@dataclass(frozen=True)
class _Ranked:
    """A run, its number by its score from 1 on, and what it has in each column."""

    run: FinishedRun
    key: str
    cells: Sequence[str]

    @property
    def name(self) -> str:
        return f"run {self.key}: {', '.join(self.cells)}: {self.run.value:.4f}"


def _ranked(compared: ComparisonTable, *, larger: bool) -> tuple[list[str], list[_Ranked]]:
    """The columns in which runs differ, seeds and folds among them, and the runs, the best first."""
    placed = [(run, row.setting) for row in compared.rows for run in row.runs]
    placed.sort(key=lambda one: -one[0].value if larger else one[0].value)
    drawn = drawn_keys([run for run, _ in placed], compared.columns)
    ranked = [
        _Ranked(run, str(number + 1), [*setting, *(text_of(run.config.get(key)) for key in drawn)])
        for number, (run, setting) in enumerate(placed)
    ]
    return [*compared.columns, *drawn], ranked


def _compared(compared: ComparisonTable, number: int) -> list[str]:
    """A row of the table that compares; what is not distinguishable from the best is marked."""
    found, place = cells(compared, number), len(compared.columns)
    found[place] += " †" if compared.is_tied(number) else ""
    return found


def _metric(found: Found, spec: ReportSpec) -> tuple[str, Mode | None]:
    """What runs are compared by, and which way is better: as asked for, or the monitor of the first run."""
    if spec.metric is not None:
        return spec.metric, spec.mode
    if not found.folders:
        listed = "".join(f"\n  {name}: {why}" for name, why in found.left_out)
        raise ConfigError(f"None of the runs is finished:{listed}", mend="Train them, or name another sweep.")
    metric, mode = _monitor_of(found.folders[0])
    return metric, spec.mode or mode


def _monitor_of(folder: RunFolder) -> tuple[str, Mode | None]:
    """The monitor of a run, and which of its values is better."""
    config = load_config(folder.config)
    metric = OmegaConf.select(config, "monitor.metric", default=None)
    if metric is None:
        raise ConfigError(f"{folder.path} has no monitor", mend="A report is of a sweep of `train`: name a metric=...")
    mode = OmegaConf.select(config, "monitor.mode")
    return str(metric), Mode(getattr(mode, "name", mode))


def _facts(ranked: Sequence[_Ranked], metric: str, found: Found) -> list[tuple[str, str]]:
    best = ranked[0].run
    return [
        ("runs", f"{len(ranked)} finished" + (f", {len(found.left_out)} without results" if found.left_out else "")),
        ("compared by", metric),
        ("best", f"{best.value:.4f}, {best.folder.path.name}"),
    ]


def _too_many(ranked: Sequence[_Ranked]) -> list[str]:
    return [f"The best {_RUNS} of {len(ranked):,} runs are drawn and listed."] if len(ranked) > _RUNS else []


def _link(run: FinishedRun, page: Path) -> str:
    """The address of a run's own page, relative to ``page``."""
    if not run.folder.report.is_file():
        return ""
    return quote(os.path.relpath(run.folder.report, page.parent))


def _numbers(texts: Sequence[str]) -> list[float] | None:
    """Cells as numbers where all of them are, else None."""
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None


def is_log(values: Sequence[float]) -> bool:
    """Whether numbers are better told apart on a logarithmic scale."""
    return min(values) > 0 and max(values) / min(values) >= _LOG_FROM


def _axis(asked: str | None, runs: Sequence[_Ranked], columns: Sequence[str]) -> int | None:
    """The column of the scatter chart: what is asked for, or the number with most values, a seed only for want of one.

    Raises:
        ConfigError: the runs do not differ in a number of that name.
    """
    cells = [[one.cells[column] for one in runs] for column in range(len(columns))]
    numeric = [column for column in range(len(columns)) if _numbers(cells[column]) is not None]
    if asked is not None:
        named = [columns[column] for column in numeric]
        if asked not in named:
            mend = suggestion(asked, named, known_as="numbers") if named else "Leave axis= out."
            raise ConfigError(f"axis={asked}: the runs do not differ in a number of that name", mend=mend)
        return columns.index(asked)
    rank = {column: (columns[column] not in AVERAGED, len(set(cells[column]))) for column in numeric}
    return max(numeric, key=rank.__getitem__, default=None)


def _scatter(runs: Sequence[_Ranked], column: int, name: str, metric: str) -> Markup:
    values = _numbers([one.cells[column] for one in runs]) or []
    dots = [
        Dot(value, one.run.value, one.name, one.key, best=number == 0)
        for number, (one, value) in enumerate(zip(runs, values, strict=True))
    ]
    return scatter_chart(dots, name, metric, log=is_log(values))


def _parallel(runs: Sequence[_Ranked], columns: Sequence[str], metric: str, *, larger: bool) -> Markup:
    texts = [[one.cells[column] for one in runs] for column in range(len(columns))]
    spreads = [_spread(name, some, _numbers(some)) for name, some in zip(columns, texts, strict=True)]
    scores = [one.run.value for one in runs]
    spreads.append(_spread(metric, [], scores))
    score_places = spreads[-1][1]
    threads = [
        Thread(
            [places[number] for _, places in spreads],
            score_places[number] if larger else 1 - score_places[number],
            one.name,
            one.key,
        )
        for number, one in enumerate(runs)
    ]
    return parallel_chart([axis for axis, _ in spreads], threads)


def _spread(name: str, texts: Sequence[str], numbers: Sequence[float] | None) -> tuple[Axis, list[float]]:
    """An axis and the place of each value on it, from 0 to 1: of numbers by their size, else of names side by side."""
    if numbers is not None:
        log = is_log(numbers)
        scaled = [math.log(value) if log else value for value in numbers]
        low, high = min(scaled), max(scaled)
        places = [(value - low) / (high - low) if high > low else 0.5 for value in scaled]
        at = dict(zip(places, numbers, strict=True))
        kept = _apart(sorted(at))
        return Axis(name, [(place, f"{at[place]:.4g}") for place in kept]), places
    order = list(dict.fromkeys(texts))
    span = max(len(order) - 1, 1)
    where = {text: number / span if len(order) > 1 else 0.5 for number, text in enumerate(order)}
    ticks = [(where[text], text) for text in order[:_NAMES]]
    return Axis(name, ticks), [where[text] for text in texts]


def _apart(places: Sequence[float]) -> list[float]:
    """Those of rising places that leave room for each other, the last among them."""
    kept: list[float] = []
    for place in places:
        if not kept or place - kept[-1] >= 0.08:
            kept.append(place)
    if kept and kept[-1] != places[-1]:
        kept[-1] = places[-1]
    return kept
