from __future__ import annotations

import dataclasses
import random
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from frostline.data import Augmentation, ImageData
from frostline.data.foreign import AlbumentationsStep, as_step, title
from frostline.data.randomness import seed_generators
from frostline.data.transforms import evaluation_transform
from frostline.errors import ConfigError
from frostline.types import Preprocessing


class Arrays:
    """Has the interface of a transform of albumentations: arrays by name, and generators of its own."""

    def __init__(self, kind: str = "turn") -> None:
        self.kind = kind
        self.set_random_state(np.random.default_rng(), random.Random())

    def set_random_state(self, random_generator: np.random.Generator, py_random: random.Random) -> None:
        self.random_generator, self.py_random = random_generator, py_random

    def __call__(self, *, image: np.ndarray) -> dict[str, Any]:
        assert image.flags.writeable
        assert image.dtype == np.uint8
        match self.kind:
            case "turn":
                turned = np.rot90(image, self.py_random.randint(0, 3))
                return {"image": np.where(self.random_generator.random(image.shape) < 0.5, turned, 255 - turned)}
            case "gray":
                return {"image": image.mean(axis=2, keepdims=True).astype(np.uint8)}
            case "tensor":
                return {"image": torch.from_numpy(image).permute(2, 0, 1)}
            case "float":
                return {"image": image / np.float32(255)}
            case "small":
                return {"image": image[:8, :8]}
        image[:] = 0
        return {"image": image}


class Composition:
    """As theirs: a seed is handed on as it is, a generator is shared."""

    def __init__(self, parts: list[Arrays]) -> None:
        self.parts = parts

    def set_random_state(self, random_generator: np.random.Generator, py_random: random.Random) -> None:
        for part in self.parts:
            part.set_random_state(random_generator, py_random)

    def set_random_seed(self, seed: int) -> None:
        for part in self.parts:
            part.set_random_state(np.random.default_rng(seed), random.Random(seed))

    def __call__(self, *, image: np.ndarray) -> dict[str, Any]:
        for part in self.parts:
            image = part(image=image)["image"]
        return {"image": image}


@pytest.fixture(autouse=True)
def albumentations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Takes the name of the package, whether it is installed or not."""
    module = ModuleType("albumentations.core.fake")
    for kind in (Arrays, Composition):
        monkeypatch.setattr(kind, "__module__", module.__name__)
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def seeded(step: Any, seed: int, picture: Image.Image) -> bytes:
    seed_generators(seed)
    result = step(picture)
    assert result.mode == "RGB"
    return result.tobytes()


def test_it_is_known_by_its_module_and_by_that_of_its_parent() -> None:
    class Own(Arrays):
        """A person's own transform, in a module of its own."""

    Own.__module__ = "mine"
    assert isinstance(as_step(Arrays()), AlbumentationsStep)
    assert isinstance(as_step(Own()), AlbumentationsStep)
    flip = v2.RandomHorizontalFlip()
    assert as_step(flip) is flip
    assert as_step(noise) is noise
    assert [title(as_step(one)) for one in (Arrays(), flip, noise)] == ["Arrays", "RandomHorizontalFlip", "noise"]


def test_the_global_generators_decide_all_that_it_draws() -> None:
    step, picture = as_step(Arrays()), noise()
    first = [seeded(step, seed, picture) for seed in range(20)]
    assert first == [seeded(as_step(Arrays()), seed, picture) for seed in range(20)]
    assert len(set(first)) == 20
    assert picture.tobytes() == noise().tobytes()


def test_the_parts_of_a_composition_draw_one_after_the_other() -> None:
    step = as_step(Composition([Arrays(), Arrays()]))
    found = {seeded(step, seed, noise()) for seed in range(40)}
    assert len(found) == 40
    parts = step.transform.parts  # type: ignore[attr-defined]
    assert parts[0].random_generator is parts[1].random_generator
    assert parts[0].py_random is parts[1].py_random


def test_an_older_one_without_set_random_state_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Composition, "set_random_state")
    step = as_step(Composition([Arrays()]))
    assert seeded(step, 1, noise()) == seeded(step, 1, noise()) != seeded(step, 2, noise())


@pytest.mark.parametrize("kind", ["gray", "tensor", "black"])
def test_what_it_gives_becomes_an_input(preprocessing: Preprocessing, kind: str) -> None:
    ours = Augmentation(transforms=[Arrays(kind)]).train_transform(preprocessing)(noise())
    plain = evaluation_transform(preprocessing)(noise())
    assert ours.shape == plain.shape
    assert torch.allclose(ours, plain, atol=1e-6) == (kind == "tensor")
    black = evaluation_transform(preprocessing)(Image.new("RGB", (16, 16)))
    assert torch.equal(ours, black) == (kind == "black")


def test_torchvision_and_albumentations_go_together(preprocessing: Preprocessing) -> None:
    steps = [v2.ToImage(), Arrays("gray"), v2.RandomInvert(p=1.0), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    ours = Augmentation(transforms=steps).train_transform(preprocessing)(noise())
    gray = np.asarray(noise()).mean(axis=2, keepdims=True).astype(np.uint8).repeat(3, axis=2)
    wanted = evaluation_transform(preprocessing)(Image.fromarray(255 - gray))
    assert torch.allclose(ours, wanted, atol=1e-5)


def batches(data: ImageData, epochs: int = 2) -> list[Tensor]:
    loader = data.loader("train", train=True)
    found = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        found += [batch.images for batch in loader]
    return found


@pytest.mark.parametrize(
    "steps",
    [
        [Arrays()],
        [Composition([Arrays(), Arrays()]), v2.RandomInvert()],
        [v2.TrivialAugmentWide()],
        [v2.RandomApply([v2.GaussianBlur(3)]), v2.ColorJitter(0.3)],
    ],
    ids=["albumentations", "both", "trivial", "torchvision"],
)
def test_workers_change_nothing(array_data: type[ImageData], preprocessing: Preprocessing, steps: list[Any]) -> None:
    found = []
    for workers in (0, 2):
        data = array_data(counts=(4, 4), batch_size=3, workers=workers)
        data.load()
        data.prepare(preprocessing, Augmentation(transforms=steps), seed=3)
        found.append(batches(data))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert len({float(batch.sum()) for batch in found[0]}) == len(found[0])


# --- what does not fit is known before the first picture --------------------------------------------------------------


def refuses(picture: Any) -> Any:
    raise RuntimeError("only on Sundays")


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (refuses, r"augment\.transforms\[1\] \(refuses\) fails on .*16 x 16 pixels: only on Sundays"),
        (Arrays("float"), r"augment\.transforms\[1\] \(Arrays\) .*gives pixels of float32"),
        (Arrays("small"), r"augment\.transforms makes an input of 3 x 8 x 8, where the backbone takes 3 x 16 x 16"),
        (v2.Grayscale(1), r"augment\.transforms .*input"),
        (v2.RandomCrop(40), r"augment\.transforms\[1\] \(RandomCrop\)"),
        (lambda picture: picture.size, r"What augment\.transforms gives cannot become an input"),
    ],
)
def test_a_step_that_does_not_fit_is_named(preprocessing: Preprocessing, step: Any, says: str) -> None:
    augmentation = Augmentation(transforms=[v2.RandomInvert(), step])
    states = random.getstate(), torch.get_rng_state()
    with pytest.raises(ConfigError, match=says) as caught:
        augmentation.train_transform(preprocessing)
    assert "augment.transforms" in str(caught.value.mend) or "resize and crop" in str(caught.value.mend)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_a_step_is_tried_at_the_size_of_the_run(preprocessing: Preprocessing) -> None:
    wide = dataclasses.replace(preprocessing, size=(3, 40, 48))
    crop = Augmentation(transforms=[v2.RandomCrop((40, 48))], auto_augment="rand-m5")
    assert crop.train_transform(wide)(noise()).shape == (3, 40, 48)
