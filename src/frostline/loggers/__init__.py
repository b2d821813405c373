"""Loggers that go on where a resumed run does, and what is logged while an epoch lasts."""

from frostline.loggers.metrics_file import MetricsFile
from frostline.loggers.step_log import log_step
from frostline.loggers.tensorboard_files import TensorBoardFiles

__all__ = ["MetricsFile", "TensorBoardFiles", "log_step"]
