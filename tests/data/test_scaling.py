"""What a frame shows of a picture, decoded whole or smaller, against Pillow's crop and resize."""

from __future__ import annotations

import dataclasses
import io
import random

import numpy as np
import pytest
import torch
from photographs import jpeg, photograph
from PIL import Image
from timm.data import create_transform

from frostline.data import Augmentation, evaluation_transform
from frostline.data.decoding import decode_picture
from frostline.data.frames import MARGIN, Frame, evaluation_frame, random_frame
from frostline.data.scaling import framed
from frostline.data.transforms import Look, PictureTransform
from frostline.types import Preprocessing

BOXES = [(0, 0, 300, 200), (10, 20, 110, 90), (37, 3, 290, 199), (100, 100, 108, 104)]


def input_of(content: bytes, transform: PictureTransform) -> torch.Tensor:
    look = Look(transform)
    return look.input(decode_picture(content, "made", reduction=look.reduction))


def levels(one: torch.Tensor, other: torch.Tensor, told: Preprocessing) -> torch.Tensor:
    return (one - other).abs() * torch.tensor(told.std).view(-1, 1, 1) * 255


@pytest.fixture
def photo_preprocessing(preprocessing: Preprocessing) -> Preprocessing:
    return dataclasses.replace(preprocessing, size=(3, 64, 64), crop_pct=0.875, interpolation="bicubic")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("box", BOXES)
def test_a_crop_is_pillows_to_one_level(box: tuple[int, int, int, int], interpolation: str) -> None:
    picture = photograph(300, 200)
    frame = Frame(box, (50, 40), (0, 0, 50, 40), (50, 40))
    resample = Image.Resampling[interpolation.upper()]
    expected = np.asarray(picture.crop(box).resize((50, 40), resample)).astype(int)
    shown = framed(picture, picture.size, frame, interpolation)
    assert shown.dtype == torch.uint8
    assert np.abs(shown.permute(1, 2, 0).numpy() - expected).max() <= (interpolation in ("bilinear", "bicubic"))


def test_the_window_is_that_of_the_whole() -> None:
    picture = photograph(301, 200)
    whole = np.asarray(picture.resize((120, 80), Image.Resampling.BICUBIC)).astype(int)
    for left, top, right, bottom in [(0, 0, 120, 80), (31, 17, 95, 70), (110, 70, 120, 80), (0, 79, 1, 80)]:
        frame = Frame((0, 0, 301, 200), (120, 80), (left, top, right, bottom), (right - left, bottom - top))
        shown = framed(picture, picture.size, frame, "bicubic").permute(1, 2, 0).numpy()
        assert np.abs(shown - whole[top:bottom, left:right]).max() <= 1


def test_pixels_of_many_blocks_of_memory_are_read_too() -> None:
    before = Image.core.get_block_size()
    Image.core.set_block_size(4096)
    try:
        picture = photograph(300, 200).copy()
        frame = Frame((0, 0, 300, 200), (60, 40), (0, 0, 60, 40), (60, 40))
        expected = np.asarray(picture.resize((60, 40), Image.Resampling.BILINEAR)).astype(int)
        shown = framed(picture, picture.size, frame, "bilinear").permute(1, 2, 0).numpy()
    finally:
        Image.core.set_block_size(before)
    assert np.abs(shown - expected).max() <= 1


def test_what_is_not_a_smaller_one_is_refused() -> None:
    frame = Frame((0, 0, 300, 200), (60, 40), (0, 0, 60, 40), (60, 40))
    with pytest.raises(ValueError, match="no reduced one"):
        framed(Image.new("RGB", (100, 100)), (300, 200), frame, "bicubic")


# --- reduced JPEG -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "by"), [((512, 384), 2), ((1023, 771), 4), ((2000, 1500), 8), ((290, 400), 1), ((293, 293), 2)]
)
def test_a_large_jpeg_is_decoded_smaller(photo_preprocessing: Preprocessing, size: tuple[int, int], by: int) -> None:
    transform = evaluation_transform(photo_preprocessing)
    asked: list[int] = []
    look = Look(transform)

    def reduction(width: int, height: int) -> int:
        asked.append(look.reduction(width, height))
        return asked[-1]

    picture = decode_picture(jpeg(photograph(*size)), "made", reduction=reduction)
    assert asked == [by]
    assert picture.size == tuple(-(-side // by) for side in size)
    assert look.input(picture).shape == photo_preprocessing.size


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(512, 384), (517, 391), (1200, 1024), (1601, 2400)])
def test_the_stated_tolerance(photo_preprocessing: Preprocessing, size: tuple[int, int], interpolation: str) -> None:
    told = dataclasses.replace(photo_preprocessing, interpolation=interpolation)
    content = jpeg(photograph(*size), subsampling="4:2:0")
    whole = evaluation_transform(told, exact=True)(decode_picture(content, "made"))
    found = levels(input_of(content, evaluation_transform(told)), whole, told)
    assert float(found.mean()) < 1.0
    assert float(torch.quantile(found, 0.99)) < 6.0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(512, 384), (515, 389)])
def test_a_turned_picture_is_turned(
    photo_preprocessing: Preprocessing, orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = jpeg(photograph(*size), exif=exif)
    # a crop may begin a quarter of a pixel aside
    for transform, most in ((evaluation_transform(photo_preprocessing), 1.0), (cropping(photo_preprocessing), 4.0)):
        random.seed(3)
        whole = transform(decode_picture(content, "made"))
        random.seed(3)
        found = levels(input_of(content, transform), whole, photo_preprocessing)
        assert float(found.mean()) < most


def cropping(told: Preprocessing) -> PictureTransform:
    return PictureTransform(told, random_frame(told, (0.8, 1.0), (0.75, 1.33)))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_other_jpegs_are_reduced_too(photo_preprocessing: Preprocessing, mode: str, progressive: bool) -> None:
    content = jpeg(photograph(640, 512).convert(mode), progressive=progressive)
    transform = evaluation_transform(photo_preprocessing)
    assert decode_picture(content, "made", reduction=lambda *_: 4).size == (160, 128)
    whole = transform(decode_picture(content, "made"))
    assert float(levels(input_of(content, transform), whole, photo_preprocessing).mean()) < 1.0


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_other_formats_are_decoded_as_they_are(photo_preprocessing: Preprocessing, kind: str) -> None:
    file = io.BytesIO()
    photograph(640, 512).save(file, kind)
    assert decode_picture(file.getvalue(), "made", reduction=lambda *_: 8).size == (640, 512)
    transform = evaluation_transform(photo_preprocessing)
    assert torch.equal(input_of(file.getvalue(), transform), transform(decode_picture(file.getvalue(), "made")))


@pytest.mark.parametrize("shape", [(1, 1), (9, 7), (16, 3000), (3000, 16), (2, 4001)])
def test_small_and_thin_jpegs(photo_preprocessing: Preprocessing, shape: tuple[int, int]) -> None:
    content = jpeg(photograph(*shape))
    for mode in ("center", "squash", "border"):
        told = dataclasses.replace(photo_preprocessing, crop_mode=mode)
        for transform in (evaluation_transform(told), Augmentation(scale=[0.3, 1.0]).train_transform(told)):
            found = input_of(content, transform)
            assert found.shape == told.size
            assert bool(torch.isfinite(found).all())


# --- random crops -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [(0.3, 1.0), (0.02, 0.1)])
def test_a_random_crop_is_that_of_timm(photo_preprocessing: Preprocessing, scale: tuple[float, float]) -> None:
    told = photo_preprocessing
    theirs = create_transform(
        told.size,
        is_training=True,
        scale=scale,
        ratio=(0.75, 1.33),
        hflip=0.5,
        color_jitter=None,
        interpolation=told.interpolation,
        mean=told.mean,
        std=told.std,
    )
    ours = Augmentation(scale=scale, ratio=(0.75, 1.33), hflip=0.5).train_transform(told)
    exact = Augmentation(scale=scale, ratio=(0.75, 1.33), hflip=0.5).train_transform(told, exact=True)
    picture = photograph(300, 200)
    content = jpeg(photograph(1100, 900))
    for seed in range(12):
        made = []
        for transform in (theirs, exact, ours):
            random.seed(seed)
            torch.manual_seed(seed)
            made.append(transform(picture))
        assert torch.equal(made[0], made[1])
        assert float(levels(made[2], made[1], told).max()) <= 1.01
        random.seed(seed)
        torch.manual_seed(seed)
        whole = exact(decode_picture(content, "made"))
        random.seed(seed)
        torch.manual_seed(seed)
        found = levels(input_of(content, ours), whole, told)
        assert float(found.mean()) < 6.0  # at most a quarter of a pixel aside


def test_a_small_crop_is_not_reduced(photo_preprocessing: Preprocessing) -> None:
    frame_of = random_frame(photo_preprocessing, (0.01, 1.0), (0.75, 1.33))
    random.seed(0)
    for _ in range(100):
        frame = frame_of(2000, 1500)
        left, top, right, bottom = frame.box
        by = frame.reduction()
        assert by in (1, 2, 4, 8)
        assert by == 1 or min((right - left) / 64, (bottom - top) / 64) / by >= MARGIN


def test_the_frame_of_evaluation_is_whole(photo_preprocessing: Preprocessing) -> None:
    frame = evaluation_frame(photo_preprocessing)(512, 384)
    assert frame.box == (0, 0, 512, 384)
    assert (frame.scaled, frame.window, frame.canvas) == ((97, 73), (16, 4, 80, 68), (64, 64))
