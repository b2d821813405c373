"""Scores of a classification, over torchmetrics."""

from frostline.metrics.present import Auroc, BalancedAccuracy
from frostline.metrics.split import SplitScores, makes_sense

__all__ = ["Auroc", "BalancedAccuracy", "SplitScores", "makes_sense"]
