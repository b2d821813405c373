from __future__ import annotations

import dataclasses
import random
from itertools import product
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from frostline.backbones import load_timm_folder, resolve_preprocessing, save_timm_folder
from frostline.data import Augmentation, evaluation_transform
from frostline.data.geometry import RESIZES, RandomPart, Resize, evaluation_geometry, lost_share, resized
from frostline.types import Preprocessing

LEFT, RIGHT, TOP, BOTTOM = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
GRAY, MEAN = (90, 90, 90), (102, 128, 153)
SIZES = [(3, 32, 32), (3, 24, 40)]
SHAPES = [(120, 120), (200, 100), (100, 200), (640, 40), (40, 640)]


def bordered(width: int, height: int, line: float = 0.125) -> Image.Image:
    """Gray, with a strip of another color along each side."""
    picture = Image.new("RGB", (width, height), GRAY)
    across, down = max(1, round(width * line)), max(1, round(height * line))
    picture.paste(TOP, (0, 0, width, down))
    picture.paste(BOTTOM, (0, height - down, width, height))
    picture.paste(LEFT, (0, down, across, height - down))
    picture.paste(RIGHT, (width - across, down, width, height - down))
    return picture


def shown(preprocessing: Preprocessing, picture: Image.Image) -> Image.Image:
    for step in evaluation_geometry(preprocessing):
        picture = step(picture)
    return picture


def colors(picture: Image.Image) -> dict[tuple[int, int, int], int]:
    """How many pixels have about each of the colors of a bordered picture."""
    pixels = np.asarray(picture).astype(int)
    return {
        color: int((np.abs(pixels - color).max(axis=2) < 40).sum()) for color in (LEFT, RIGHT, TOP, BOTTOM, GRAY, MEAN)
    }


def policy(preprocessing: Preprocessing, resize: Resize, size: tuple[int, int, int]) -> Preprocessing:
    told = dataclasses.replace(preprocessing, size=size, crop_pct=0.875, interpolation="bilinear")
    return resized(told, resize)


def test_without_a_policy_nothing_changes(preprocessing: Preprocessing) -> None:
    assert resized(preprocessing, None) is preprocessing
    squashed = dataclasses.replace(preprocessing, crop_mode="squash", crop_pct=0.9)
    assert resized(squashed, "crop") == dataclasses.replace(preprocessing, crop_pct=0.9)
    assert (resized(squashed, "pad").crop_mode, resized(squashed, "pad").crop_pct) == ("border", 1.0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_crop_loses_borders_and_squash_and_pad_keep_them(
    preprocessing: Preprocessing, size: tuple[int, int, int], shape: tuple[int, int]
) -> None:
    picture = bordered(*shape)
    found = {resize: shown(policy(preprocessing, resize, size), picture) for resize in RESIZES}
    assert all(one.size == (size[2], size[1]) for one in found.values())
    sides = (LEFT, RIGHT, TOP, BOTTOM)
    input_aspect, aspect = size[2] / size[1], shape[0] / shape[1]
    # the crop shows about 0.89 of a side, and less of the one that is too long
    for ends, kept in (((LEFT, RIGHT), input_aspect / aspect), ((TOP, BOTTOM), aspect / input_aspect)):
        assert all(colors(found["crop"])[end] == 0 for end in ends) == (0.89 * kept < 0.75), ends
    # a strip an eighth of a side wide keeps its share of the area
    assert all(colors(found["squash"])[side] > 0.04 * size[1] * size[2] for side in sides)
    assert colors(found["squash"])[MEAN] < 0.02 * size[1] * size[2]
    filled = min(input_aspect, aspect) / max(input_aspect, aspect)
    assert colors(found["pad"])[MEAN] == pytest.approx((1 - filled) * size[1] * size[2], abs=0.1 * size[1] * size[2])
    if max(aspect, 1 / aspect) < 4:  # else a strip is less than a pixel of what is left
        assert all(colors(found["pad"])[side] > 0.02 * filled * size[1] * size[2] for side in sides)


@pytest.mark.parametrize("resize", RESIZES)
def test_what_is_lost_is_what_is_measured(preprocessing: Preprocessing, resize: Resize) -> None:
    for shape, size in product([(320, 320), (640, 320), (320, 640), (400, 320)], [(3, 64, 64), (3, 64, 128)]):
        told = policy(preprocessing, resize, size)
        # each pixel says where it lies
        across, down = np.meshgrid(np.linspace(0, 255, shape[0]), np.linspace(0, 255, shape[1]))
        picture = Image.fromarray(np.dstack([across, down, np.full_like(down, 255)]).round().astype(np.uint8))
        pixels = np.asarray(shown(told, picture)).astype(float)
        inside = pixels[pixels[..., 2] > 250]
        kept = np.prod((inside.max(axis=0) - inside.min(axis=0))[:2]) / 255**2
        assert lost_share(told, *shape) == pytest.approx(1 - kept, abs=0.05)
        assert (lost_share(told, *shape) == 0) == (resize != "crop")


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (1, 40_000), (40_000, 1), (3, 20_001), (20_000, 2)])
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", SIZES)
def test_a_line_of_a_picture_is_shown_too(
    preprocessing: Preprocessing, shape: tuple[int, int], resize: Resize, size: tuple[int, int, int]
) -> None:
    told = policy(preprocessing, resize, size)
    picture = bordered(*shape)
    tensor = evaluation_transform(told)(picture)
    assert tensor.shape == size
    assert bool(torch.isfinite(tensor).all())
    assert any(colors(shown(told, picture))[color] for color in (LEFT, RIGHT, TOP, BOTTOM, GRAY))
    for seed in range(3):
        random.seed(seed)
        changed = Augmentation(scale=[0.3, 1.0]).train_transform(told)(picture)
        assert changed.shape == size


@pytest.mark.parametrize("size", [(3, 224, 224), (3, 224, 320)])
def test_a_long_picture_is_not_resized_as_a_whole(
    preprocessing: Preprocessing, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *more: Any, **how: Any) -> Image.Image:
        made.append(size)
        return resize(self, size, *more, **how)

    monkeypatch.setattr(Image.Image, "resize", watched)
    # as a whole it would be 256 x 51 200 000 pixels
    assert shown(policy(preprocessing, "crop", size), Image.new("RGB", (200_000, 1))).size == (size[2], size[1])
    assert made == [(size[2], size[1])]


@pytest.mark.parametrize("shape", [(2400, 40), (40, 2400), (2401, 40), (40, 2407), (1999, 33), (1, 200)])
@pytest.mark.parametrize("size", SIZES)
def test_the_middle_of_a_long_picture_is_that_of_timm(
    preprocessing: Preprocessing, shape: tuple[int, int], size: tuple[int, int, int]
) -> None:
    told = policy(preprocessing, "crop", size)
    noise = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8)
    theirs = create_transform(
        told.size, interpolation="bilinear", mean=told.mean, std=told.std, crop_pct=told.crop_pct, crop_mode="center"
    )
    picture = Image.fromarray(noise)
    difference = (evaluation_transform(told)(picture) - theirs(picture)).abs() * torch.tensor(told.std).view(-1, 1, 1)
    assert float(difference.max()) < 2.5 / 255  # of two passes, each rounds


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(3, 64, 64), (3, 64, 96)])
def test_plain_timm_does_the_same_with_a_saved_model(tmp_path, resize: Resize, size: tuple[int, int, int]) -> None:
    model = timm.create_model("test_resnet", num_classes=2)
    told = dataclasses.replace(resolve_preprocessing(model), size=size)
    save_timm_folder(model, tmp_path / "model", labels=["a", "b"], preprocessing=resized(told, resize))
    plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    theirs = create_transform(**resolve_data_config(plain.pretrained_cfg, model=plain))
    saved = load_timm_folder(tmp_path / "model").preprocessing
    assert saved == resized(told, resize)
    for shape in SHAPES:
        picture = bordered(*shape)
        ours = evaluation_transform(saved)(picture)
        assert ours.shape == size
        assert torch.equal(ours, theirs(picture))


# --- random parts -----------------------------------------------------------------------------------------------------


def parts(told: Preprocessing, picture: Image.Image, count: int = 200, **how: tuple[float, float]) -> list[Image.Image]:
    random.seed(0)
    crop = RandomPart(told, how.get("scale", (0.3, 1.0)), how.get("ratio", (3 / 4, 4 / 3)))
    return [crop(picture) for _ in range(count)]


@pytest.mark.parametrize("resize", ["squash", "pad"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(200, 100), (100, 200), (120, 120)])
def test_a_random_part_of_all_is_what_evaluation_sees(
    preprocessing: Preprocessing, resize: Resize, size: tuple[int, int, int], shape: tuple[int, int]
) -> None:
    told = policy(preprocessing, resize, size)
    picture = bordered(*shape)
    (whole,) = parts(told, picture, 1, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    there, here = np.asarray(shown(told, picture)).astype(int), np.asarray(whole).astype(int)
    assert (np.abs(there - here).max(axis=2) > 8).mean() < 0.03  # an edge may lie half a pixel aside


@pytest.mark.parametrize("resize", ["squash", "pad"])
@pytest.mark.parametrize("size", SIZES)
def test_random_parts_reach_every_border_and_differ(
    preprocessing: Preprocessing, resize: Resize, size: tuple[int, int, int]
) -> None:
    found = parts(policy(preprocessing, resize, size), bordered(200, 100))
    assert {one.size for one in found} == {(size[2], size[1])}
    for side in (LEFT, RIGHT, TOP, BOTTOM):
        shares = [colors(one)[side] > 0 for one in found]
        assert 0.1 < np.mean(shares) < 0.95
    assert len({one.tobytes() for one in found}) > 150


def test_a_padded_part_shows_enough_of_the_picture(preprocessing: Preprocessing) -> None:
    told = policy(preprocessing, "pad", (3, 64, 64))
    bar = Image.new("RGB", (400, 40), LEFT)
    least, area = 0.3, 64 * 6.4
    for one in parts(told, bar, scale=(least, 0.6)):
        # a crop enlarges what it shows, but never by more than the inverse of its own share
        assert colors(one)[LEFT] > 0.9 * least * area


def test_a_squashed_part_keeps_the_proportions_of_the_squashed_picture(preprocessing: Preprocessing) -> None:
    disk = Image.new("RGB", (400, 100))
    across, down = np.meshgrid(np.arange(400), np.arange(100))
    inside = ((across - 200) / 40) ** 2 + ((down - 50) / 10) ** 2 < 1
    disk.paste((255, 255, 255), mask=Image.fromarray((inside * 255).astype(np.uint8)))
    told = policy(preprocessing, "squash", (3, 64, 64))
    for one in parts(told, disk, 100, scale=(0.2, 1.0), ratio=(1.0, 1.0)):
        rows, columns = np.nonzero(np.asarray(one)[..., 0] > 127)
        if len(rows) and rows.min() > 0 and rows.max() < 63 and columns.min() > 0 and columns.max() < 63:
            assert abs(np.ptp(rows) - np.ptp(columns)) <= 2


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("scale", [None, [0.5, 1.0]])
def test_training_has_the_policy_of_evaluation(
    preprocessing: Preprocessing, resize: Resize, scale: list[float] | None
) -> None:
    told = policy(preprocessing, resize, (3, 32, 32))
    picture = bordered(300, 100)
    random.seed(0)
    transform = Augmentation(scale=scale).train_transform(told)
    tensors = [transform(picture) for _ in range(60)]
    if scale is None:
        assert all(torch.equal(one, evaluation_transform(told)(picture)) for one in tensors)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (told.mean, told.std))
    seen = [Image.fromarray(((one * std + mean) * 255).byte().permute(1, 2, 0).numpy()) for one in tensors]
    wide = [colors(one) for one in seen if colors(one)[LEFT] and colors(one)[RIGHT]]
    # a square crop of a picture three times as wide as high has one end of it at most
    assert bool(wide) == (resize != "crop")


def test_one_channel_pads_with_the_gray_of_its_mean(preprocessing: Preprocessing) -> None:
    told = resized(dataclasses.replace(preprocessing, size=(1, 16, 16), mean=(0.5,), std=(0.25,)), "pad")
    tensor = evaluation_transform(told)(Image.new("RGB", (40, 20), (255, 255, 255)))
    assert tensor.shape == (1, 16, 16)
    assert float(tensor[0, 0].abs().max()) < 0.02
    strong = Augmentation(scale=[0.5, 1.0], auto_augment="rand-m9-n4-p1.0").train_transform(told)
    assert all(strong(bordered(40, 20)).shape == (1, 16, 16) for _ in range(30))
