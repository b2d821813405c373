"""How numbers of bytes read."""

from __future__ import annotations

import pytest

from frostline.runs.sizes import readable_size


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (5, "0.01 kB"),
        (7_680, "7.68 kB"),
        (999_900, "1.00 MB"),
        (9_996_000, "10.0 MB"),
        (12_345_678, "12.3 MB"),
        (340e6, "340 MB"),
        (98_765_432_100, "98.8 GB"),
        (1.2e12, "1200 GB"),
    ],
)
def test_three_significant_digits(count: float, shown: str) -> None:
    assert readable_size(count) == shown
