"""``frostline inspect``: the tables, the files and the plot of a plan."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from frostline.config import compose
from frostline.runs.inspect import inspect

TINY = ["backbone.name=test_resnet", "backbone.weights=none", "trainer=cpu", "data.labels_per_class=10"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def look(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def at(*overrides: str) -> tuple[Path, str]:
        inspect(compose("inspect", [*TINY, f"output={tmp_path}", *overrides]))
        (folder,) = (tmp_path / "inspect").iterdir()
        return folder, capsys.readouterr().out

    return at


def test_the_tables_say_who_learns_when_how_fast_and_at_what_cost(look) -> None:
    folder, shown = look("freeze=lp_ft", "freeze.lr_decay=0.5", "trainer.max_epochs=4", "optimizer.weight_decay=0.05")
    depth, phases = rows(folder / "depth.csv"), rows(folder / "phases.csv")
    assert [row["group"] for row in depth] == ["stem", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "head"]
    assert [row["x lr"] for row in depth] == ["0.0312", "0.0625", "0.125", "0.25", "0.5", "1"]
    assert depth[-1]["learns in"] == "probe, full"
    assert depth[0]["learns in"] == "full"
    assert depth[0]["peak lr"] == f"{1e-3 * 0.1 * 0.5**5:.3g}"
    assert depth[0]["first parameter"] == "conv1.0.weight"
    assert depth[0]["weight decay"].startswith("0.05 of 9")
    assert [row["phase"] for row in phases] == ["probe", "full"]
    assert phases[0]["frost line"] == "5 (head)"
    assert phases[1]["cost of a full epoch"] == "100%"
    assert int(phases[0]["cost of a full epoch"].rstrip("%")) < 50
    assert float(phases[0]["activations a picture"].split()[0]) < float(phases[1]["activations a picture"].split()[0])
    assert "Phases" in shown
    assert str(folder) in shown


def test_a_walk_has_a_row_for_each_stage_and_the_plot_is_there(look) -> None:
    folder, _ = look("freeze=gradual", "trainer.max_epochs=10")
    phases = rows(folder / "phases.csv")
    assert [row["phase"] for row in phases] == [f"thaw {stage}/6" for stage in range(1, 7)]
    costs = [int(row["cost of a full epoch"].strip("~%")) for row in phases]
    assert costs == sorted(costs)
    with Image.open(folder / "thaw_plan.png") as picture:
        assert picture.width > 1000
    assert "<svg" in (folder / "thaw_plan.svg").read_text(encoding="utf-8")


def test_a_stray_early_tensor_that_drags_the_frost_line_is_told(look) -> None:
    wanted = "freeze.phases.probe.train='head + path:pos_embed'"
    _, shown = look("freeze=linear_probe", "backbone.name=vit_tiny_patch16_224", "data.size=224", wanted)
    assert "note: phase probe" in shown
    assert "pos_embed" in shown


def test_one_that_is_meant_is_not(look) -> None:
    _, shown = look("freeze=bitfit")
    assert "note: phase" not in shown
