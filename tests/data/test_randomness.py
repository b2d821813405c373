from __future__ import annotations

import random

import numpy as np
import torch

from frostline.data.randomness import derive_seed, kept_generators, seed_generators


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeds_differ_by_part_and_position_and_are_pinned() -> None:
    seeds = [derive_seed(*parts) for parts in (("a", 1, 2), ("a", 2, 1), ("a", 12), ("b", 1, 2))]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("order", 0, 0) == 4876581156571347824


def test_seeding_reaches_all_three_generators_and_keeping_puts_them_back() -> None:
    seed_generators(1)
    first = draw()
    with kept_generators():
        seed_generators(2)
        inside = draw()
    second = draw()
    seed_generators(1)
    assert (draw(), draw()) == (first, second)
    assert all(a != b for a, b in zip(first, inside, strict=True))
