"""The same pictures as a folder, a table, a data set of Hugging Face and shards."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from frostline.data import FolderData, ImageData
from frostline.data.hf import HuggingFaceData
from frostline.data.shards import ShardData
from frostline.data.table import TableData

CLASSES = ("blue, deep", "gréen", "red=1")
OFFICIAL = {"train": 60, "val": 12, "test": 18}
SHARD = 25


class Picture(NamedTuple):
    """A picture to write: its class, the name of its file, its encoded content, and who is on it."""

    label: str
    file: str
    content: bytes
    patient: str


@dataclass(frozen=True)
class PicturesToWrite:
    """Pictures in splits."""

    splits: dict[str, list[Picture]]

    def undivided(self) -> PicturesToWrite:
        """All of them as ``train``."""
        return PicturesToWrite({"train": [picture for split in self.splits.values() for picture in split]})

    def with_another_pixel(self) -> PicturesToWrite:
        """The first one is another."""
        first, *others = self.splits["train"]
        changed = first._replace(content=_encoded(np.random.default_rng(99), 0, first.file.rpartition(".")[2]))
        return PicturesToWrite({**self.splits, "train": [changed, *others]})

    def shuffled(self, seed: int) -> Iterator[tuple[str, Picture]]:
        """Split and picture, in an order of ``seed``."""
        flat = [(split, picture) for split, pictures in self.splits.items() for picture in pictures]
        for place in np.random.default_rng(seed).permutation(len(flat)).tolist():
            yield flat[place]


def made_pictures(suffixes: tuple[str, ...] = ("jpg", "png")) -> PicturesToWrite:
    """Noise with the color of its class, of 25 patients; two pictures are there twice."""
    generator = np.random.default_rng(0)
    splits: dict[str, list[Picture]] = {}
    number = 0
    for split, count in OFFICIAL.items():
        splits[split] = []
        for _ in range(count):
            suffix = suffixes[number % len(suffixes)]
            content = _encoded(generator, number % 3, suffix)
            patient = f"p{generator.integers(25)}"
            splits[split].append(Picture(CLASSES[number % 3], f"{number:03d}.{suffix}", content, patient))
            number += 1
    for first, second in ((0, 6), (1, 7)):
        again = splits["train"][second]
        splits["train"][second] = again._replace(content=splits["train"][first].content)
    return PicturesToWrite(splits)


def _encoded(generator: np.random.Generator, color: int, suffix: str) -> bytes:
    pixels = generator.integers(0, 150, (24, 20, 3), dtype=np.uint8)
    pixels[..., 2 - color] += 70
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG" if suffix == "png" else "JPEG")
    return file.getvalue()


def as_form(form: str, root: Path, pictures: PicturesToWrite, seed: int = 0, **settings: Any) -> ImageData:
    """Writes the pictures below ``root``, where there are none yet, in an order of ``seed``.

    Args:
        form: one of ``FORMS``.
        root: a folder.
        pictures: what to write.
        seed: of the order in which a form lists them.
        settings: arguments of the data.
    """
    written = root.exists()
    return _WRITERS[form](root, pictures, None if written else seed, settings)


def overrides(form: str, root: Path, pictures: PicturesToWrite, seed: int = 0) -> list[str]:
    """What a person types for the form, after it was written as by `as_form`."""
    as_form(form, root, pictures, seed)
    return {
        "folder": ["data=folder", f'data.root="{root}"'],
        "csv": ["data=table", f'data.table="{root}/pictures.csv"'],
        "parquet": ["data=table", f'data.table="{root}/pictures.parquet"'],
        "hf": ["data=hf", f'data.root="{root}"'],
        "hf_folder": ["data=hf", f'data.root="{root}"'],
        "shards": ["data=webdataset", f'data.root="{root}"', "data.image_key='jpg;png'"],
    }[form]


def _write_folder(root: Path, pictures: PicturesToWrite, valid: str = "val") -> None:
    alone = len(pictures.splits) == 1
    for split, members in pictures.splits.items():
        for picture in members:
            folder = root / picture.label if alone else root / (valid if split == "val" else split) / picture.label
            folder.mkdir(parents=True, exist_ok=True)
            (folder / picture.file).write_bytes(picture.content)


def _folder(root: Path, pictures: PicturesToWrite, seed: int | None, settings: dict[str, Any]) -> ImageData:
    if seed is not None:
        _write_folder(root, pictures)
    return FolderData(str(root), **settings)


def _rows(root: Path, pictures: PicturesToWrite, seed: int) -> list[dict[str, str]]:
    """Writes the files into one folder, and says what each is."""
    (root / "files").mkdir(parents=True)
    rows = []
    for split, picture in pictures.shuffled(seed):
        (root / "files" / picture.file).write_bytes(picture.content)
        row = {"label": picture.label, "path": f"files/{picture.file}", "patient": picture.patient, "split": split}
        if len(pictures.splits) == 1:
            del row["split"]
        rows.append(row)
    return rows


def _csv(root: Path, pictures: PicturesToWrite, seed: int | None, settings: dict[str, Any]) -> ImageData:
    table = root / "pictures.csv"
    if seed is not None:
        rows = _rows(root, pictures, seed)
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return TableData(str(table), **settings)


def _parquet(root: Path, pictures: PicturesToWrite, seed: int | None, settings: dict[str, Any]) -> ImageData:
    table = root / "pictures.parquet"
    if seed is not None:
        pa.parquet.write_table(pa.Table.from_pylist(_rows(root, pictures, seed)), table)
    return TableData(str(table), **settings)


def _hf(root: Path, pictures: PicturesToWrite, seed: int | None, settings: dict[str, Any]) -> ImageData:
    if seed is not None:
        import datasets

        columns: dict[str, dict[str, list[Any]]] = {}
        for split, picture in pictures.shuffled(seed):
            name = "validation" if split == "val" else split
            own = columns.setdefault(name, {"image": [], "label": [], "patient": []})
            own["image"].append({"bytes": picture.content, "path": None})
            own["label"].append(picture.label)
            own["patient"].append(picture.patient)
        label = datasets.ClassLabel(names=list(CLASSES))
        features = datasets.Features(image=datasets.Image(), label=label, patient=datasets.Value("string"))
        made = {split: datasets.Dataset.from_dict(content, features=features) for split, content in columns.items()}
        datasets.disable_progress_bars()
        datasets.DatasetDict(made).save_to_disk(str(root))
        datasets.enable_progress_bars()
    return HuggingFaceData(str(root), **settings)


def _hf_folder(root: Path, pictures: PicturesToWrite, seed: int | None, settings: dict[str, Any]) -> ImageData:
    if seed is not None:
        _write_folder(root, pictures, "validation")
    return HuggingFaceData(str(root), **settings)


def _shards(root: Path, pictures: PicturesToWrite, seed: int | None, settings: dict[str, Any]) -> ImageData:
    if seed is not None:
        import webdataset

        root.mkdir(parents=True)
        by_split: dict[str, list[Picture]] = {}
        for split, picture in pictures.shuffled(seed):
            by_split.setdefault(split, []).append(picture)
        for split, members in by_split.items():
            with webdataset.ShardWriter(f"{root}/{split}-%04d.tar", maxcount=SHARD, verbose=0) as writer:
                for picture in members:
                    key, _, suffix = picture.file.partition(".")
                    about = {"label": picture.label, "patient": picture.patient}
                    writer.write({"__key__": key, suffix: picture.content, "json": about})
    return ShardData(str(root), **{"image_key": "jpg;png", "label_key": "json:label", **settings})


_WRITERS: dict[str, Callable[[Path, PicturesToWrite, int | None, dict[str, Any]], ImageData]] = {
    "folder": _folder,
    "csv": _csv,
    "parquet": _parquet,
    "hf": _hf,
    "hf_folder": _hf_folder,
    "shards": _shards,
}
FORMS = tuple(_WRITERS)
PATIENTS = {
    "csv": {"group_column": "patient"},
    "parquet": {"group_column": "patient"},
    "hf": {"group_column": "patient"},
    "shards": {"group_key": "json:patient"},
}
"""How a form that can say it says which pictures belong together."""
