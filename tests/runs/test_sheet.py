"""The picture sheet of a run, how a run says what is lost of its pictures, and what follows ``data.resize``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import frostline
from frostline.backbones.module_config import ModuleConfig, read_module_config, write_module_config
from frostline.config import compose
from frostline.data import Augmentation, FileSplit, FolderData
from frostline.data.decoding import picture_size
from frostline.data.geometry import resized
from frostline.data.typical import typical_loss
from frostline.errors import DataError, StorageError
from frostline.reports import PictureSheet
from frostline.runs.announcing import input_line
from frostline.runs.evaluate import evaluate
from frostline.runs.inspect import inspect
from frostline.runs.parts import build_parts
from frostline.runs.sheet import make_sheet
from frostline.types import Preprocessing

TOLD = Preprocessing((3, 32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), "bilinear", 0.875)
STRONG = Augmentation(scale=[0.5, 1.0], hflip=0.5, color_jitter=0.4, erase=0.5, mixup=0.2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes of noise, twice as wide as high; the name of the last takes other letters."""
    for number, name in enumerate(("a", "b", "日本")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(6):
            noise = np.random.default_rng(10 * number + index).integers(0, 256, (40, 80, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "set" / name / f"{index}.png")
    return tmp_path / "set"


def loaded(root: Path, **how: Any) -> FolderData:
    data = FolderData(root=str(root), **{"val_fraction": 0.0, "batch_size": 4, "workers": 0, **how})
    data.load()
    return data


def made(data: FolderData, augmentation: Augmentation = STRONG, told: Preprocessing = TOLD) -> PictureSheet:
    return make_sheet(data, told, augmentation, seed=5, title="t")


def as_pixels(image: torch.Tensor) -> bytes:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (TOLD.mean, TOLD.std))
    return ((image * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy().tobytes()


def test_the_sheet_shows_what_the_loaders_give(root: Path) -> None:
    data = loaded(root)
    sheet = made(data)
    assert sheet.columns == ["evaluation", *(f"epoch {epoch}" for epoch in range(6))]
    assert [row.name for row in sheet.rows] == list(data.classes)
    data.prepare(TOLD, STRONG, seed=5)
    plain = {
        as_pixels(image): int(target)
        for batch in data.loader("train")
        for image, target in zip(*batch[:2], strict=True)
    }
    for label, row in enumerate(sheet.rows):
        assert plain[row.pictures[0].tobytes()] == label
    loader = data.loader("train", train=True)
    for epoch in range(6):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        given = {as_pixels(image): int(target) for batch in loader for image, target in zip(*batch[:2], strict=True)}
        for label, row in enumerate(sheet.rows):
            assert given[row.pictures[1 + epoch].tobytes()] == label
    assert any("mixup" in note for note in sheet.notes)


def test_transforms_of_a_split_have_a_column(root: Path) -> None:
    sheet = made(loaded(root), Augmentation(test_transforms=[v2.RandomInvert(p=1.0)]))
    assert sheet.columns[:3] == ["evaluation", "as test", "epoch 0"]
    for row in sheet.rows:
        assert np.abs(255 - row.pictures[0].astype(int) - row.pictures[1]).max() <= 1
        assert np.array_equal(row.pictures[0], row.pictures[2])


def test_a_picture_that_cannot_be_read_gives_way_to_the_next(root: Path) -> None:
    whole = made(loaded(root))
    for file in sorted((root / "a").iterdir())[:5]:
        file.write_bytes(file.read_bytes()[:60])
    for file in (root / "b").iterdir():
        file.write_bytes(b"no picture")
    sheet = made(loaded(root, on_error="skip"))
    assert [len(row.pictures) for row in sheet.rows] == [7, 0, 7]
    assert np.array_equal(sheet.rows[2].pictures[0], whole.rows[2].pictures[0])
    with pytest.raises(DataError, match=r"[ab].\d\.png"):
        made(loaded(root))


def test_many_classes_are_cut_and_it_is_said(tmp_path: Path) -> None:
    for label in range(23):
        (tmp_path / "set" / f"class {label:02d}").mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (4, 4), (10 * label, 99 * index, 0)).save(
                tmp_path / "set" / f"class {label:02d}" / f"{index}.png"
            )
    sheet = made(loaded(tmp_path / "set"))
    assert len(sheet.rows) == 20
    assert "The first 20 of 23 classes" in sheet.notes


def test_gray_input_is_shown_in_gray(root: Path) -> None:
    sheet = made(loaded(root), told=dataclasses.replace(TOLD, size=(1, 32, 32), mean=(0.5,), std=(0.25,)))
    assert all((picture == picture[..., :1]).all() for row in sheet.rows for picture in row.pictures)
    assert "in gray" in sheet.notes[0]


def test_inspect_writes_it(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["backbone.name=test_resnet", "backbone.weights=none", "trainer=cpu", "data=folder", f'data.root="{root}"']
    inspect(compose("inspect", [*tiny, f"output={tmp_path}", "augment=standard", "data.resize=squash"]))
    (folder,) = (tmp_path / "inspect").iterdir()
    with Image.open(folder / "pictures.png") as file:
        assert file.format == "PNG"
    shown = capsys.readouterr().out
    assert "squashed to 160 x 160; nothing of a training picture is lost" in shown


# --- how much is lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resize", "says"),
    [
        (None, "the shorter side resized to 36 and cropped at the center; 60% of a training picture's area is lost"),
        ("squash", "squashed to 32 x 32; nothing of a training picture is lost (median of 18)"),
        ("pad", "the longer side resized to 32, the rest filled with the mean color; nothing"),
    ],
)
def test_a_run_says_how_much_is_lost(root: Path, resize: Any, says: str) -> None:
    line = input_line(loaded(root), resized(TOLD, resize))
    assert line.startswith("32 x 32: ")
    assert says in line
    assert ("data.resize=squash or pad loses nothing" in line) == (resize is None)
    assert "data.resize" not in input_line(loaded(root, resize="crop"), resized(TOLD, "crop"))


def test_a_run_says_how_many_are_decoded_at_a_half_or_less(tmp_path: Path) -> None:
    for index, (side, suffix) in enumerate(((200, "jpg"), (200, "png"), (60, "jpg"), (400, "JPEG"))):
        (tmp_path / "set" / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (side, side))
        picture.save(tmp_path / "set" / "ab"[index % 2] / f"{index}.{suffix}", "png" if suffix == "png" else "jpeg")
    line = input_line(loaded(tmp_path / "set"), TOLD)
    assert (
        "cropped at the center; 50% decoded at a half or less where they are scored (data.decode=exact: whole); 2"
        in line
    )
    assert "decoded" not in input_line(loaded(tmp_path / "set", decode="exact"), TOLD)


def test_only_headers_of_some_files_are_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    whole = Image.open

    def watched(source: Any, *more: Any, **how: Any) -> Any:
        opened.append(source)
        return whole(source, *more, **how)

    split = loaded(root).splits["train"]
    monkeypatch.setattr(Image, "open", watched)
    monkeypatch.setattr("frostline.data.typical.PICTURES", 4)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    lost = typical_loss(split, TOLD)
    assert lost is not None
    assert (lost.pictures, len(opened)) == (4, 4)


def test_a_turned_picture_is_measured_as_it_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    assert picture_size(tmp_path / "turned.jpg", "turned") == (20, 30)
    assert picture_size((tmp_path / "turned.jpg").read_bytes(), "turned") == (20, 30)
    split = FileSplit(tmp_path, ["turned.jpg", "broken.jpg", "absent.jpg"], [0, 0, 0])
    lost = typical_loss(split, TOLD)
    assert lost is not None
    assert lost.pictures == 1


def test_pictures_that_are_no_files_are_not_measured() -> None:
    parts = build_parts(compose("train", ["data.labels_per_class=2", "trainer=cpu"]))
    assert input_line(parts.data, parts.backbone.preprocessing).endswith("cropped at the center")


# --- what a run keeps of it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", [None, "crop", "squash", "pad"])
def test_a_module_that_is_not_timms_keeps_the_policy(tmp_path: Path, resize: Any) -> None:
    wanted = ModuleConfig("a.Module", "fc", ("a", "b"), resized(TOLD, resize))
    write_module_config(wanted, tmp_path)
    assert read_module_config(tmp_path) == wanted
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace(wanted.input.crop_mode, "centre"))
    with pytest.raises(StorageError, match="crop_mode=centre is unknown"):
        read_module_config(tmp_path)


@pytest.mark.slow
def test_the_policy_and_the_transforms_of_test_belong_to_the_run(root: Path, tmp_path: Path) -> None:
    noise = "{_target_: torchvision.transforms.v2.RandomErasing, p: 0.9, scale: [0.3, 0.6]}"
    steps = f"[{{_target_: torchvision.transforms.v2.ToImage}},{noise}]"
    run = frostline.train(
        [
            "backbone.name=test_resnet",
            "backbone.weights=none",
            "data=folder",
            f'data.root="{root}"',
            "data.size=32",
            "data.resize=pad",
            "data.val_fraction=0.2",
            "data.test_fraction=0.4",
            f"augment.test_transforms={steps}",
            "trainer=cpu",
            "trainer.max_epochs=2",
            "logger=csv",
            f"output={tmp_path}",
        ]
    )
    told = json.loads((run.path / "model" / "config.json").read_text())["pretrained_cfg"]
    assert (told["crop_mode"], told["crop_pct"]) == ("border", 1.0)
    again = evaluate(compose("evaluate", [f"run={run.path}", "trainer=cpu", "trust=[torchvision]"]))
    plain = evaluate(compose("evaluate", [f"run={run.path}", "trainer=cpu", "trust=[torchvision]", "batch_size=2"]))
    assert again["test/loss"] == pytest.approx(run.metrics["test/loss"], abs=1e-6)
    assert plain["test/loss"] == pytest.approx(run.metrics["test/loss"], abs=1e-6)
    # without its transforms, the split has other scores
    config = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(config.replace("p: 0.9", "p: 0.0"))
    other = evaluate(compose("evaluate", [f"run={run.path}", "trainer=cpu", "trust=[torchvision]"]))
    assert abs(other["test/loss"] - run.metrics["test/loss"]) > 1e-4
