"""The load test of ``serve``, small: what many clients get is what the run has written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import frostline

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "serve_load.py"


@pytest.mark.slow
def test_many_clients_get_the_rows_of_the_run_and_none_is_lost(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    run = frostline.train([*tiny, "data=folder", f'data.root="{pictures}"', f"output={tmp_path}", "test=true"])
    command = [sys.executable, SCRIPT, run.path, "--root", pictures, "--clients", "8", "--requests", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| answered | 54 |" in done.stdout
    assert "| refused, as it should be | 6 |" in done.stdout
    (difference,) = re.findall(r"largest difference of a probability \| (\S+) \|", done.stdout)
    assert float(difference) < 1e-5
    assert "lost" not in done.stdout
