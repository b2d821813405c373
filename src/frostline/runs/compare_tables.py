"""A comparison as people and programs read it: on the screen, as CSV, as Markdown and as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from frostline.runs.compare_rows import ALPHA, Comparison, Row
from frostline.runs.sweep import markdown
from frostline.specs import PaperSpec

NONE = "-"
_SIGNED = re.compile(r"[+-]\d[\d.]*")


@dataclass(frozen=True)
class ComparisonTable:
    """What is said of some runs.

    Attributes:
        metric: that is compared.
        columns: names of the settings.
        rows: in the order of the runs.
        best: block to the number of its best row.
        comparisons: the tests that were made.
        caption: sentences that belong below the table wherever it goes.
        notes: what else a person should know: what was left out, what does not fit together.
    """

    metric: str
    columns: Sequence[str]
    rows: Sequence[Row]
    best: dict[int, int]
    comparisons: Sequence[Comparison]
    caption: Sequence[str] = ()
    notes: Sequence[str] = ()

    def is_best(self, number: int) -> bool:
        """Whether a row is the best of its block, which has others."""
        block = self.rows[number].block
        return self.best[block] == number and sum(row.block == block for row in self.rows) > 1

    def against_best(self, number: int) -> tuple[float, float | None] | None:
        """How far a row is above the best one, and the adjusted p-value; None for the best one."""
        best = self.best[self.rows[number].block]
        for one in self.comparisons:
            if {one.first, one.second} == {best, number}:
                return (one.difference if one.first == number else -one.difference), one.adjusted
        return None

    def is_tied(self, number: int) -> bool:
        """Whether a row is not distinguishable from the best one."""
        found = self.against_best(number)
        return found is not None and found[1] is not None and found[1] >= ALPHA

    def verdict(self, number: int) -> str:
        """How a row stands to the best one.

        ``best``, ``tied``, ``worse``, ``unclear`` where the runs that both have say the contrary of their means, or
        ``untested`` where nothing pairs the row with the best one.
        """
        if self.is_best(number):
            return "best"
        found = self.against_best(number)
        if found is None or found[1] is None:
            return "untested" if len(self.rows) > 1 else ""
        if self.is_tied(number):
            return "tied"
        row = self.rows[number]
        behind = row.mean - self.rows[self.best[row.block]].mean
        return "worse" if found[0] * behind > 0 else "unclear"

    def name(self, number: int) -> str:
        """A row in a few words."""
        cells = self.rows[number].setting
        if len(cells) == 1:
            return cells[0]
        return ", ".join(f"{key}={cell}" for key, cell in zip(self.columns, cells, strict=True)) or "all runs"

    def paper(self, number: int) -> PaperSpec | None:
        """The published result for a row; None where its runs name none, or several."""
        named = self.rows[number].papers
        return named[0] if len(named) == 1 else None

    @property
    def sources(self) -> list[str]:
        """Where published results are from, each once."""
        papers = (self.paper(number) for number in range(len(self.rows)))
        return list(dict.fromkeys(str(paper.source) for paper in papers if paper is not None))


def header(table: ComparisonTable) -> list[str]:
    """The titles of the columns for a person."""
    compared = ["minus the best", "p (Holm)"] if len(table.rows) > 1 else []
    published = ["paper", "minus paper"] if table.sources else []
    return [*table.columns, table.metric, "std", "95 % interval", "n", *compared, *published]


def cells(table: ComparisonTable, number: int) -> list[str]:
    """A row for a person, as plain text."""
    row, digits = table.rows[number], _digits(table.metric)
    spread = NONE if row.deviation is None else f"{row.deviation:.{digits}f}"
    interval = NONE if row.interval is None else f"{row.interval[0]:.{digits}f} to {row.interval[1]:.{digits}f}"
    found = [*row.setting, f"{row.mean:.{digits}f}", spread, interval, str(len(row.runs))]
    if len(table.rows) > 1:
        difference, p = table.against_best(number) or (None, None)
        found += [NONE if difference is None else _signed(difference, digits), _p(p)]
    if table.sources:
        paper = table.paper(number)
        if paper is None or paper.value is None:
            return [*found, NONE, NONE]
        mark = _letter(table.sources.index(str(paper.source)))
        found += [f"{paper.value:.{digits}f} [{mark}]", _signed(row.mean - paper.value, digits)]
    return found


def _digits(metric: str) -> int:
    return 1 if metric.startswith("seconds") or "per_second" in metric else 4


def _signed(value: float, digits: int) -> str:
    # without the sign of a zero
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _p(value: float | None) -> str:
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else str(number + 1)


def screen_rows(table: ComparisonTable) -> tuple[list[str], list[list[str]]]:
    """Header and rows for the screen; the last column says how each row stands to the best one."""
    said = {"tied": "† not distinguishable from the best"}
    rows = []
    for number in range(len(table.rows)):
        verdict = table.verdict(number)
        rows.append([*cells(table, number), said.get(verdict, verdict)])
    return [*header(table), ""], rows


def footnotes(table: ComparisonTable) -> list[str]:
    """Where the published results are from."""
    return [f"[{_letter(number)}] {source}" for number, source in enumerate(table.sources)]


def as_markdown(table: ComparisonTable) -> str:
    """The table as Markdown: the best row's mean in bold, † at what is not distinguishable from it."""
    place = len(table.columns)
    rows = []
    for number in range(len(table.rows)):
        row = cells(table, number)
        row[place] = f"**{row[place]}**" if table.is_best(number) else row[place]
        row[place] += " †" if table.is_tied(number) else ""
        rows.append(row)
    below = [*table.caption, *footnotes(table), *(f"Note: {note}" for note in table.notes)]
    return markdown(header(table), rows) + "\n" + "\n\n".join(below) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "†": r"$^{\dagger}$",
}


def latex_text(text: str) -> str:
    """Text in which every character means itself to LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def as_latex(table: ComparisonTable) -> str:
    """The table as LaTeX with booktabs, ready to be put into a paper."""
    titles = header(table)
    place = len(table.columns)
    lines = []
    for number in range(len(table.rows)):
        row = [_latex_cell(cell) if at >= place else latex_text(cell) for at, cell in enumerate(cells(table, number))]
        row[place] = rf"\textbf{{{row[place]}}}" if table.is_best(number) else row[place]
        row[place] += _LATEX["†"] if table.is_tied(number) else ""
        # what ends the line above would take these for its own: \\[LENGTH] and \\*
        start = "{}" if row[0].startswith(("[", "*")) else ""
        lines.append(start + " & ".join(row) + r" \\")
    caption = latex_text(" ".join([*table.caption, *footnotes(table)]))
    label = table.metric.replace("/", "-").replace("_", "-")
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            *(f"% {note}" for note in table.notes),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{'l' * place}{'r' * (len(titles) - place)}}}",
            r"\toprule",
            " & ".join(map(latex_text, titles)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_cell(text: str) -> str:
    """A figure: signs are those of mathematics, and a published one has its letter above."""
    if text == NONE:
        return "--"
    found = latex_text(text).replace(" [", "$^{").replace("]", "}$")
    return _SIGNED.sub(r"$\g<0>$", found).replace(r"\textless{} ", "$<$")


def figures(table: ComparisonTable) -> tuple[list[str], list[list[object]]]:
    """Header and rows for a program: numbers as they are, an empty cell where there is none."""
    names = [*table.columns, "metric", "mean", "std", "low", "high", "interval", "n", "minus_best", "p_holm", "verdict"]
    rows: list[list[object]] = []
    for number, row in enumerate(table.rows):
        difference, p = table.against_best(number) or (None, None)
        paper = table.paper(number)
        rows.append(
            [
                *row.setting,
                table.metric,
                row.mean,
                row.deviation,
                *(row.interval or (None, None)),
                row.method,
                len(row.runs),
                difference,
                p,
                table.verdict(number),
                *((None, None) if paper is None else (paper.value, paper.source)),
            ]
        )
    return [*names, "paper", "source"], rows


def pair_figures(table: ComparisonTable) -> tuple[list[str], list[list[object]]]:
    """Each test that was made, for a program."""
    names = [
        *("first", "second", "difference", "shared_runs"),
        *("test_over_runs", "p_over_runs", "test_over_pictures", "p_over_pictures", "p", "p_holm"),
    ]
    rows: list[list[object]] = [
        [
            *(table.name(one.first), table.name(one.second), one.difference, one.units),
            *(one.over_runs, one.p_runs, one.over_pictures, one.p_pictures, one.p, one.adjusted),
        ]
        for one in table.comparisons
    ]
    return names, rows


def run_figures(table: ComparisonTable) -> tuple[list[str], list[list[object]]]:
    """Each run and the row that it is counted in, for a program."""
    rows: list[list[object]] = [
        [*row.setting, run.value, str(run.folder.path)] for row in table.rows for run in row.runs
    ]
    return [*table.columns, table.metric, "folder"], rows
