"""Class probabilities of pictures that need no labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from frostline.data import ImageSplit, evaluation_transform
from frostline.data.loading import PictureDataset, Unreadable, make_loader
from frostline.types import Preprocessing


class Labelled(NamedTuple):
    """What came of one batch.

    Attributes:
        positions: ``[N]`` of the pictures that could be read, in the order asked for.
        probabilities: ``[N, K]`` float32 on the CPU.
        unreadable: the other pictures of the batch, in the order asked for.
    """

    positions: list[int]
    probabilities: Tensor
    unreadable: list[Unreadable]


@dataclass(frozen=True, eq=False)
class Labeller:
    """A model, and all that decides which probabilities it gives a picture; the same ones as an evaluation gives.

    Attributes:
        model: takes ``[B, C, H, W]`` float32, gives ``[B, K]`` logits; is put on the device and in eval.
        labels: K class names.
        preprocessing: of the model.
        exact: decode all of a picture and resize it with Pillow; else as ``data.decode=fast``.
        temperature: the logits are divided by it; 1 leaves the probabilities as the model has them.
        channels_last: run the model in this memory format.
        bfloat16: run it in mixed precision.
        batch_size: pictures at a time.
        device: where it runs.
    """

    model: nn.Module
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    exact: bool = False
    temperature: float = 1.0
    channels_last: bool = False
    bfloat16: bool = False
    batch_size: int = 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def label(self, pictures: ImageSplit, positions: Iterable[int], *, workers: int = 0) -> Iterator[Labelled]:
        """The probabilities of some pictures, batch by batch, while the next ones are decoded.

        Args:
            pictures: whose labels are not looked at.
            positions: which, in order; asked for as they are needed.
            workers: processes that decode; 0 decodes in this one.
        """
        model = self.model.to(self.device).eval()
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        loader = make_loader(
            PictureDataset(pictures, evaluation_transform(self.preprocessing, exact=self.exact), in_8_bits=True),
            positions,
            batch_size=self.batch_size,
            workers=workers,
            pin_memory=self.device.type == "cuda",
        )
        for batch, unreadable in loader.deliveries():
            if batch is None:
                yield Labelled([], torch.empty(0, len(self.labels)), unreadable)
            else:
                yield Labelled(batch.indices.tolist(), self._probabilities(model, batch.images), unreadable)

    def _probabilities(self, model: nn.Module, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        mixed = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)
        with torch.inference_mode(), mixed:
            logits: Tensor = model(images)
        with torch.inference_mode():
            return (logits.float() / self.temperature).softmax(dim=1).cpu()
