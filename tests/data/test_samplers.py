from __future__ import annotations

from collections import Counter

import pytest

from frostline.data.samplers import (
    EvaluationSampler,
    Key,
    Placement,
    TrainingSampler,
    leaves_single,
    training_length,
)

WORLDS = [1, 2, 3, 4]


def training(length: int, batch: int, world: int, *, epoch: int = 0, drop_last: bool = False) -> list[list[int]]:
    """The indices of an epoch, per rank."""
    ranks = []
    for rank in range(world):
        sampler = TrainingSampler(length, batch, seed=5, drop_last=drop_last, placement=Placement(rank, world))
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert len(keys) == len(sampler)
        assert {key.epoch for key in keys} <= {epoch}
        assert all(key.valid for key in keys)
        ranks.append([key.index for key in keys])
    return ranks


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("length", [4, 5, 7, 16, 31])
def test_evaluation_counts_each_picture_once(length: int, world: int) -> None:
    ranks = [list(EvaluationSampler(length, placement=Placement(rank, world))) for rank in range(world)]
    assert len({len(keys) for keys in ranks}) == 1
    counted = Counter(key.index for keys in ranks for key in keys if key.valid)
    assert counted == Counter(range(length))
    assert all(0 <= key.index < length for keys in ranks for key in keys)


def test_evaluation_of_fewer_pictures_than_ranks() -> None:
    ranks = [list(EvaluationSampler(1, placement=Placement(rank, 3))) for rank in range(3)]
    assert ranks == [[Key(0, 0, True)], [Key(0, 0, False)], [Key(0, 0, False)]]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("length", [5, 7, 16, 30])
def test_training_ranks_have_equally_many_and_see_everything(length: int, world: int) -> None:
    ranks = training(length, 3, world)
    assert len({len(indices) for indices in ranks}) == 1
    seen = Counter(index for indices in ranks for index in indices)
    left_out = world if leaves_single(length, 3, world_size=world) else 0
    assert len(seen) >= length - left_out
    assert max(seen.values()) <= 2


def test_the_pictures_of_a_step_do_not_depend_on_the_number_of_ranks() -> None:
    alone = training(24, 8, 1)[0]
    first, second = training(24, 4, 2)
    for step in range(3):
        shared = first[4 * step : 4 * step + 4] + second[4 * step : 4 * step + 4]
        assert set(shared) == set(alone[8 * step : 8 * step + 8])


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert training(50, 8, 1, epoch=3) == training(50, 8, 1, epoch=3)
    assert training(50, 8, 1, epoch=3) != training(50, 8, 1, epoch=4)
    other = TrainingSampler(50, 8, seed=6)
    assert [key.index for key in other] != training(50, 8, 1)[0]


def test_a_single_trailing_picture_is_left_out_and_another_one_in_each_epoch() -> None:
    left_out = set()
    for epoch in range(6):
        (indices,) = training(9, 4, 1, epoch=epoch)
        assert len(indices) == 8
        left_out |= set(range(9)) - set(indices)
    assert len(left_out) > 1


@pytest.mark.parametrize(
    ("length", "batch", "world", "drop_last", "expected"),
    [
        (10, 4, 1, False, 10),
        (9, 4, 1, False, 8),
        (9, 1, 1, False, 9),  # batches of one are what was asked for
        (1, 4, 1, False, 1),  # the only batch there is
        (10, 4, 1, True, 8),
        (3, 4, 1, True, 0),
        (9, 4, 2, False, 4),  # five each, the fifth alone
        (7, 2, 2, True, 2),
        (7, 2, 2, False, 4),
    ],
)
def test_length_of_an_epoch(length: int, batch: int, world: int, drop_last: bool, expected: int) -> None:
    assert training_length(length, batch, drop_last=drop_last, world_size=world) == expected


def test_resuming_leaves_out_what_was_seen_once() -> None:
    sampler = TrainingSampler(20, 4, seed=0)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.resume_at(2, 3)
    assert list(sampler) == whole[12:]
    assert list(sampler) == whole
    sampler.resume_at(1, 3)
    assert list(sampler) == whole
    assert len(sampler) == 20


def test_alone_without_torch_distributed() -> None:
    assert Placement.current() == Placement(0, 1)
