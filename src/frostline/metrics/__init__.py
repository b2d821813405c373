"""Scores of a classification, over torchmetrics."""

from frostline.metrics.split import SplitScores, makes_sense

__all__ = ["SplitScores", "makes_sense"]
