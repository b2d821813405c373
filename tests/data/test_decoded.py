"""Pictures that are kept decoded: the same as those that are decoded each time, or not kept."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import jpeg, photograph
from PIL import Image

from frostline.data import Augmentation, DigitsData, FolderData
from frostline.data import decoded as room
from frostline.data.decoded import KeptPictures
from frostline.data.frames import MARGIN, enough_for, random_frame
from frostline.errors import ConfigError, DataError
from frostline.types import Preprocessing

CROPS = Augmentation(scale=[0.4, 1.0], hflip=0.5)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "frostline" / "features"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    sizes = [(300, 200), (200, 290), (640, 512), (90, 60)]
    for number, (split, name) in enumerate((split, name) for split in ("train", "val") for name in ("a", "b")):
        place = root / split / name
        place.mkdir(parents=True)
        for at, size in enumerate(sizes):
            (place / f"{at}.jpg").write_bytes(jpeg(photograph(*size, seed=10 * number + at)))
    return root


@pytest.fixture
def root(pictures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "data"))


@pytest.fixture
def told(preprocessing: Preprocessing) -> Preprocessing:
    return dataclasses.replace(preprocessing, size=(3, 48, 64), interpolation="bicubic", crop_pct=0.9)


def prepared(root: Path, told: Preprocessing, augmentation: Augmentation | None = None, **how: Any) -> FolderData:
    data = FolderData(str(root), batch_size=3, **{"workers": 0, "val_fraction": 0, **how})
    data.prepare(told, augmentation or Augmentation(), seed=1)
    return data


def epochs(data: FolderData, split: str = "train", *, train: bool = True, count: int = 2) -> list[torch.Tensor]:
    loader = data.loader(split, train=train)
    found = []
    for epoch in range(count):
        if train:
            loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        found.append(torch.cat([batch.images for batch in loader]))
    return found


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.features"))


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("decode", ["fast", "exact"])
@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(), Augmentation(hflip=0.5, color_jitter=0.2), Augmentation(erase=0.7)],
    ids=["plain", "colors", "erasing"],
)
@pytest.mark.parametrize("crop_mode", ["center", "border"])
def test_what_is_always_shown_is_kept_bit_for_bit(
    root: Path, told: Preprocessing, augmentation: Augmentation, where: str, decode: str, crop_mode: str
) -> None:
    told = dataclasses.replace(told, crop_mode=crop_mode)
    plain, kept = (prepared(root, told, augmentation, decode=decode, decoded=one) for one in (None, where))
    assert all(map(torch.equal, epochs(plain), epochs(kept)))
    assert all(map(torch.equal, epochs(plain, "val", train=False), epochs(kept, "val", train=False)))


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_random_crops_of_what_is_kept_are_those_of_the_files(
    root: Path, told: Preprocessing, where: str, crop_mode: str
) -> None:
    told = dataclasses.replace(told, crop_mode=crop_mode)
    plain, kept = prepared(root, told, CROPS), prepared(root, told, CROPS, decoded=where)
    for one, other in zip(epochs(plain), epochs(kept), strict=True):
        levels = (one - other).abs() * torch.tensor(told.std).view(-1, 1, 1) * 255
        assert float(levels.mean()) < 3.0
        assert float(torch.quantile(levels, 0.9)) < 12.0
    assert plain.recipe("train", train=True) != kept.recipe("train", train=True)


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("augmentation", [Augmentation(), CROPS], ids=["plain", "crops"])
def test_files_are_read_once(
    root: Path, told: Preprocessing, where: str, augmentation: Augmentation, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepared(root, told, augmentation, decoded=where, workers=2)
    loader = data.loader("train", train=True)
    first = torch.cat([batch.images for batch in loader])
    assert "8 pictures decoded" in capsys.readouterr().err
    for file in (root / "train").rglob("*.jpg"):
        file.unlink()
    assert torch.equal(first, torch.cat([batch.images for batch in loader]))


def test_another_run_finds_them(
    root: Path, told: Preprocessing, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = epochs(prepared(root, told, decoded="disk"))
    assert len(files(cache)) == 2
    capsys.readouterr()
    again = epochs(prepared(root, told, decoded="disk"))
    assert capsys.readouterr().err == ""
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize(
    "change",
    [
        {"decode": "exact"},
        {"told": {"size": (3, 32, 32)}},
        {"told": {"interpolation": "bilinear"}},
        {"told": {"crop_pct": 1.0}},
        {"augmentation": CROPS},
        {"picture": True},
    ],
    ids=["decode", "size", "interpolation", "crop_pct", "augmentation", "picture"],
)
def test_another_input_is_another_key(root: Path, told: Preprocessing, cache: Path, change: dict[str, Any]) -> None:
    epochs(prepared(root, told, decoded="disk"), count=1)
    if change.pop("picture", False):
        (root / "train" / "a" / "0.jpg").write_bytes(jpeg(photograph(300, 200, seed=99)))
    other = dataclasses.replace(told, **change.pop("told", {}))
    kept = epochs(prepared(root, other, decoded="disk", **change), count=1)
    assert len(files(cache)) == 4
    if "augmentation" not in change:
        assert torch.equal(kept[0], epochs(prepared(root, other, **change), count=1)[0])


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_damaged_ones_are_decoded_anew(
    root: Path, told: Preprocessing, cache: Path, which: int, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = epochs(prepared(root, told, decoded="disk"))
    file = files(cache)[which]
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content[:-9] if how == "cut" else content)
    assert all(map(torch.equal, first, epochs(prepared(root, told, decoded="disk"))))
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert said.count("pictures decoded") == 2


@pytest.mark.parametrize("how", ["a file in the way", "a full disk"])
def test_without_a_place_they_are_decoded_each_time(
    root: Path,
    told: Preprocessing,
    cache: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if how == "a full disk":
        usage = shutil.disk_usage(root)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    else:
        cache.parent.mkdir(parents=True)
        cache.touch()
    plain = epochs(prepared(root, told))
    assert all(map(torch.equal, plain, epochs(prepared(root, told, decoded="disk"))))
    assert "decoded each time" in capsys.readouterr().err


def test_more_than_half_of_the_memory_is_not_taken(
    root: Path, told: Preprocessing, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "_memory", lambda: 100_000)
    assert all(map(torch.equal, epochs(prepared(root, told)), epochs(prepared(root, told, decoded="memory"))))
    assert "more than half of the memory" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("augmentation", [Augmentation(), CROPS], ids=["plain", "crops"])
@pytest.mark.parametrize("damage", ["cut", "none"])
def test_what_cannot_be_read_is_said_each_time(
    root: Path, told: Preprocessing, where: str, augmentation: Augmentation, damage: str
) -> None:
    bad = root / "train" / "a" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:3000] if damage == "cut" else b"no picture")
    for _ in range(2):
        with pytest.raises(DataError, match=r"2\.jpg"):
            epochs(prepared(root, told, augmentation, decoded=where))
    skipping = prepared(root, told, augmentation, decoded=where, on_error="skip")
    assert [len(epoch) for epoch in epochs(skipping)] == [7, 7]


def test_evaluation_and_a_fixed_crop_share(root: Path, told: Preprocessing, cache: Path) -> None:
    data = prepared(root, told, Augmentation(hflip=0.5), decoded="disk")
    epochs(data, "train", train=True, count=1)
    epochs(data, "train", train=False, count=1)
    assert len(files(cache)) == 2


def test_a_few_pictures_do_not_have_all_decoded(root: Path, told: Preprocessing, cache: Path) -> None:
    data = prepared(root, told, decoded="disk")
    assert len(list(data.deliveries("train", train=False, positions=[1, 2]))) == 1
    assert not files(cache)


def test_what_cannot_be_had_is_refused(root: Path, told: Preprocessing) -> None:
    with pytest.raises(ConfigError, match=r"data\.decode=exact forbids"):
        prepared(root, told, CROPS, decoded="memory", decode="exact")
    with pytest.raises(ConfigError, match="in memory already"):
        DigitsData(decoded="memory").prepare(told, Augmentation(), seed=0)
    with pytest.raises(ConfigError, match=r"data\.decoded is 'ram'"):
        prepared(root, told, decoded="ram")


def test_a_copy_for_another_process_holds_no_pixels(root: Path, told: Preprocessing) -> None:
    import pickle

    data = prepared(root, told, decoded="memory")
    dataset = data.loader("train", train=True).dataset
    kept = dataset.kept  # type: ignore[attr-defined]
    assert isinstance(kept, KeptPictures)
    kept.fill()
    state = kept.__getstate__()
    assert kept.find(0) is not None
    assert state["_blocks"] is None
    assert pickle.dumps({key: value for key, value in state.items() if key != "keeping"})


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(2000, 1500), (1500, 2400), (512, 384)])
def test_enough_is_enough_for_every_crop(told: Preprocessing, crop_mode: str, size: tuple[int, int]) -> None:
    told = dataclasses.replace(told, crop_mode=crop_mode)
    scale, ratio = (0.3, 1.0), (0.75, 4 / 3)
    width, height = enough_for(told, scale, ratio)(*size)
    assert np.prod((width, height)) <= np.prod(size)
    frame_of = random_frame(told, scale, ratio)
    for _ in range(200):
        frame = frame_of(*size)
        left, top, right, bottom = frame.box
        least = min(
            (right - left) * width / size[0] / frame.scaled[0], (bottom - top) * height / size[1] / frame.scaled[1]
        )
        assert least > 0.97 * MARGIN or (width, height) == size


def test_pictures_larger_than_enough_are_kept_smaller(root: Path, told: Preprocessing) -> None:
    small = dataclasses.replace(told, size=(3, 16, 16))
    data = prepared(root, small, Augmentation(scale=[0.5, 1.0]), decoded="memory")
    dataset = data.loader("train", train=True).dataset
    kept = dataset.kept  # type: ignore[attr-defined]
    kept.fill()
    found = [kept.find(index) for index in range(8)]
    assert {one.whole for one in found} == {(300, 200), (200, 290), (640, 512), (90, 60)}
    assert all(max(one.pixels.shape) < 100 for one in found)
    picture = Image.open(root / "train" / "a" / "2.jpg")
    one = found[2]
    height, width, _ = one.pixels.shape
    expected = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(one.pixels - expected).mean() < 1.0
