"""Randomness without state: a seed is a function of where in the run it is used."""

from __future__ import annotations

import hashlib

import torch


def stateless_seed(*coordinates: int) -> int:
    """A 63-bit seed out of integers such as (seed, epoch, batch, rank); any change of one gives another."""
    digest = hashlib.blake2b(",".join(map(str, coordinates)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generator of the CPU and those of ``device``.

    ``torch.manual_seed`` seeds every kind of accelerator; for one that was never used it keeps the call for later with
    a printed stack, once a step.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
