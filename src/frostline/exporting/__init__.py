"""A fine-tuned model for others to run: files of other formats that are shown to be the model, and its card."""

from frostline.exporting.card import Card, labels_text
from frostline.exporting.formats import FORMATS, ExportError, Format, Run, eager, onnx_session, require_package
from frostline.exporting.graph import Facts, PictureClassifier
from frostline.exporting.parity import Parity, compare, require_agreement, require_parity
from frostline.exporting.pushing import push
from frostline.exporting.quantizing import quantize
from frostline.exporting.timing import Timing, size_of, time_side_by_side

__all__ = [
    "FORMATS",
    "Card",
    "ExportError",
    "Facts",
    "Format",
    "Parity",
    "PictureClassifier",
    "Run",
    "Timing",
    "compare",
    "eager",
    "labels_text",
    "onnx_session",
    "push",
    "quantize",
    "require_agreement",
    "require_package",
    "require_parity",
    "size_of",
    "time_side_by_side",
]
