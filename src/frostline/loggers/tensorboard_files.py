"""TensorBoard files, with the numbers of a step in one record."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor


class TensorBoardFiles(TensorBoardLogger):
    """Lightning's, which writes a record for each number: for the learning rates of 20 depth groups, 1.4 ms a time."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Writes numbers and scalar tensors as one record; mappings of numbers and the like as Lightning does."""
        prefix = f"{self._prefix}{self.LOGGER_JOIN_CHAR}" if self._prefix else ""
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        numbers = {name: value for name, value in values.items() if isinstance(value, Real)}
        if numbers:
            records = [Summary.Value(tag=prefix + name, simple_value=float(value)) for name, value in numbers.items()]
            self.experiment._get_file_writer().add_summary(Summary(value=records), step)
        if others := {name: value for name, value in values.items() if name not in numbers}:
            super().log_metrics(others, step)
