"""Decoded pictures, kept: each is decoded once, at the size that a run needs, then read from memory or the disk."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.resources
import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frostline import signals
from frostline.data.cache import default_store
from frostline.data.frames import Frame, Size
from frostline.data.progress import Progress
from frostline.data.randomness import kept_generators
from frostline.data.scaling import Pixels, as_pixels, framed
from frostline.data.splits import ImageSplit, Labels
from frostline.data.transforms import Look, PictureTransform
from frostline.errors import FrostlineError
from frostline.forking import fork_context
from frostline.storage import FeatureStore, StoreFault, size_text

FORMAT = 2
"""Of what is kept; another one makes all keys others."""

_BLOCK = 4096  # bytes; a picture begins at a multiple of it
_TOGETHER = 8
_PACKAGES = ("pillow", "timm", "torch", "torchvision")
# what of Frostline's own stands between a file and a picture that is kept
_SOURCES = ("decoded.py", "decoding.py", "frames.py", "geometry.py", "scaling.py", "transforms.py")

Blocks = npt.NDArray[np.uint8]
Write = Callable[[int, Blocks], None]


@dataclass(frozen=True)
class Keeping:
    """What is kept of a picture.

    Attributes:
        transform: gives the part that is shown, where that is the same each time.
        enough: of width and height of a picture, those that it is kept with, for parts that are drawn anew each time;
            None keeps the part that is shown.
        words: all that decides what is kept, beside the pictures, as plain types.
    """

    transform: PictureTransform
    enough: Callable[[int, int], Size] | None
    words: dict[str, Any]

    def of(self, split: ImageSplit, index: int) -> Tensor:
        """``[3, H, W]`` uint8 of the part that is shown, or ``[H, W, 3]`` of the whole picture.

        Raises:
            FrostlineError: the picture cannot be read.
        """
        if self.enough is None:
            look = Look(self.transform)
            shown = look.shown(split.reduced(index, look.reduction))
            return shown if isinstance(shown, Tensor) else as_pixels(shown)
        frames: list[tuple[Size, Frame]] = []

        def reduction(width: int, height: int) -> int:
            assert self.enough is not None
            size = self.enough(width, height)
            frames.append(((width, height), Frame((0, 0, width, height), size, (0, 0, *size), size)))
            return frames[-1][1].reduction()

        picture = split.reduced(index, reduction)
        if not frames:
            reduction(*picture.size)
        whole, frame = frames[-1]
        if frame.scaled == picture.size == whole:
            return torch.from_numpy(np.array(picture))
        return framed(picture, whole, frame, self.transform.interpolation).permute(1, 2, 0).contiguous()


class Kept(NamedTuple):
    """A picture that was kept: ``[3, H, W]`` or ``[H, W, 3]`` uint8, read-only, and its size before."""

    pixels: Pixels
    whole: Size


class KeptPictures:
    """The pictures of a split, decoded at the first use by this or another run.

    Where they cannot be kept, a line says so, and they are decoded each time.

    Args:
        split: the pictures.
        keeping: what is kept of each.
        where: ``memory`` of this process and its workers, or ``disk``, in the cache folder, for other runs too.
        workers: processes that decode.
    """

    def __init__(self, split: ImageSplit, keeping: Keeping, where: Literal["memory", "disk"], workers: int) -> None:
        self.keeping = keeping
        self._split, self._where, self._workers = split, where, workers
        self._filled = False
        self._places: Labels | None = None
        self._blocks: Blocks | None = None

    def __getstate__(self) -> dict[str, Any]:
        # a process that is not forked has no part in the memory, and decodes by itself
        return {**self.__dict__, "_places": None, "_blocks": None, "_filled": True}

    def find(self, index: int) -> Kept | None:
        """A picture; None where it was not kept."""
        if self._places is None or self._blocks is None:
            return None
        first, count, height, width, whole_height, whole_width = self._places[index].tolist()
        if not count:
            return None
        flat = self._blocks[first : first + count].reshape(-1)[: 3 * height * width]
        shape = (3, height, width) if self.keeping.enough is None else (height, width, 3)
        return Kept(flat.reshape(shape), (whole_width, whole_height))

    def fill(self) -> None:
        """Decodes the pictures that are not there yet; a second call does nothing."""
        if self._filled:
            return
        self._filled = True
        try:
            if self._where == "memory":
                self._fill_memory()
            else:
                self._fill_disk(default_store())
        except StoreFault as fault:
            self._say(f"the pictures are decoded each time they are read. {fault.problem}")
        except (MemoryError, OSError) as error:
            self._say(f"the pictures are decoded each time they are read: {error}")

    def _fill_memory(self) -> None:
        places = self._planned()
        size, limit = int(places[:, 1].sum()) * _BLOCK, _memory() // 2
        if size > limit:
            raise MemoryError(f"they take {size_text(size)}, more than half of the memory, {size_text(limit)}")
        # workers are forked later and share it
        blocks: Blocks = np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=np.uint8)[:size].reshape(-1, _BLOCK)

        def write(start: int, some: Blocks) -> None:
            blocks[start : start + len(some)] = some

        self._decode(places, write)
        blocks.flags.writeable = False
        self._places, self._blocks = places, blocks

    def _fill_disk(self, store: FeatureStore) -> None:
        key = self._key()
        with store.alone(f"{key}-pictures"):
            if not self._map(store, key):
                places = self._planned()
                if not places[:, 1].any():
                    return
                with store.writer(f"{key}-pictures", int(places[:, 1].sum()), _BLOCK, np.uint8) as blocks:
                    self._decode(places, blocks.write)
                with store.writer(f"{key}-places", len(places), places.shape[1], np.int64) as table:
                    table.write(0, places)
                if not self._map(store, key):
                    self._say("the pictures were evicted as soon as they were kept, and are decoded each time.")
        for note in store.notes:
            self._say(note)

    def _map(self, store: FeatureStore, key: str) -> bool:
        places, blocks = store.find(f"{key}-places"), store.find(f"{key}-pictures")
        if places is None or blocks is None:
            return False
        self._places, self._blocks = places.array, blocks.array
        return True

    def _planned(self) -> Labels:
        """``[N, 6]`` int64: the first block of each picture, their number, height and width kept, and of the whole."""
        places = np.zeros((len(self._split), 6), dtype=np.int64)
        if self.keeping.enough is None:
            places[:, 2:4] = self.keeping.transform.size
        else:
            for index in range(len(self._split)):
                with contextlib.suppress(FrostlineError):  # it says so whenever it is read
                    width, height = self._split.size(index)
                    kept_width, kept_height = self.keeping.enough(width, height)
                    places[index, 2:] = kept_height, kept_width, height, width
        places[:, 1] = -(-3 * places[:, 2] * places[:, 3] // _BLOCK)
        places[:, 0] = np.cumsum(places[:, 1]) - places[:, 1]
        return places

    def _decode(self, places: Labels, write: Write) -> None:
        """Decodes every picture; the place of one that cannot be read is emptied."""
        started = time.perf_counter()
        wanted = np.flatnonzero(places[:, 1]).tolist()
        loader: DataLoader[Any] = DataLoader(
            _Decoding(self._split, self.keeping),
            batch_size=_TOGETHER,
            sampler=wanted,
            num_workers=self._workers,
            collate_fn=list,
            generator=torch.Generator(),
            multiprocessing_context=fork_context(self._workers),
            worker_init_fn=_leave_signals_to_main,
        )
        progress = Progress("decoding pictures", len(wanted))
        for done, (index, pixels) in enumerate((one for some in loader for one in some), 1):
            first, count, height, width = places[index, :4].tolist()
            blocks = np.zeros((count, _BLOCK), dtype=np.uint8)
            if pixels is not None and pixels.numel() == 3 * height * width:
                blocks.reshape(-1)[: pixels.numel()] = pixels.numpy().reshape(-1)
            else:
                places[index, 1] = 0
            write(first, blocks)
            progress.at(done)
        progress.end()
        seconds, size = time.perf_counter() - started, int(places[:, 1].sum()) * _BLOCK
        where = "in memory" if self._where == "memory" else "on the disk"
        self._say(f"{len(wanted):,} pictures decoded in {seconds:.1f} s, {size_text(size)} kept {where}")

    def _key(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self._split.digests()).tobytes())
        told = {**self.keeping.words, "format": FORMAT, "packages": _versions(), "sources": _sources()}
        digest.update(json.dumps(told, sort_keys=True).encode())
        return digest.hexdigest()

    def _say(self, text: str) -> None:
        print(f"data.decoded={self._where}: {text}", file=sys.stderr, flush=True)


class _Decoding(Dataset[tuple[int, Tensor | None]]):
    """Index and pixels; None of what cannot be read."""

    def __init__(self, split: ImageSplit, keeping: Keeping) -> None:
        self._split, self._keeping = split, keeping

    def __getitem__(self, index: int) -> tuple[int, Tensor | None]:
        with kept_generators():
            try:
                return index, self._keeping.of(self._split, index)
            except FrostlineError:
                return index, None


def _leave_signals_to_main(worker: int) -> None:
    if signals.STOP.installed:
        signals.leave_to_main()


def _memory() -> int:
    """Bytes of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _sources() -> str:
    folder = Path(str(importlib.resources.files("frostline"))) / "data"
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((folder / name).read_bytes() + b"\0")
    return digest.hexdigest()
