from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from PIL import Image
from planted import ALTERATIONS, CLASSES, picture

from frostline.auditing import Finding, Kind, find, scan
from frostline.auditing import duplicates as module
from frostline.auditing.likeness import alike_pairs, band_pairs, outlines, residuals
from frostline.auditing.measures import measure
from frostline.data.splits import ImageSplit


class Labelled(ImageSplit):
    def __init__(self, name: str, pictures: Sequence[Image.Image], labels: Sequence[int] | None = None) -> None:
        self._name, self._pictures = name, pictures
        self.labels = np.array([0] * len(pictures) if labels is None else labels, dtype=np.int64)

    def image(self, index: int) -> Image.Image:
        return self._pictures[index]

    def name(self, index: int) -> str:
        return f"{self._name}/{index}"


def copies(**splits: ImageSplit) -> list[Finding]:
    findings = find(scan(("cat", "dog"), splits, workers=0))
    return [one for one in findings if "duplicate" in one.kind or one.kind is Kind.CONFLICTING_LABELS]


def some(count: int, seed: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [picture(CLASSES[index % 4], rng) for index in range(count)]


def thumbs(pictures: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([measure(one).thumb for one in pictures])


def test_a_group_is_one_finding_of_the_worst_kind() -> None:
    one, two, three, four, *others = some(12)
    train = Labelled("train", [one, two, three, one, two, *others], [0, 0, 0, 0, 1, *[1] * 8])
    found = copies(train=train, test=Labelled("test", [three, four, four, one]))
    assert len(found) == 4
    groups = {finding.kind: [place.name for place in finding.places] for finding in found}
    assert groups[Kind.CONFLICTING_LABELS] == ["train/1", "train/4"]
    assert groups[Kind.EXACT_DUPLICATE] == ["test/1", "test/2"]
    across = [finding for finding in found if finding.kind is Kind.EXACT_DUPLICATE_ACROSS_SPLITS]
    assert [[place.name for place in finding.places] for finding in across] == [
        ["train/0", "train/3", "test/3"],
        ["train/2", "test/0"],
    ]
    assert found[0].harm == 1.0
    conflict = next(finding for finding in found if finding.kind is Kind.CONFLICTING_LABELS)
    assert "'cat' and 'dog'" in conflict.problem


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_copy_is_a_near_duplicate(name: str) -> None:
    pictures = some(8)
    copy = ALTERATIONS[name](pictures[2], np.random.default_rng(5))
    (found,) = copies(train=Labelled("train", pictures), val=Labelled("val", [copy]))
    assert found.kind is Kind.NEAR_DUPLICATE_ACROSS_SPLITS
    assert [place.name for place in found.places] == ["train/2", "val/0"]
    assert found.detail["splits"] == ["train", "val"]


def test_one_background_with_another_thing_on_it_is_no_copy() -> None:
    rng = np.random.default_rng(0)
    table = np.full((90, 120, 3), 180.0) + np.linspace(0, 40, 120)[None, :, None]

    def thing(cells: np.ndarray) -> Image.Image:
        scene = table.copy()
        scene[34:54, 48:72] = np.kron(cells, np.ones((5, 4)))[..., None]
        return Image.fromarray(np.clip(scene + rng.normal(0, 1, scene.shape), 0, 255).astype(np.uint8))

    things = [thing(rng.integers(0, 2, (4, 6)) * 120.0 + 20) for _ in range(6)]
    assert copies(train=Labelled("train", things)) == []


def test_pictures_of_one_color_are_no_copies_of_each_other() -> None:
    blank = [Image.new("RGB", (64, 64), (shade, shade, shade)) for shade in (0, 0, 90, 91, 255)]
    assert copies(train=Labelled("train", blank)) == []


def test_two_colors_of_one_thing_are_two_pictures() -> None:
    rows = np.asarray(some(1)[0])
    assert copies(train=Labelled("train", [Image.fromarray(rows), Image.fromarray(rows[..., ::-1].copy())])) == []


def test_all_pairs_are_compared_across_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frostline.auditing.likeness._TILE", 7)
    vectors = outlines(thumbs(some(30)))
    vectors[29], vectors[13] = vectors[0], vectors[12]
    found = {pair for left, right in alike_pairs(vectors, vectors, 0.999) for pair in zip(left, right, strict=True)}
    assert found == {(0, 29), (12, 13)}


def test_bands_find_what_is_nearly_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = some(40)
    copy = ALTERATIONS["compressed"](pictures[11], np.random.default_rng(0))
    vectors = outlines(thumbs([*pictures, copy]))
    found = {pair for left, right in band_pairs(vectors, vectors, 0.9) for pair in zip(left, right, strict=True)}
    assert (11, 40) in found
    monkeypatch.setattr(module, "EXHAUSTIVE", 10)
    monkeypatch.setattr(module, "TURNED", 0)
    (finding,) = copies(train=Labelled("train", [*pictures, copy]))
    assert [place.index for place in finding.places] == [11, 40]


def test_residuals_of_equal_and_of_other_pictures() -> None:
    own = thumbs(some(6))
    assert residuals(own, own).max() == 0
    assert residuals(own, own[::-1].copy()).min() > 0.4
    assert len(residuals(own[:0], own[:0])) == 0


def digits() -> Iterator[Image.Image]:
    from sklearn.datasets import load_digits

    for values in load_digits().images:
        yield Image.fromarray(np.rint(values * 255 / 16).astype(np.uint8)).convert("RGB")


def test_handwritten_digits_of_8_by_8_are_left_alone() -> None:
    pictures = list(digits())
    findings = find(scan(("cat", "dog"), {"train": Labelled("train", pictures, [0, 1] * 898 + [0])}, workers=0))
    accused = {place.index for finding in findings for place in finding.places}
    assert len(accused) <= 0.02 * len(pictures)
