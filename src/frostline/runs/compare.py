"""``frostline compare runs=SWEEP``: finished runs as a table with its uncertainty, for the screen and for a paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from frostline.config import spec_of
from frostline.errors import ConfigError, StorageError
from frostline.evaluation.summary import CALIBRATED
from frostline.reports import ComparisonPlot, PlottedRow, comparison_plot
from frostline.runs.compare_pictures import Pictures
from frostline.runs.compare_rows import (
    NO_SPREAD,
    Row,
    best_rows,
    drawn_keys,
    rows_of,
    tests_between,
    with_interval,
)
from frostline.runs.compare_runs import FinishedRun, Found, find_runs, read_runs
from frostline.runs.compare_settings import printable, settings_of
from frostline.runs.compare_tables import (
    ComparisonTable,
    as_latex,
    as_markdown,
    figures,
    footnotes,
    pair_figures,
    run_figures,
    screen_rows,
)
from frostline.runs.folder import make_folder, overrides_hash
from frostline.runs.ledger import counted
from frostline.runs.sweep import write_csv
from frostline.runs.tables import print_table
from frostline.specs import Against, CompareSpec, Mode
from frostline.writing import write_text

_HIGHER = ("accuracy", "f1", "auroc", "precision", "recall", "per_second", "images_per_second")
_LOWER = ("loss", "nll", "brier", "ece", "error", "seconds")


def compare(config: DictConfig) -> ComparisonTable:
    """Print the table, write it as CSV, Markdown and LaTeX beside a plot, and return it.

    Raises:
        ConfigError: a name is no run, no run has the metric, or which way is better is not known.
        StorageError: a file cannot be written.
    """
    spec = spec_of(config, CompareSpec)
    if spec.resamples < 100:
        raise ConfigError(f"resamples={spec.resamples}", mend="An interval takes 100 resamples or more; 2000 is usual.")
    larger = larger_is_better(spec.metric, spec.mode)
    found = find_runs(spec.runs)
    runs = read_runs(found, spec.metric)
    table = table_of(spec, runs, found, larger=larger)
    folder = _folder(spec, found)
    _write(folder, table)
    _show(table, folder)
    return table


def larger_is_better(metric: str, mode: Mode | None) -> bool:
    """Which way a metric is better: as ``mode`` says, or by its name.

    Raises:
        ConfigError: neither says.
    """
    if mode is not None:
        return mode is Mode.max
    split, _, name = metric.rpartition("/")
    name = name.removesuffix(CALIBRATED)
    # a gap is the score of training pictures less that of others: what is better for the score is overfitting here
    overfitting = split == "gap"
    if name.endswith(_HIGHER):
        return not overfitting
    if name.endswith(_LOWER):
        return overfitting
    raise ConfigError(f"metric={metric}: is a larger or a smaller value better?", mend="Add mode=max or mode=min.")


def table_of(spec: CompareSpec, runs: Sequence[FinishedRun], found: Found, *, larger: bool) -> ComparisonTable:
    """What is said of some runs; what is left out of it is told in its notes."""
    columns, settings, rest = settings_of(
        [run.config for run in runs], [run.overrides for run in runs], by=spec.by, config_dirs=spec.config_dirs
    )
    versions, notes = data_versions(runs)
    if versions:
        columns = [*columns, "pictures"]
        settings = [(*cells, version) for cells, version in zip(settings, versions, strict=True)]
    drawn = drawn_keys(runs, columns)
    rows, doubled = rows_of(settings, rest, runs, drawn)
    pictures = Pictures(
        [run for row in rows for run in row.runs], spec.metric, resamples=spec.resamples, seed=spec.seed
    )
    rows = [with_interval(row, pictures) for row in rows]
    best = best_rows(rows, larger=larger)
    comparisons = tests_between(rows, pictures, best=best if spec.against is Against.best else None)
    table = ComparisonTable(spec.metric, columns, rows, best, comparisons)
    notes = [
        *notes,
        *doubled,
        *_looks(runs, spec.metric),
        *_pooled(rest),
        *_apart(table),
        *_turned(table),
        *_several_papers(table),
    ]
    # what jobs of someone else's sweep were called and how they failed
    notes += [printable(f"left out: {name}: {why}") for name, why in found.left_out]
    return replace(table, caption=_caption(spec, table, drawn, larger=larger), notes=notes)


def data_versions(runs: Sequence[FinishedRun]) -> tuple[list[str], list[str]]:
    """A letter for the pictures of each run where runs whose configs name the same data had others, and a note on it.

    Both are empty where each config of data had one fingerprint alone, as it should.
    """
    known: dict[str, list[str]] = {}
    letters = []
    for run in runs:
        named = sorted((key, repr(value)) for key, value in run.config.items() if key.startswith("data."))
        fingerprints = known.setdefault(repr(named), [])
        if run.data is not None and run.data not in fingerprints:
            fingerprints.append(run.data)
        letters.append("?" if run.data is None else chr(ord("A") + fingerprints.index(run.data) % 26))
    if all(len(fingerprints) <= 1 for fingerprints in known.values()):
        return [], []
    listed = "; ".join(
        ", ".join(f"{chr(ord('A') + index % 26)} {print_[:12]}" for index, print_ in enumerate(fingerprints))
        for fingerprints in known.values()
        if len(fingerprints) > 1
    )
    said = f"the pictures or labels are not the same in all runs, though their configs are; fingerprints: {listed}"
    return letters, [said]


def _looks(runs: Sequence[FinishedRun], metric: str) -> list[str]:
    if not metric.startswith("test/"):
        return []
    splits = {run.scored_on: run.folder for run in runs if run.scored_on is not None}
    most = max((counted(folder, split).count for split, folder in splits.items()), default=0)
    if most < 2:
        return []
    which = "the test split has" if len(splits) == 1 else "one of the test splits has"
    return [f"{which} been scored {most} times; whoever chooses among these runs does so by metric=val/..."]


def _pooled(rest: Sequence[tuple[str, ...]]) -> list[str]:
    if len(set(rest)) <= 1:
        return []
    return [
        "a row takes runs together that differ in more than seeds and folds: its spread is not that of chance alone"
    ]


def _apart(table: ComparisonTable) -> list[str]:
    first = table.rows[0].block
    others = [table.name(number) for number, row in enumerate(table.rows) if row.block != first]
    if not others:
        return []
    return [
        f"scored on other pictures than the first row, and compared with their like alone: {', '.join(others)}",
    ]


def _turned(table: ComparisonTable) -> list[str]:
    named = [table.name(number) for number in range(len(table.rows)) if table.verdict(number) == "unclear"]
    return [
        f"{name} is ahead over the runs that it shares with the best row, and behind over all runs of both: which one "
        "is better is not known before both have the same runs"
        for name in named
    ]


def _several_papers(table: ComparisonTable) -> list[str]:
    named = [(table.name(number), len(row.papers)) for number, row in enumerate(table.rows)]
    return [
        f"the runs of {name} name {count} published results, so none is shown" for name, count in named if count > 1
    ]


def _caption(spec: CompareSpec, table: ComparisonTable, drawn: Sequence[str], *, larger: bool) -> list[str]:
    over = f" over {', '.join(drawn)}" if drawn else ""
    better = "higher" if larger else "lower"
    said = [f"{spec.metric} ({better} is better): mean and standard deviation{over}, n runs."]
    methods = dict.fromkeys(row.method for row in table.rows)
    said.append(f"95 % interval of the mean: {'; '.join(methods)}.")
    if any("corrected" in method for method in methods):
        said.append(
            "The splits share training pictures and are no independent samples; the variance is corrected for it "
            "(Nadeau and Bengio 2003)."
        )
    if any(one.adjusted is not None for one in table.comparisons):
        said += _tests(spec, table)
    return said


def _tests(spec: CompareSpec, table: ComparisonTable) -> list[str]:
    tested = [one for one in table.comparisons if one.adjusted is not None]
    over_runs = dict.fromkeys(one.over_runs for one in tested if one.p_runs is not None)
    over_pictures = dict.fromkeys(one.over_pictures for one in tested if one.p_pictures is not None)
    kinds = [f"{' or '.join(over_runs)} over runs"] if over_runs else []
    kinds += [f"{' or '.join(over_pictures)} over pictures"] if over_pictures else []
    single = "Single runs: this is about these models; with other seeds the settings may rank otherwise."
    larger = "; the larger p-value" if len(kinds) == 2 else ""
    which = "each row against the best" if spec.against is Against.best else "all pairs"
    untested = any(table.verdict(number) == "untested" for number in range(len(table.rows)))
    alone = any(one.over_runs.endswith(NO_SPREAD) for one in tested)
    return [
        f"Tests of {which}, two-sided: {' and '.join(kinds)}{larger}, Holm-corrected for {len(tested)} "
        f"{'comparison' if len(tested) == 1 else 'comparisons'}.",
        *([] if any(one.over_runs for one in tested) else [single]),
        *(["Where all shared runs differ by the same amount, the pictures alone decide."] if alone else []),
        "Bold: the best; †: not distinguishable from it at 5 %.",
        *(["No p-value: nothing to test it by, since neither runs nor pictures pair."] if untested else []),
    ]


def _folder(spec: CompareSpec, found: Found) -> Path:
    if spec.output is not None:
        return Path(spec.output).expanduser().absolute()
    named = [spec.runs] if isinstance(spec.runs, str) else list(spec.runs)
    if [Path(name).expanduser().absolute() for name in named] == found.sweeps[:1]:
        return found.sweeps[0] / "compare"
    return make_folder(Path("outputs").absolute() / "compare", overrides_hash(named))


def _write(folder: Path, table: ComparisonTable) -> None:
    stem = re.sub(r"[^\w.-]+", "_", table.metric)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / f"{stem}.csv", *figures(table))
        write_csv(folder / f"{stem}_runs.csv", *run_figures(table))
        if table.comparisons:
            write_csv(folder / f"{stem}_tests.csv", *pair_figures(table))
        write_text(folder / f"{stem}.md", as_markdown(table))
        write_text(folder / f"{stem}.tex", as_latex(table))
        comparison_plot(folder / f"{stem}.png", folder / f"{stem}.svg", _plot(table))
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error}", mend="Choose another place: output=FOLDER."
        ) from error


def _plot(table: ComparisonTable) -> ComparisonPlot:
    rows = [_plotted(table, number, row) for number, row in enumerate(table.rows)]
    note = "bars: 95 % interval of the mean; dots: single runs"
    note += "; diamonds: published" if table.sources else ""
    note += "; †: not distinguishable from the best" if any(row.tied for row in rows) else ""
    return ComparisonPlot(table.metric, rows, note)


def _plotted(table: ComparisonTable, number: int, row: Row) -> PlottedRow:
    paper = table.paper(number)
    return PlottedRow(
        table.name(number),
        row.mean,
        row.interval,
        row.values,
        best=table.is_best(number),
        tied=table.is_tied(number),
        paper=None if paper is None else paper.value,
    )


def _show(table: ComparisonTable, folder: Path) -> None:
    print_table(*screen_rows(table))
    for line in (*table.caption, *footnotes(table)):
        print(line)
    for note in table.notes:
        print(f"note: {note}")
    print(f"compare: {folder}", flush=True)
