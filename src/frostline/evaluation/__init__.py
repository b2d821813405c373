"""Predictions of a finished model, as tables."""

from frostline.evaluation.predicting import label_pictures
from frostline.evaluation.tables import prediction_table, write_predictions

__all__ = ["label_pictures", "prediction_table", "write_predictions"]
