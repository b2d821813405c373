"""Predictions of a finished model, as tables, and what they say of it."""

from frostline.evaluation.calibration import Temperature, at_temperature, fit_temperature
from frostline.evaluation.intervals import Estimate
from frostline.evaluation.parts import PredictionParts
from frostline.evaluation.predicting import Labeller
from frostline.evaluation.speed import Speed, measure_speed
from frostline.evaluation.summary import ClassScores, Evaluation, evaluate_predictions, gap
from frostline.evaluation.tables import prediction_columns, prediction_table, write_predictions

__all__ = [
    "ClassScores",
    "Estimate",
    "Evaluation",
    "Labeller",
    "PredictionParts",
    "Speed",
    "Temperature",
    "at_temperature",
    "evaluate_predictions",
    "fit_temperature",
    "gap",
    "measure_speed",
    "prediction_columns",
    "prediction_table",
    "write_predictions",
]
