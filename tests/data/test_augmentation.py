from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torchvision.transforms import v2

from frostline.data import Augmentation, evaluation_transform
from frostline.data.randomness import seed_generators
from frostline.errors import ConfigError
from frostline.types import Preprocessing

PRESETS = Path(__file__).parents[2] / "conf" / "augment"
NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset(name: str) -> dict[str, Any]:
    """The arguments of a preset, with those that it inherits."""
    node: Any = OmegaConf.to_container(OmegaConf.load(PRESETS / f"{name}.yaml"))
    inherited = [preset(base) for base in node.pop("defaults", []) if base != "_self_"]
    node.pop("_target_", None)
    for key in ("transforms", "val_transforms", "test_transforms"):
        if key in node:
            node[key] = [instantiate(step) for step in node[key]]
    merged: dict[str, Any] = {}
    for part in [*inherited, node]:
        merged |= part
    return merged


def gradient() -> Image.Image:
    """Dark on the left, bright on the right."""
    return Image.fromarray(np.tile(np.linspace(0, 255, 24, dtype=np.uint8), (24, 1))).convert("RGB")


def test_presets_name_every_argument() -> None:
    arguments = set(inspect.signature(Augmentation).parameters)
    assert NAMES == ["augmix", "light", "none", "randaugment", "standard", "strong", "trivial"]
    assert all(set(preset(name)) == arguments for name in NAMES)


def test_none_is_evaluation(preprocessing: Preprocessing) -> None:
    augmentation = Augmentation(**preset("none"))
    assert augmentation.deterministic
    assert augmentation.mixer(3) is None
    ours = augmentation.train_transform(preprocessing)(gradient())
    assert torch.equal(ours, evaluation_transform(preprocessing)(gradient()))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_presets_are_random_and_repeat_with_the_seed(preprocessing: Preprocessing, name: str) -> None:
    augmentation = Augmentation(**preset(name))
    assert not augmentation.deterministic
    transform = augmentation.train_transform(preprocessing)

    def one(seed: int) -> torch.Tensor:
        seed_generators(seed)
        return transform(gradient())

    tensors = [one(seed) for seed in range(8)]
    assert all(tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32 for tensor in tensors)
    assert all(torch.equal(tensor, one(seed)) for seed, tensor in enumerate(tensors))
    assert len({tensor.sum().item() for tensor in tensors}) > 3


@pytest.mark.parametrize(("name", "mirrors"), [("light", False), ("standard", True)])
def test_light_never_mirrors(preprocessing: Preprocessing, name: str, mirrors: bool) -> None:
    transform = Augmentation(**preset(name)).train_transform(preprocessing)
    seed_generators(0)
    tensors = [transform(gradient()) for _ in range(40)]
    assert any(t[:, :, 0].mean() > t[:, :, -1].mean() for t in tensors) == mirrors


def test_strong_mixes_and_erases(preprocessing: Preprocessing) -> None:
    augmentation = Augmentation(**preset("strong"))
    assert augmentation.mixer(3) is not None
    erased = Augmentation(erase=1.0).train_transform(preprocessing)(gradient())
    assert not torch.equal(erased, evaluation_transform(preprocessing)(gradient()))


def test_extra_transforms_come_before_normalization(preprocessing: Preprocessing) -> None:
    augmentation = Augmentation(transforms=[v2.RandomInvert(p=1.0)])
    assert not augmentation.deterministic
    white = Image.new("RGB", (16, 16), (255, 255, 255))
    tensor = augmentation.train_transform(preprocessing)(white)
    assert torch.allclose(tensor[:, 3, 3], -torch.tensor(preprocessing.mean) / torch.tensor(preprocessing.std))


def test_each_split_has_transforms_of_its_own(preprocessing: Preprocessing) -> None:
    augmentation = Augmentation(
        hflip=1.0, transforms=[v2.RandomInvert(p=1.0)], test_transforms=[v2.GaussianBlur(5, sigma=3.0)]
    )
    plain = evaluation_transform(preprocessing)(gradient())
    for split in ("train", "val"):
        transform, random = augmentation.evaluation_transform(preprocessing, split)
        assert not random
        assert torch.equal(transform(gradient()), plain)
    transform, random = augmentation.evaluation_transform(preprocessing, "test")
    assert random
    blurred = transform(gradient())
    assert (blurred[:, :, 0] > plain[:, :, 0]).all()
    assert torch.equal(transform(gradient()), blurred)
    assert augmentation.notes() == [
        "augment.test_transforms changes each picture of the test split before it is scored: GaussianBlur"
    ]
    assert augmentation.notes(["val"]) == Augmentation().notes() == []
    assert Augmentation(val_transforms=[v2.GaussianBlur(5)]).deterministic


def test_mixing_is_told_in_words() -> None:
    assert Augmentation(mixup=0.2, cutmix=1.0).mixing() == "mixup (0.2) or cutmix (1)"
    assert Augmentation(**preset("standard")).mixing() == ""


def test_an_extra_transform_may_give_a_tensor(preprocessing: Preprocessing) -> None:
    augmentation = Augmentation(transforms=[v2.ToImage()])
    ours = augmentation.train_transform(preprocessing)(gradient())
    assert torch.allclose(ours, evaluation_transform(preprocessing)(gradient()), atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": [0.5]},
        {"scale": [0.9, 0.2]},
        {"scale": [0.5, 1.5]},
        {"ratio": [0.0, 1.0]},
        {"hflip": 1.5},
        {"erase": -0.1},
        {"mixup": -1.0},
        {"color_jitter": float("nan")},
        {"auto_augment": "rnd-m9"},
    ],
    ids=str,
)
def test_values_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    (key,) = wrong
    with pytest.raises(ConfigError, match=f"augment.{key}") as caught:
        Augmentation(**wrong)
    assert caught.value.mend
