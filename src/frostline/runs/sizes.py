"""How numbers of bytes read."""

from __future__ import annotations


def readable_size(count: float) -> str:
    """A number of bytes in kB, MB or GB, with three significant digits: ``7.68 kB``, ``12.3 MB``, ``340 GB``."""
    unit, scale = next(((unit, scale) for unit, scale in _UNITS if count >= 0.9995 * scale), _UNITS[-1])
    value = count / scale
    # what rounds up to 10 or 100 has a digit less behind the point
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
