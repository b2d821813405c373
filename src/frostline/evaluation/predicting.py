"""Labels for pictures that have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class _Pictures(Dataset[Tensor]):
    def __init__(
        self, openers: Sequence[Callable[[], Image.Image]], transform: Callable[[Image.Image], Tensor]
    ) -> None:
        self.openers = openers
        self.transform = transform

    def __len__(self) -> int:
        return len(self.openers)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.openers[index]())


def label_pictures(
    model: nn.Module,
    openers: Sequence[Callable[[], Image.Image]],
    transform: Callable[[Image.Image], Tensor],
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Class probabilities ``[N, K]`` float32 on the CPU, in the order given.

    Args:
        model: takes ``[B, C, H, W]``, gives ``[B, K]`` logits.
        openers: each gives one RGB picture.
        transform: the model's own evaluation transform.
        batch_size: pictures at a time.
        device: where the model runs.
        progress: called with the number of pictures done after each batch.
    """
    model = model.to(device).eval()
    parts = []
    done = 0
    with torch.inference_mode():
        for images in DataLoader(_Pictures(openers, transform), batch_size=batch_size):
            parts.append(model(images.to(device)).float().softmax(dim=1).cpu())
            done += len(images)
            if progress is not None:
                progress(done)
    return torch.cat(parts)
