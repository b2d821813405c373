"""Prediction over HTTP: pictures in, labels with probabilities out."""

from frostline.serving.app import Limits, ServedModel, make_app
from frostline.serving.listening import listen

__all__ = ["Limits", "ServedModel", "listen", "make_app"]
