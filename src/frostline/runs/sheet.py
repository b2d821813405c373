"""The picture sheet of a run: what the net sees of a picture of each class, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, tensor

from frostline.config import build
from frostline.data import Augmentation, ImageData, ImageSplit
from frostline.data.loading import PictureDataset, Sample, Unreadable
from frostline.data.samplers import Key
from frostline.data.stratify import canonical_order
from frostline.reports.picture_sheet import PictureSheet, Pixels, SheetRow, picture_sheet, shown_side
from frostline.runs.parts import Parts
from frostline.types import Preprocessing

CLASSES = 20
EPOCHS = 6
# pictures of a class that are tried where some cannot be read
TRIES = 20


def draw_sheet(path: Path, parts: Parts, config: DictConfig, title: str) -> None:
    """Write the sheet: training pictures as evaluation sees them, and as training does in its first epochs.

    Raises:
        DataError: a picture cannot be read, and ``data.on_error`` is not ``skip``.
    """
    augmentation: Augmentation = build(config.augment, "augment")
    picture_sheet(path, make_sheet(parts.data, parts.backbone.preprocessing, augmentation, config.seed, title))


def make_sheet(
    data: ImageData, preprocessing: Preprocessing, augmentation: Augmentation, seed: int, title: str
) -> PictureSheet:
    """What the sheet shows: the tensors that the net gets of these pictures, with the normalization taken back.

    Args:
        data: loaded.
        preprocessing: of the backbone.
        augmentation: of the run.
        seed: of the run.
        title: above the sheet.
    """
    split = _Remembering(data.splits["train"])
    order = canonical_order(data.splits["train"])
    plain, random = augmentation.evaluation_transform(preprocessing, "train")
    views = {"evaluation": (PictureDataset(split, plain, seed if random else None, order), 0)}
    for name in ("val", "test"):
        transform, random = augmentation.evaluation_transform(preprocessing, name)
        if random:
            views[f"as {name}"] = (PictureDataset(split, transform, seed, order), 0)
    apart = len(views)
    changed = augmentation.train_transform(preprocessing)
    training = PictureDataset(split, changed, None if augmentation.deterministic else seed, order)
    views |= {f"epoch {epoch}": (training, epoch) for epoch in range(EPOCHS)}

    rows = []
    for label, name in list(enumerate(data.classes))[:CLASSES]:
        places = np.flatnonzero(split.labels[order] == label).tolist()
        tensors = _first_readable(places, list(views.values()), skip=data.on_error == "skip")
        rows.append(SheetRow(name, [pixels_of(one, preprocessing) for one in tensors]))
    return PictureSheet(title, list(_notes(data, preprocessing, augmentation)), list(views), rows, apart)


class _Remembering(ImageSplit):
    """A split that decodes a picture once while it is asked for the same one again."""

    def __init__(self, split: ImageSplit) -> None:
        self._split = split
        self._last: tuple[int, Image.Image] | None = None
        self.labels = split.labels

    def image(self, index: int) -> Image.Image:
        if self._last is None or self._last[0] != index:
            self._last = index, self._split.image(index)
        return self._last[1].copy()

    def name(self, index: int) -> str:
        return self._split.name(index)


def _first_readable(places: list[int], views: list[tuple[PictureDataset, int]], *, skip: bool) -> list[Tensor]:
    """The first picture that can be read, in all views; nothing where none of the first ones can."""
    for place in places[:TRIES]:
        found: list[Sample | Unreadable] = []
        for dataset, epoch in views:
            found.append(dataset[Key(epoch, place)])
            if isinstance(found[-1], Unreadable):
                break
        fault = next((one.fault for one in found if isinstance(one, Unreadable)), None)
        if fault is None:
            return [one.image for one in found if isinstance(one, Sample)]
        if not skip:
            raise fault
    return []


def pixels_of(image: Tensor, preprocessing: Preprocessing) -> Pixels:
    """``[H, W, 3]`` uint8 of a normalized ``[C, H, W]``; what lies outside of black and white is cut off."""
    mean, std = (tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    scaled = ((image * std + mean).clamp(0, 1) * 255).round().byte()
    return np.ascontiguousarray(scaled.expand(3, -1, -1).permute(1, 2, 0).numpy())


def _notes(data: ImageData, preprocessing: Preprocessing, augmentation: Augmentation) -> Iterator[str]:
    channels, height, width = preprocessing.size
    side = shown_side(height, width)
    scale = "" if side == max(height, width) else f", shown {side} pixels {'high' if height > width else 'wide'}"
    gray = ", in gray" if channels == 1 else ""
    yield f"A training picture of each class as the net gets it: {height} x {width} pixels{gray}{scale}"
    if len(data.classes) > CLASSES:
        yield f"The first {CLASSES} of {len(data.classes)} classes"
    if mixing := augmentation.mixing():
        yield f"Not shown: {mixing}, which blends pictures of a batch"
