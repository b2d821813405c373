"""The pictures and the weights of the comparison: made here, or the user's own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from torch import nn

SPLITS = ("train", "val", "test")
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
CLASSES = ("fine", "coarse", "slanted", "checked")


class FolderError(Exception):
    """A folder that is no set of pictures in classes."""


def make_pictures(root: Path, count: int, side: int) -> None:
    """JPEG textures in four classes, three fifths for training.

    They differ in the direction and the fineness of a grating, in any color and phase, under noise in which a part of
    them is hard to tell.
    """
    generator = np.random.default_rng(0)
    for split in SPLITS:
        for picture in range(round(count * SHARES[split])):
            name = CLASSES[picture % len(CLASSES)]
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_texture(name, side, generator)).save(folder / f"{picture:05d}.jpg", quality=90)


def _texture(name: str, side: int, generator: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[0:side, 0:side] * (2 * np.pi / side)
    waves = generator.uniform(12, 16) if name == "fine" else generator.uniform(7, 13)
    angle = generator.normal(np.pi / 4 if name == "slanted" else 0.0, 0.2)
    along = np.cos(angle) * columns + np.sin(angle) * rows
    across = np.cos(angle) * rows - np.sin(angle) * columns
    grating = np.sin(waves * along + generator.uniform(0, 7))
    if name == "checked":
        grating = grating * np.sin(waves * across)
    color, contrast = generator.uniform(60, 195, 3), generator.uniform(10, 50, 3)
    noise = generator.normal(0, 40, (side, side, 1))
    return np.clip(color + contrast * grating[..., None] + noise, 0, 255).astype(np.uint8)


def divided(folder: Path, scratch: Path) -> Path:
    """A folder with ``train``, ``val`` and ``test``: the given one, or links into one that has class folders alone.

    Raises:
        FolderError: neither is there, or a class has fewer than five pictures.
    """
    if all((folder / split).is_dir() for split in SPLITS):
        return folder
    names = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if len(names) < 2 or {path.name for path in names} & set(SPLITS):
        raise FolderError(f"{folder} holds neither train, val and test, nor two or more class folders alone")
    for name in names:
        files = sorted(path for path in name.rglob("*") if path.suffix.lower() in PICTURES)
        if len(files) < 5:
            raise FolderError(f"{name} holds {len(files)} pictures, and five are the least that can be divided")
        order = np.random.default_rng(0).permutation(len(files))
        _link([files[place] for place in order], name.name, scratch)
    return scratch


def _link(files: Sequence[Path], name: str, scratch: Path) -> None:
    train = round(len(files) * SHARES["train"])
    test = len(files) - round(len(files) * SHARES["test"])
    for split, begin, end in (("train", 0, train), ("val", train, test), ("test", test, len(files))):
        target = scratch / split / name
        target.mkdir(parents=True)
        for number, file in enumerate(files[begin:end]):
            placed = target / f"{number:06d}{file.suffix.lower()}"
            try:
                os.link(file.resolve(), placed)
            except OSError:  # another file system
                shutil.copyfile(file, placed)


def make_weights(folder: Path, backbone: str, root: Path, size: int) -> None:
    """A timm folder with random weights, whose batch norms have counted some of the pictures.

    Nobody trained it, so that it is good for times; but its features tell textures apart.
    """
    torch.manual_seed(0)
    model = timm.create_model(backbone, num_classes=len(CLASSES))
    files = sorted((root / "train").rglob("*.*"))[:: max(1, len(list((root / "train").rglob("*.*"))) // 64)]
    pictures = [np.asarray(Image.open(file).convert("RGB").resize((size, size))) for file in files]
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # counts all alike
    with torch.no_grad():
        model.train()(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().sub_(118).div_(58))
    save_for_hf(model, str(folder), safe_serialization=True)
