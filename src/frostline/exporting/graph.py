"""What is exported: a model that takes resized and cropped pictures, and gives calibrated probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from frostline.types import Preprocessing

INPUT = "pictures"
OUTPUTS = ("logits", "probabilities")


class PictureClassifier(nn.Module):
    """A classifier with scaling, normalisation and softmax in its graph.

    Args:
        model: ``[B, C, H, W]`` float32, normalised, to ``[B, K]`` logits; put in eval.
        preprocessing: of it.
        temperature: the logits are divided by it before the softmax (Guo et al. 2017, arXiv:1706.04599).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        channels = preprocessing.size[0]
        for name, statistic in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            values = torch.tensor(of_channels(statistic, channels), dtype=torch.float32)
            self.register_buffer(name, values.view(1, channels, 1, 1))
        self.temperature = float(temperature)
        self.eval()

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, C, H, W]`` uint8 to ``[B, K]`` float32 logits and probabilities."""
        images = (pictures.to(torch.float32) / 255 - self.mean) / self.std
        logits = self.model(images).to(torch.float32)
        return logits, (logits / self.temperature).softmax(dim=1)


def of_channels(statistic: Sequence[float], channels: int) -> list[float]:
    """A mean or deviation for each channel; as in training a gray picture has the mean over the colors."""
    return [sum(statistic) / len(statistic)] if channels == 1 else list(statistic)


@dataclass(frozen=True)
class Facts:
    """What a file says of the model in it.

    Attributes:
        labels: the K classes, in the order of the logits.
        preprocessing: what a picture goes through before, and in the graph.
        architecture: its name, for a person.
        temperature: of the probabilities.
    """

    labels: tuple[str, ...]
    preprocessing: Preprocessing
    architecture: str
    temperature: float = 1.0

    def metadata(self) -> dict[str, str]:
        """Flat, as ONNX and OpenVINO keep it: JSON where a value is no text."""
        return {
            "labels": json.dumps(list(self.labels), ensure_ascii=False),
            "preprocessing": json.dumps(asdict(self.preprocessing)),
            "input": self.input_sentence(),
            "architecture": self.architecture,
            "temperature": repr(self.temperature),
        }

    def input_sentence(self) -> str:
        """What to feed, for a person."""
        made = self.preprocessing
        channels, height, width = made.size
        color = "gray" if channels == 1 else "RGB"
        side = f"{height} x {width}"
        how = {
            "center": f"resized ({made.interpolation}) so that a center crop of {side} keeps {made.crop_pct:g} of it",
            "squash": f"resized ({made.interpolation}) and cropped to {side} without keeping its proportions",
            "border": f"resized ({made.interpolation}) to fit into {side}, with a border of the mean color",
        }[made.crop_mode]
        return (
            f"{INPUT}: [batch, {channels}, {height}, {width}] uint8, {color}, each picture {how}; "
            "scaling and normalisation are in the graph"
        )
