from __future__ import annotations

from frostline.tasks import stateless_seed


def test_a_seed_depends_on_every_coordinate_and_nothing_else() -> None:
    seeds = {stateless_seed(s, e, b, r) for s in range(3) for e in range(3) for b in range(3) for r in range(3)}
    assert len(seeds) == 81
    assert stateless_seed(0, 1, 2, 3) == stateless_seed(0, 1, 2, 3)
    assert stateless_seed(1, 11) != stateless_seed(11, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
