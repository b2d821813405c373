"""The figure of the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from contest import Contest, entrants_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {"own": "#1f6fb2", "peer": "#9aa5b1", "bound": "#dfe3e8"}
MEASURES = {
    "probe": ("Linear probe: seconds", "wall"),
    "lp_ft": ("LP-FT: seconds", "wall"),
    "full": ("Everything learns: pictures a second", "rate"),
}


def draw(contests: Sequence[Contest], path: Path) -> None:
    """Write an SVG with a panel for each contest: a bar for each entrant, the median over its repeats."""
    heights = [max(1, len(_bars(contest))) for contest in contests]
    figure = Figure(figsize=(8, 0.6 * len(contests) + 0.3 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(contests), squeeze=False, height_ratios=heights)[:, 0]
    for contest, panel in zip(contests, panels, strict=True):
        _draw_panel(contest, panel)
    # text as text keeps the file small; nothing in it depends on when it was made
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "frostline"}):
        figure.savefig(path, metadata={"Date": None})


def _bars(contest: Contest) -> list[tuple[str, str, float]]:
    what = MEASURES[contest.kind][1]
    return [
        (one.name.replace("`", ""), one.role, contest.middle(one.name, what))
        for one in entrants_of(contest.kind)
        if contest.results(one.name)
    ]


def _draw_panel(contest: Contest, panel: Axes) -> None:
    panel.set_title(MEASURES[contest.kind][0], loc="left", fontsize=10)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.tick_params(left=False, bottom=False, labelbottom=False, labelsize=9)
    if bars := _bars(contest):
        names, roles, values = zip(*bars, strict=True)
        drawn = panel.barh(names, values, color=[COLORS[role] for role in roles])
        panel.bar_label(drawn, [f"{value:.3g}" for value in values], padding=3, fontsize=9)
        panel.invert_yaxis()
        panel.margins(x=0.1)
