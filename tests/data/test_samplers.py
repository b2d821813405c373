from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from frostline.data import Augmentation, ImageData
from frostline.data.digits import ArraySplit
from frostline.data.loading import PictureDataset
from frostline.data.randomness import derive_seed, kept_generators, seed_generators
from frostline.data.samplers import (
    BalancedSampler,
    EvaluationSampler,
    Key,
    Placement,
    TrainingSampler,
    leaves_single,
    training_length,
)
from frostline.types import Preprocessing

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


# the classes of 37 pictures; the third has none
COUNTS = (3, 20, 0, 14)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS)).astype(np.int64)


def balanced(batch: int = 4, world: int = 1, *, epoch: int = 0, drop_last: bool = False, seed: int = 5) -> list[Key]:
    """An epoch in the order of its steps, of all ranks together."""
    ranks = []
    for rank in range(world):
        sampler = BalancedSampler(LABELS, batch, seed=seed, drop_last=drop_last, placement=Placement(rank, world))
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
        assert len(sampler) == len(
            TrainingSampler(37, batch, seed=seed, drop_last=drop_last, placement=Placement(rank, world))
        )
    return [key for step in zip(*ranks, strict=True) for key in step]


def per_class(keys: list[Key]) -> list[int]:
    return np.bincount(LABELS[[key.index for key in keys]], minlength=4).tolist()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_at_any_point_of_an_epoch_no_class_is_more_than_one_picture_ahead(world: int, drop_last: bool) -> None:
    for epoch in range(4):
        keys = balanced(world=world, epoch=epoch, drop_last=drop_last)
        for end in range(len(keys) + 1):
            counts = per_class(keys[:end])
            assert counts.pop(2) == 0
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_one_order_whatever_their_number(world: int) -> None:
    for epoch in range(3):
        alone, shared = balanced(5, 1, epoch=epoch), balanced(5, world, epoch=epoch)
        both = min(len(alone), len(shared))
        assert both >= 37 - world
        assert shared[:both] == alone[:both]
        assert Counter(shared[:both]) == Counter(alone[:both])
        assert len(shared) % world == 0


def test_which_classes_get_one_picture_more_goes_around() -> None:
    # 37 = 12 for each of three classes, and one more for another class in each epoch
    extra = [per_class(balanced(5, epoch=epoch)).index(13) for epoch in range(6)]
    assert sorted(extra[:3]) == [0, 1, 3]
    assert extra[3:] == extra[:3]


def test_the_pictures_of_a_class_are_used_evenly_in_an_epoch_and_over_epochs() -> None:
    total: Counter[int] = Counter()
    for epoch in range(20):
        keys = balanced(5, epoch=epoch)
        seen = Counter(key.index for key in keys)
        total += seen
        for label in (0, 1, 3):
            (members,) = (label == LABELS).nonzero()
            once, overall = ([counter[index] for index in members] for counter in (seen, total))
            assert max(once) - min(once) <= 1
            assert max(overall) - min(overall) <= 1
        for index, times in seen.items():
            assert sorted(key.repeat for key in keys if key.index == index) == list(range(times))
        # of twenty pictures an epoch shows twelve or thirteen: in two epochs all were seen
        if epoch == 1:
            assert set(total) == set(range(37))


def test_a_balanced_epoch_is_a_function_of_seed_and_epoch() -> None:
    assert balanced(epoch=3) == balanced(epoch=3)
    first, second = ([key.index for key in balanced(epoch=epoch)] for epoch in (3, 4))
    assert first != second
    assert first != [key.index for key in balanced(epoch=3, seed=6)]
    # the small class is shown whole in both, in another order
    small = set(np.flatnonzero(LABELS == 0).tolist())
    assert [index for index in first if index in small] != [index for index in second if index in small]


@pytest.mark.parametrize("world", [1, 2])
def test_resuming_a_balanced_epoch_leaves_out_what_was_seen(world: int) -> None:
    for rank in range(world):
        sampler = BalancedSampler(LABELS, 4, seed=0, placement=Placement(rank, world))
        sampler.set_epoch(2)
        whole = list(sampler)
        resumed = BalancedSampler(LABELS, 4, seed=0, placement=Placement(rank, world))
        resumed.set_epoch(2)
        resumed.resume_at(2, 3)
        assert list(resumed) == whole[12:]
        assert list(resumed) == whole


def test_equal_classes_are_each_shown_whole() -> None:
    sampler = BalancedSampler(np.repeat(np.arange(3), 5).astype(np.int64), 4, seed=0)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(sampler, key=lambda key: key.index) == [Key(epoch, index) for index in range(15)]


def test_a_repeat_is_augmented_in_another_way_and_what_comes_first_as_ever() -> None:
    pictures = ArraySplit(np.zeros((2, 8, 8), dtype=np.uint8), np.array([0, 1]), "array")

    def noise(picture: Image.Image) -> torch.Tensor:
        return torch.rand(4)

    def drawn(key: Key, seed: int | None = 7) -> torch.Tensor:
        (sample,) = PictureDataset(pictures, noise, seed).__getitems__([key])
        return sample.image

    first = drawn(Key(3, 1))
    assert torch.equal(first, drawn(Key(3, 1, repeat=0)))
    assert torch.equal(drawn(Key(3, 1, repeat=2)), drawn(Key(3, 1, repeat=2)))
    views = [drawn(Key(3, 1, repeat=repeat)) for repeat in range(4)]
    assert len({tuple(view.tolist()) for view in views}) == 4
    # as before there were repeats: a run from then goes on as the same run
    with kept_generators():
        seed_generators(derive_seed("augmentation", 7, 3, 1))
        assert torch.equal(first, torch.rand(4))


def test_the_loader_of_balanced_data_draws_small_classes_again(
    array_data: type[ImageData], preprocessing: Preprocessing
) -> None:
    data = array_data((3, 17), batch_size=4, sampler="balanced")
    data.prepare(preprocessing, Augmentation(), seed=0)
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        targets = [batch.targets.bincount(minlength=2).tolist() for batch in loader]
        assert targets == [[2, 2]] * 5
    assert data.batches_per_epoch() == 5


def test_fixed_views_take_turns_and_repeats_take_others():
    sampler = TrainingSampler(6, 2, seed=0)
    sampler.set_epoch(5)
    fresh = list(sampler)
    sampler.views = 3
    fixed = list(sampler)
    assert [key.index for key in fixed] == [key.index for key in fresh]
    assert {key.epoch for key in fresh} == {5}
    assert {key.epoch for key in fixed} == {5 % 3}
    balanced = BalancedSampler(np.array([0, 1, 1, 1, 1, 1]), 2, seed=0)
    balanced.views = 2
    repeats = [key for key in balanced if key.index == 0]
    assert sorted(key.epoch for key in repeats) == [0, 0, 1]
    assert {key.repeat for key in repeats} == {0}
