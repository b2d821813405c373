from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from pages import Page, assert_loads_nothing, chromium, overflow_at, title_of

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

EVIL = "<img src=x onerror=alert(1)>'\""


def page() -> SweepPage:
    axes = [Axis(EVIL, [(0, "full"), (1, EVIL)]), Axis("lr", [(0, "0.001"), (1, "0.1")]), Axis("acc", [(0, "0.5")])]
    threads = [Thread([0, 0.5, 1], 1, EVIL, "1"), Thread([1, 0, 0], 0, "b", "2")]
    dots = [Dot(1e-3, 0.9, EVIL, "1", best=True), Dot(1e-1, 0.5, "b", "2")]
    return SweepPage(
        title=f"Sweep {EVIL}",
        facts=[("runs", "2")],
        notes=[EVIL],
        parallel=parallel_chart(axes, threads),
        scatter=scatter_chart(dots, EVIL, "acc", log=True),
        compared=PageTable("Compared", ["freeze", "acc"], [[EVIL, "0.9"]], bold=[0]),
        captions=[EVIL],
        header=["freeze", "acc"],
        runs=[SweepRun("1", [EVIL, "0.9"], "a%22b/report.html"), SweepRun("2", ["b", "0.5"])],
        unfinished=PageTable("Without results", ["run", "why"], [[EVIL, EVIL]], texts=2),
        footer=EVIL,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    sweep_page(tmp_path / "report.html", page())
    return tmp_path / "report.html"


def test_it_is_well_formed_loads_nothing_and_runs_its_own_script_alone(path: Path) -> None:
    found = Page(path)
    assert_loads_nothing(found)
    assert len(found.all("script")) == 1
    script = found.source.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in found.source
    assert not found.all("img")
    assert found.text.count("onerror") >= 7


def test_each_run_can_be_chosen_from_the_keyboard(path: Path) -> None:
    found = Page(path)
    assert [one["data-run"] for one in found.all("button")] == ["1", "2"]
    assert {one["data-run"] for one in found.all("polyline")} == {"1", "2"}
    assert [one["href"] for one in found.all("a")] == ["a%22b/report.html"]


@pytest.mark.slow
def test_in_a_browser_it_is_quiet_narrow_and_a_choice_stands_out(path: Path) -> None:
    chromium(path)
    assert overflow_at(path, 360) == 0
    press = "(document.querySelectorAll('button')[1].click(), [...document.querySelectorAll('.chosen')]"
    assert title_of(chromium(path, probe=f"{press}.map(one => one.tagName).join())")) == "polyline,circle,TR"
