from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from frostline.data import Mixer

KINDS = {"mixup": (0.4, 0.0), "cutmix": (0.0, 1.0), "both": (0.2, 1.0)}


def mixer(kind: str, probability: float = 1.0) -> Mixer:
    mixup, cutmix = KINDS[kind]
    return Mixer(4, mixup=mixup, cutmix=cutmix, probability=probability)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures whose pixels all have the number of their class as value."""
    targets = torch.arange(size) % 4
    return targets.float().view(-1, 1, 1, 1).expand(size, 3, 8, 8).clone(), targets


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_targets_say_what_the_pictures_hold(kind: str, size: int) -> None:
    images, targets = batch(size)
    before = images.clone()
    for seed in range(5):
        mixed, soft = mixer(kind)(images, targets, seed)
        assert soft.shape == (size, 4)
        assert soft.dtype == torch.float32
        assert mixed.shape == images.shape
        assert torch.allclose(soft.sum(1), torch.ones(size))
        assert torch.allclose(mixed.mean((1, 2, 3)), soft @ torch.arange(4.0), atol=1e-5)
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_decides_and_the_global_generators_stay(kind: str) -> None:
    images, targets = batch(6)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    results = [mixer(kind)(images, targets, seed)[0] for seed in range(6)]
    torch.rand(3)
    again = [mixer(kind)(images, targets, seed)[0] for seed in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    assert any(not torch.equal(results[0], result) for result in results)
    torch.set_rng_state(states[0])
    mixer(kind)(images, targets, 9)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_without_mixing_targets_are_one_hot() -> None:
    images, targets = batch(5)
    same, soft = mixer("both", probability=0.0)(images, targets, 0)
    assert torch.equal(same, images)
    assert torch.equal(soft.argmax(1), targets)
    assert soft.max() == 1.0
    assert soft.dtype == torch.float32


def test_both_kinds_occur() -> None:
    images, targets = batch(4)
    values = [mixer("both")(images, targets, seed)[0][1].unique().numel() for seed in range(20)]
    assert {count > 1 for count in values} == {True, False}  # cutmix keeps whole values, mixup blends all pixels
