"""Randomness without state: a seed is a function of where in the run it is used."""

from __future__ import annotations

import hashlib


def stateless_seed(*coordinates: int) -> int:
    """A 63-bit seed out of integers such as (seed, epoch, batch, rank); any change of one gives another."""
    digest = hashlib.blake2b(",".join(map(str, coordinates)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
