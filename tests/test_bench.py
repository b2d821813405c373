from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "scripts" / "bench"
PEERS = BENCH / "peers"


def test_the_comparison_on_few_labels_says_how_it_is_run() -> None:
    done = subprocess.run(
        [sys.executable, BENCH / "few_labels.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "--labels" in done.stdout
    assert "pre-trained" in done.stdout


@pytest.mark.slow
def test_the_probe_on_features_that_are_kept_says_how_it_is_run() -> None:
    done = subprocess.run(
        [sys.executable, BENCH / "cached_probe.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "--pictures" in done.stdout
    assert "forward pass" in done.stdout


@pytest.mark.slow
def test_the_forward_engine_beside_the_plain_way_says_how_it_is_run() -> None:
    done = subprocess.run([sys.executable, BENCH / "engine.py", "--help"], capture_output=True, text=True, check=True)
    assert "--device" in done.stdout
    assert "pictures a second" in done.stdout


@pytest.mark.slow
def test_the_grid_of_heads_says_how_it_is_run() -> None:
    done = subprocess.run([sys.executable, BENCH / "grid.py", "--help"], capture_output=True, text=True, check=True)
    assert "--heads" in done.stdout
    assert "separate" in done.stdout


@pytest.mark.slow
def test_the_reading_of_pictures_is_compared(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (90, 60), (200, 100, 50)).save(tmp_path / name / "0.jpg")
    command = [sys.executable, BENCH / "decode.py", "--folder", tmp_path, "--size", "32", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")]
    assert [row for row in rows[2:] if row.startswith("Frostline")] == rows[3:]
    assert rows[2:4] == ["ImageFolder, Pillow", "Frostline"]


def test_the_proofs_on_the_peers_say_how_they_are_run() -> None:
    done = subprocess.run([PEERS / "run", "--help"], capture_output=True, text=True, check=True)
    assert "--only" in done.stdout


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([\w.+-]+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE))


def test_the_peers_run_with_the_versions_that_frostline_runs_with() -> None:
    own = pins(PEERS / "requirements.txt")
    locked = pins(ROOT / "requirements.txt")
    assert own.pop("finetuning-scheduler")
    assert own == {name: locked[name] for name in own}
    assert "lightning" in own


@pytest.fixture
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers_table", PEERS / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(how: str, holds: bool, **more: Any) -> dict[str, Any]:
    return {"setting": "a", "proof": "ranks", "how": how, "holds": holds, "apart": 0, "epochs": [], **more}


def test_a_proof_that_fails_is_bold_and_ways_that_agree_share_a_cell(table: ModuleType) -> None:
    assert table.cell([row("one", True), row("other", True)]) == "0"
    failed = row("other", False, error="a | b")
    assert table.cell([row("one", True), failed]) == "one: 0<br>other: **a \\| b**"
