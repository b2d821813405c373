"""Predictions of a finished model, as tables, and what they say of it."""

from frostline.evaluation.calibration import Temperature, at_temperature, fit_temperature
from frostline.evaluation.intervals import Estimate
from frostline.evaluation.predicting import label_pictures
from frostline.evaluation.speed import Speed, measure_speed
from frostline.evaluation.summary import ClassScores, Evaluation, evaluate_predictions, gap
from frostline.evaluation.tables import prediction_table, write_predictions

__all__ = [
    "ClassScores",
    "Estimate",
    "Evaluation",
    "Speed",
    "Temperature",
    "at_temperature",
    "evaluate_predictions",
    "fit_temperature",
    "gap",
    "label_pictures",
    "measure_speed",
    "prediction_table",
    "write_predictions",
]
