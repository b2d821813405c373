"""``frostline inspect``: the tables, the files and the plot of a plan."""

from __future__ import annotations

import csv
import math
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
    assert [float(row["lr_factor"]) for row in depth] == [0.5**power for power in (5, 4, 3, 2, 1, 0)]
    assert [row["phases"] for row in depth] == ["full"] * 5 + ["probe; full"]
    assert float(depth[0]["peak_lr"]) == pytest.approx(1e-3 * 0.1 * 0.5**5)
    assert float(depth[-1]["peak_lr"]) == pytest.approx(1e-3)
    assert depth[0]["first_parameter"] == "conv1.0.weight"
    assert float(depth[0]["weight_decay"]) == 0.05
    assert 0.9 < float(depth[0]["decayed_share"]) < 1
    assert [(row["phase"], row["stage"], row["frost_group"]) for row in phases] == [
        ("probe", "1", "head"),
        ("full", "1", "stem"),
    ]
    assert [float(row["peak_lr"]) for row in phases] == pytest.approx([1e-3, 1e-4])
    assert float(phases[1]["relative_cost"]) == 1
    assert float(phases[0]["relative_cost"]) < 0.5
    assert int(phases[0]["activation_bytes"]) < int(phases[1]["activation_bytes"])
    assert [row["estimated"] for row in phases] == ["False", "False"]
    assert "probe, full" in shown
    assert " kB" in shown
    assert str(folder) in shown


def test_what_never_learns_has_no_rate_and_no_decay(look) -> None:
    folder, shown = look("freeze=linear_probe", "optimizer.weight_decay=0.05")
    stem, *_, head = rows(folder / "depth.csv")
    assert (float(stem["peak_lr"]), stem["decayed_share"], stem["phases"]) == (0, "", "")
    assert 0.9 < float(head["decayed_share"]) < 1
    line = next(line for line in shown.splitlines() if "conv1.0.weight" in line)
    assert "frozen" in line
    assert line.rstrip(" │|").endswith("-")


def test_a_walk_has_a_row_for_each_stage_and_the_plot_is_there(look) -> None:
    folder, _ = look("freeze=gradual", "trainer.max_epochs=10", "lr=cosine")
    phases, depth = rows(folder / "phases.csv"), rows(folder / "depth.csv")
    assert [(row["phase"], row["stage"]) for row in phases] == [("thaw", str(stage)) for stage in range(1, 7)]
    costs = [float(row["relative_cost"]) for row in phases]
    assert costs == sorted(costs)
    assert [row["estimated"] for row in phases].count("False") == 5
    assert {phases[0]["estimated"], phases[-1]["estimated"]} == {"False"}
    # the curve spans the walk, so that a late stage has come down from the base rate
    peaks = [float(row["peak_lr"]) for row in phases]
    assert peaks == sorted(peaks, reverse=True)
    warmup, start, end = int(phases[0]["warmup"]), int(phases[-1]["start"]), int(phases[-1]["end"])
    assert peaks[-1] == pytest.approx(1e-3 * (1 + math.cos(math.pi * (start - warmup) / (end - warmup))) / 2)
    assert peaks[-1] < 0.7e-3
    assert 0 < float(depth[0]["peak_lr"]) <= peaks[-1]
    with Image.open(folder / "thaw_plan.png") as picture:
        assert picture.width > 1000
    assert "<svg" in (folder / "thaw_plan.svg").read_text(encoding="utf-8")
    assert "test_resnet, as planned" in (folder / "thaw_plan.svg").read_text(encoding="utf-8")


def test_a_walk_that_gradients_move_is_shown_as_a_plan(look) -> None:
    folder, shown = look("freeze=adaptive", "trainer.max_epochs=10")
    phases = rows(folder / "phases.csv")
    assert {row["estimated"] for row in phases} == {"True"}
    assert f"0 to ~{phases[0]['end']}" in shown
    assert f"~{phases[1]['start']} to ~{phases[1]['end']}" in shown
    assert f"~{phases[-1]['start']} to {phases[-1]['end']}" in shown
    assert "~100%" in shown
    assert "when gradients settle: spread evenly here" in (folder / "thaw_plan.svg").read_text(encoding="utf-8")


def test_biases_that_learn_everywhere_are_not_frozen(look) -> None:
    folder, shown = look("freeze=bitfit")
    depth = rows(folder / "depth.csv")
    assert [row["partly"] for row in depth] == ["biases"] * 5 + [""]
    assert [float(row["peak_lr"]) for row in depth] == pytest.approx([1e-3] * 6)
    assert "note: phase" not in shown


def test_an_adapter_trains_groups_whole_and_drags_nothing(look) -> None:
    pytest.importorskip("peft")
    folder, shown = look("freeze=full", "adapter=lora")
    depth = [row for row in rows(folder / "depth.csv") if row["phases"] or row["partly"]]
    assert len(depth) > 3
    assert {row["phases"] for row in depth} == {"full"}
    assert [float(row["peak_lr"]) for row in depth] == pytest.approx([1e-3] * len(depth))
    assert "note: phase" not in shown


def test_a_stray_early_tensor_that_drags_the_frost_line_is_told(look) -> None:
    wanted = "freeze.phases.probe.train='head + path:pos_embed'"
    _, shown = look("freeze=linear_probe", "backbone.name=vit_tiny_patch16_224", "data.size=224", wanted)
    assert "note: phase probe" in shown
    assert "pos_embed" in shown


def test_it_says_which_phases_compute_features_once_and_why_not(look) -> None:
    folder, shown = look("freeze=lp_ft", "augment=none", "trainer.max_epochs=4", "data.size=32")
    phases = rows(folder / "phases.csv")
    assert phases[0]["cached"].startswith(
        "yes, before fc: 100 pictures x 96 x 4 bytes = 38.4 kB; 2 epochs > 1 view; 100.0% of a forward pass is frozen"
    )
    assert phases[1]["cached"].startswith("no: its frost line is at the stem: ")
    assert all(f"cached    {row['phase']}: {row['cached']}" in shown for row in phases)
