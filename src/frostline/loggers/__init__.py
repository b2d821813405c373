"""Loggers that go on where a resumed run does."""

from frostline.loggers.metrics_file import MetricsFile

__all__ = ["MetricsFile"]
