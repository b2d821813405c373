from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "bench" / "few_labels.py"


def test_the_comparison_on_few_labels_says_how_it_is_run() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert "--labels" in done.stdout
    assert "pre-trained" in done.stdout
