"""The pictures of a report: which are shown, as thumbnails, and what the model looked at in them."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from frostline.data import Augmentation, ImageData
from frostline.data.loading import PictureDataset, Sample
from frostline.errors import FrostlineError
from frostline.evaluation.picture_scores import Predictions
from frostline.evaluation.statistics import Floats
from frostline.explaining import NoMapError, find_seam, heat_maps
from frostline.reports import MATRIX_CLASSES, PAGE_BYTES, CellPictures, Judged, Shown, heated, thumbnail
from frostline.runs.sheet import pixels_of
from frostline.types import Preprocessing

JUDGED = 12
"""Worst errors, and least certain pictures."""

OF_CELL = 6
THUMBNAILS = 200
"""Of all cells together."""

_SIDE, _SMALL = 128, 96  # pixels
_BYTES = PAGE_BYTES // 2  # of all pictures: a third more as base64, with room for the rest
_SECONDS = 60.0  # after which no further map is begun
_AT_ONCE = 8
_PAIRS = 30


@dataclass(frozen=True)
class Source:
    """Where pictures and maps come from.

    Attributes:
        data: loaded.
        augmentation: of the run, which has the transforms of each split.
        preprocessing: of the model.
        model: in eval, on ``device``.
        seed: of the run, for a split whose own transforms draw.
        device: of the model.
    """

    data: ImageData
    augmentation: Augmentation
    preprocessing: Preprocessing
    model: nn.Module
    seed: int
    device: torch.device


@dataclass
class Gallery:
    """The pictures of one split.

    Attributes:
        worst, uncertain: those that are judged.
        cells: of the confusion.
        note: how they are to be read.
        sizes: width and height in pixels of the pictures that were opened.
    """

    worst: list[Judged] = field(default_factory=list)
    uncertain: list[Judged] = field(default_factory=list)
    cells: list[CellPictures] = field(default_factory=list)
    note: str = ""
    sizes: list[tuple[int, int]] = field(default_factory=list)


def gallery(predictions: Predictions, split: str, source: Source | None, why_none: str = "") -> Gallery:
    """What to show of the pictures of a split.

    Args:
        predictions: of the split.
        split: its name.
        source: None where there are no pictures.
        why_none: a sentence on that.
    """
    found = Gallery()
    worst, uncertain = worst_errors(predictions), least_certain(predictions)
    views = None if source is None else _Views(predictions, split, source)
    heats = {} if views is None else views.heats([*worst, *uncertain])
    for places, judged in ((worst, found.worst), (uncertain, found.uncertain)):
        judged += [_judged(predictions, place, views, heats.get(place)) for place in places]
    if views is None:
        found.note = why_none
        return found
    found.cells = list(_cells(predictions, views))
    found.note = views.note
    found.sizes = views.sizes
    return found


def worst_errors(predictions: Predictions) -> list[int]:
    """The wrong pictures with the most confidence, by their place in ``predictions``; the surest first."""
    wrong = np.flatnonzero(~predictions.right)
    order = np.argsort(-_confidence(predictions)[wrong], kind="stable")[:JUDGED]
    return [int(place) for place in wrong[order]]


def least_certain(predictions: Predictions) -> list[int]:
    """The pictures whose most probable class has the least probability; the least certain first."""
    return [int(place) for place in np.argsort(_confidence(predictions), kind="stable")[:JUDGED]]


def _confidence(predictions: Predictions) -> Floats:
    return predictions.probabilities[np.arange(len(predictions.labels)), predictions.predicted]


def _judged(predictions: Predictions, place: int, views: _Views | None, heat: bytes | None) -> Judged:
    label, said = int(predictions.labels[place]), int(predictions.predicted[place])
    row = predictions.probabilities[place]
    return Judged(
        predictions.names[place],
        predictions.classes[label],
        predictions.classes[said],
        f"{row[said]:.1%}",
        f"{row[label]:.1%}",
        None if views is None else views.thumbnail(place, _SIDE),
        heat,
    )


def _cells(predictions: Predictions, views: _Views) -> Iterator[CellPictures]:
    """Cells with pictures: the errors first and in turn, so that each has some before one has all of its own."""
    members: dict[tuple[int, int], list[int]] = {}
    for place, key in enumerate(zip(predictions.labels.tolist(), predictions.predicted.tolist(), strict=True)):
        members.setdefault(key, []).append(place)
    if len(predictions.classes) > MATRIX_CLASSES:
        members = {key: places for key, places in members.items() if key[0] != key[1]}
    order = sorted(members, key=lambda key: (key[0] == key[1], -len(members[key]), key))
    if len(predictions.classes) > MATRIX_CLASSES:
        order = order[:_PAIRS]
    chosen: dict[tuple[int, int], list[int]] = {key: [] for key in order}
    room = THUMBNAILS
    for turn in range(OF_CELL):
        for key in order:
            if room and turn < len(members[key]):
                chosen[key].append(members[key][turn])
                room -= 1
    for (row, column), places in chosen.items():
        shown = [Shown(predictions.names[place], views.thumbnail(place, _SMALL)) for place in places]
        if shown:
            yield CellPictures(row, column, len(members[row, column]), shown)


class _Views:
    """Pictures of a split, by their place in its predictions."""

    def __init__(self, predictions: Predictions, split: str, source: Source) -> None:
        self._predictions, self._source = predictions, source
        self._pictures = source.data.splits[split]
        names = (_as_written(self._pictures.name(index)) for index in range(len(self._pictures)))
        self._index = {name: index for index, name in enumerate(names)}
        transform, random = source.augmentation.evaluation_transform(source.preprocessing, split)
        self._inputs = PictureDataset(self._pictures, transform, source.seed if random else None)
        self._room = _BYTES
        self.note = ""
        self.sizes: list[tuple[int, int]] = []

    def thumbnail(self, place: int, side: int) -> bytes | None:
        """A JPEG; None where the picture is not found, cannot be read, or there is no more room on the page."""
        index = self._index.get(self._predictions.names[place])
        if index is None or self._room <= 0:
            return None
        try:
            size = self._pictures.size(index)
            picture = self._pictures.reduced(index, functools.partial(_reduction, side))
        except FrostlineError:
            return None
        self.sizes.append(size)
        made = thumbnail(picture, side)
        self._room -= len(made)
        return made

    def heats(self, places: Sequence[int]) -> dict[int, bytes]:
        """The maps of some pictures over what the model gets of them, as JPEGs; sets ``note``."""
        inputs = {place: tensor for place in dict.fromkeys(places) if (tensor := self._input(place)) is not None}
        if not inputs:
            self.note = "None of these pictures can be read."
            return {}
        model, device = self._source.model, self._source.device
        kind = next((parameter.dtype for parameter in model.parameters()), torch.float32)
        ends = time.monotonic() + _SECONDS
        found: dict[int, bytes] = {}
        order, done = list(inputs), 0
        try:
            first = torch.stack([inputs[order[0]]]).to(device, kind)
            seam = find_seam(model, first)
            while done < len(order) and time.monotonic() < ends:
                some = order[done : done + _AT_ONCE]
                images = torch.stack([inputs[place] for place in some]).to(device, kind)
                classes = [int(self._predictions.predicted[place]) for place in some]
                for place, heat in zip(some, heat_maps(model, seam, images, classes), strict=True):
                    if heat is not None:
                        found[place] = heated(pixels_of(inputs[place], self._source.preprocessing), heat, _SIDE)
                        self._room -= len(found[place])
                done += len(some)
        # a model of someone else's may be anything; the rest of the page does not hang on it
        except (NoMapError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.note = f"Beside a picture, no map of what the model looked at: {reason}."
            return {}
        self.note = (
            "Beside a picture, what the model got of it; bright is what speaks most for the class that it named "
            f"(Grad-CAM of {seam.name}, {seam.layout.height} x {seam.layout.width} cells)."
        )
        if done < len(order):
            self.note += f" After {_SECONDS:.0f} s no more maps were made."
        return found

    def _input(self, place: int) -> Tensor | None:
        index = self._index.get(self._predictions.names[place])
        sample = None if index is None else self._inputs[index]
        return sample.image if isinstance(sample, Sample) else None


def _reduction(side: int, width: int, height: int) -> int:
    """By how much a picture may be smaller as it is decoded: twice the side of its thumbnail is left at least."""
    return next((factor for factor in (8, 4, 2) if max(width, height) >= 2 * side * factor), 1)


def _as_written(name: str) -> str:
    """A name as the table of predictions has it, which holds text alone."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
