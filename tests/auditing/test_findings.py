from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter
from planted import CLASSES, picture

from frostline.auditing import HARM, AuditThresholds, Finding, Kind, Place, find, ordered, scan
from frostline.data.splits import ImageSplit
from frostline.errors import ConfigError


class Labelled(ImageSplit):
    def __init__(self, name: str, pictures: list[Image.Image], labels: list[int], groups: list[int] | None = None):
        self._name, self._pictures = name, pictures
        self.labels = np.array(labels, dtype=np.int64)
        self.groups = None if groups is None else np.array(groups, dtype=np.int64)

    def image(self, index: int) -> Image.Image:
        return self._pictures[index]

    def name(self, index: int) -> str:
        return f"{self._name}/{index}"


def some(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [picture(CLASSES[index % 5], rng) for index in range(count)]


def found(*splits: Labelled, classes: tuple[str, ...] = ("a", "b"), **thresholds: float) -> list[Finding]:
    seen = scan(classes, {split._name: split for split in splits}, workers=0)
    return find(seen, AuditThresholds(**thresholds))


def of(kind: Kind, findings: list[Finding]) -> list[int]:
    return [place.index for finding in findings if finding.kind is kind for place in finding.places]


def test_every_kind_has_a_harm_and_the_largest_comes_first() -> None:
    assert set(HARM) == set(Kind)
    place = Place("train", 4, "x", "a")
    findings = [Finding(kind, HARM[kind], (place,), "p", "m", score) for kind in Kind for score in (0.1, 0.9)]
    in_order = ordered(findings)
    assert [finding.harm for finding in in_order] == sorted((finding.harm for finding in findings), reverse=True)
    assert in_order[0].kind is Kind.EXACT_DUPLICATE_ACROSS_SPLITS
    assert [finding.score for finding in in_order[:2]] == [0.9, 0.1]


def test_a_dark_picture_is_odd_among_light_ones_and_not_among_dark_ones() -> None:
    light, dark = some(40), [one.point(lambda value: value * 0.15) for one in some(20, seed=1)]
    assert of(Kind.DARK, found(Labelled("train", [*light, dark[4]], [0, 1] * 20 + [0]))) == [40]
    assert of(Kind.DARK, found(Labelled("train", [*light[:4], *dark], [0, 1] * 12))) == []


def test_white_paper_around_everything_is_no_overexposure() -> None:
    paper = []
    for one in some(30):
        sheet = Image.new("RGB", (200, 200), (250, 250, 250))
        sheet.paste(one.resize((30, 24)), (80, 80))
        paper.append(sheet)
    assert of(Kind.BRIGHT, found(Labelled("train", paper, [0, 1] * 15))) == []


def test_blur_is_relative_to_the_others() -> None:
    sharp = some(30)
    soft = [one.filter(ImageFilter.GaussianBlur(3)) for one in sharp]
    assert of(Kind.BLURRED, found(Labelled("train", [*sharp[:29], soft[29]], [0, 1] * 15))) == [29]
    assert of(Kind.BLURRED, found(Labelled("train", soft, [0, 1] * 15))) == []


def test_more_than_a_rare_share_is_the_way_of_the_set() -> None:
    sharp = some(40)
    soft = [one.filter(ImageFilter.GaussianBlur(3)) for one in some(6, seed=5)]
    train = Labelled("train", [*sharp, *soft], [0, 1] * 23)
    assert of(Kind.BLURRED, found(train)) == []
    assert len(of(Kind.BLURRED, found(train, rare=0.2))) == 6


def test_classes_that_are_missing_or_far_apart() -> None:
    train, val = Labelled("train", some(24), [0] * 22 + [1] * 2), Labelled("val", some(3, seed=2), [0] * 3)
    findings = found(train, val)
    missing = next(finding for finding in findings if finding.kind is Kind.CLASS_MISSING)
    assert missing.problem == "The class 'b' has no picture in val that can be read (2 in train)."
    imbalance = next(finding for finding in findings if finding.kind is Kind.CLASS_IMBALANCE)
    assert "'a' has 22 training pictures and 'b' 2: 11 times fewer" in imbalance.problem


def test_a_group_in_two_splits() -> None:
    train = Labelled("train", some(4), [0, 1, 0, 1], groups=[7, 7, 8, 9])
    test = Labelled("test", some(2, seed=2), [0, 1], groups=[8, 10])
    (finding,) = [one for one in found(train, test) if one.kind is Kind.GROUP_ACROSS_SPLITS]
    assert [place.name for place in finding.places] == ["train/2", "test/0"]
    assert finding.problem.startswith("1 of 4 groups has pictures in more than one split")


def test_a_data_set_of_which_nothing_can_be_read_is_still_looked_at() -> None:
    class Broken(Labelled):
        def image(self, index: int) -> Image.Image:
            raise OSError("no")

    findings = found(Broken("train", some(2), [0, 1]))
    assert of(Kind.UNREADABLE, findings) == [0, 1]


@pytest.mark.parametrize(
    ("name", "value"), [("rare", 1.5), ("dark", -1.0), ("near", float("nan")), ("size_factor", float("inf"))]
)
def test_thresholds_are_checked(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"audit.thresholds.{name}"):
        AuditThresholds(**{name: value})
