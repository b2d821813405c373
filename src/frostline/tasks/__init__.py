"""LightningModules, and the losses they minimise."""

from frostline.tasks.classification import ClassificationTask
from frostline.tasks.corruption import Corruption
from frostline.tasks.gathering import take_buffers_of_first
from frostline.tasks.losses import BinaryCrossEntropy, FocalLoss, balanced_weights, effective_weights
from frostline.tasks.pretraining import PretrainingTask
from frostline.tasks.randomness import stateless_seed
from frostline.tasks.regularization import L2SP, NoRegularizer
from frostline.tasks.scoring import Predictions, ScoringTask

__all__ = [
    "L2SP",
    "BinaryCrossEntropy",
    "ClassificationTask",
    "Corruption",
    "FocalLoss",
    "NoRegularizer",
    "Predictions",
    "PretrainingTask",
    "ScoringTask",
    "balanced_weights",
    "effective_weights",
    "stateless_seed",
    "take_buffers_of_first",
]
