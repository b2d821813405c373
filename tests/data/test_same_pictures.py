"""The same pictures in six forms are one data set: equal splits, subsets, folds and fingerprints."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forms import FORMS, OFFICIAL, PATIENTS, PicturesToWrite, as_form, made_pictures

from frostline.data import ImageData
from frostline.types import Preprocessing

Form = Callable[..., ImageData]
Contents = dict[str, Counter[tuple[bytes, str]]]
OTHERS = [form for form in FORMS if form != "folder"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture(scope="session")
def pictures() -> PicturesToWrite:
    """90 pictures of three classes, two of them twice, in official splits."""
    return made_pictures()


@pytest.fixture
def form(pictures: PicturesToWrite, tmp_path: Path, request: pytest.FixtureRequest) -> Form:
    """A data set in a form, of the same pictures, in an order of its own."""

    def make(name: str, *, official: bool, **settings: Any) -> ImageData:
        root = tmp_path / f"{name}-{official}"
        seed = 1 + FORMS.index(name)
        return as_form(name, root, pictures if official else pictures.undivided(), seed, **settings)

    return make


def contents(data: ImageData) -> Contents:
    """What each split has: digest of the content and class name, counted."""
    data.load()
    return {
        name: Counter(zip(split.digests().tolist(), (data.classes[label] for label in split.labels), strict=True))
        for name, split in data.splits.items()
    }


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    ("official", "settings"),
    [
        (True, {}),
        (False, {}),
        (False, {"test_fraction": 0.2, "split_seed": 7}),
        (True, {"labels_per_class": 5}),
        (False, {"labels_per_class": 5, "subset_seed": 3}),
        (True, {"fraction": 0.3}),
        (False, {"folds": 4, "fold": 2}),
        (True, {"folds": 3, "fold": 1, "split_seed": 2}),
    ],
    ids=str,
)
def test_divided_alike(form: Form, name: str, official: bool, settings: dict[str, Any]) -> None:
    folder, other = (form(one, official=official, **settings) for one in ("folder", name))
    assert contents(folder) == contents(other)
    assert folder.classes == other.classes
    assert folder.fingerprint() == other.fingerprint()
    assert sum(map(len, folder.splits.values())) > 15


@pytest.mark.parametrize("name", [form for form in PATIENTS if form != "csv"])
@pytest.mark.parametrize("settings", [{"test_fraction": 0.2}, {"folds": 4, "fold": 3, "split_seed": 4}], ids=str)
def test_patients_are_divided_alike(form: Form, name: str, settings: dict[str, Any]) -> None:
    table, other = (form(one, official=False, **settings, **PATIENTS[one]) for one in ("csv", name))
    assert contents(table) == contents(other)
    assert contents(table) != contents(form("csv", official=False, **settings))
    patients = [set(np.unique(split.groups).tolist()) for split in other.splits.values() if split.groups is not None]
    assert len(patients) == 3
    assert len(set.union(*patients)) == sum(map(len, patients)) == 25


def test_the_settings_matter(form: Form) -> None:
    prints = [
        form("shards", official=False, **settings).fingerprint()
        for settings in ({}, {"split_seed": 1}, {"folds": 4}, {"folds": 4, "fold": 1}, {"fraction": 0.5})
    ]
    assert len(set(prints)) == 5


@pytest.mark.parametrize("name", FORMS)
def test_the_content_is_the_file(form: Form, pictures: PicturesToWrite, name: str) -> None:
    data = form(name, official=True)
    data.load()
    for split, expected in pictures.splits.items():
        found = data.splits[split]
        kept = Counter((found.content(index), data.classes[found.labels[index]]) for index in range(len(found)))
        assert kept == Counter((picture.content, picture.label) for picture in expected)


@pytest.mark.parametrize("name", OTHERS)
def test_training_sees_the_same_pictures_in_the_same_order(form: Form, preprocessing: Preprocessing, name: str) -> None:
    from frostline.data import Augmentation

    def first_epoch(which: str) -> list[tuple[bytes, list[int]]]:
        data = form(which, official=False, batch_size=16, workers=0)
        data.prepare(preprocessing, Augmentation(), seed=5)
        return [(batch.images.numpy().tobytes(), batch.targets.tolist()) for batch in data.loader("train", train=True)]

    assert first_epoch("folder") == first_epoch(name)


@pytest.mark.parametrize("name", FORMS)
def test_another_pixel_is_another_fingerprint(form: Form, tmp_path: Path, pictures: PicturesToWrite, name: str) -> None:
    changed = pictures.with_another_pixel()
    other = as_form(name, tmp_path / "changed", changed, 1)
    assert form(name, official=True).fingerprint() != other.fingerprint()


@pytest.mark.parametrize("name", FORMS)
def test_a_division_that_one_form_wrote_holds_in_another(form: Form, tmp_path: Path, name: str) -> None:
    from frostline.data.division import write_division

    folder = form("folder", official=False, split_seed=9)
    folder.load()
    write_division(tmp_path / "splits.csv", folder.classes, folder.splits)
    other = form(name, official=False, split_file=str(tmp_path / "splits.csv"))
    assert contents(folder) == contents(other)


def test_the_fixture_is_what_it_says(pictures: PicturesToWrite) -> None:
    everything = [picture.content for split in pictures.splits.values() for picture in split]
    assert len(everything) == sum(OFFICIAL.values()) == 90
    assert len(set(everything)) == 88
    assert np.unique([content[:4] for content in everything]).size == 2  # JPEG and PNG
    assert all(io.BytesIO(content).read(1) for content in everything)
