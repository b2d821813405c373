from __future__ import annotations

import pytest

from frostline.data import progress
from frostline.data.progress import Progress


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (10.0, "looking: 600 of 1,000, 50 a second, about 8 s left"),
        (500.0, "looking: 600 of 1,000, 1 a second, about 7 min left"),
        (50_000.0, "looking: 600 of 1,000, 0.01 a second, about 11 h 7 min left"),
    ],
)
def test_it_says_the_rate_and_the_time_left_of_what_was_done_now(
    seconds: float, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress("looking", 1000, before=100)
    shown.at(101)
    assert capsys.readouterr().err == ""
    now[0] = seconds
    shown.at(600)
    shown.end()
    assert capsys.readouterr().err == f"{line}\n"
