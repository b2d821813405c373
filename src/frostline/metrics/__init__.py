"""Scores of a classification, over torchmetrics."""

from frostline.metrics.present import Auroc, BalancedAccuracy
from frostline.metrics.split import SplitScores, TrainingScores, makes_sense

__all__ = ["Auroc", "BalancedAccuracy", "SplitScores", "TrainingScores", "makes_sense"]
