from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from planted import picture

from frostline.auditing import Kind, Scan, scan
from frostline.auditing.headers import ends_early, read_header
from frostline.auditing.measures import measure
from frostline.data.files import FileSplit
from frostline.data.splits import ImageSplit
from frostline.errors import DataError, StorageError


class Memory(ImageSplit):
    """Pictures without files; ``look`` is called with the position of each picture that is asked for."""

    def __init__(self, pictures: list[Image.Image], look: Callable[[int], object] = lambda index: None) -> None:
        self._pictures, self._look = pictures, look
        self.labels = np.zeros(len(pictures), dtype=np.int64)

    def image(self, index: int) -> Image.Image:
        self._look(index)
        return self._pictures[index]

    def name(self, index: int) -> str:
        return f"memory/{index}"


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [picture("disks", rng, (48, 36)) for _ in range(count)]


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def scanned(root: Path, files: dict[str, bytes], workers: int = 0) -> Scan:
    for name, content in files.items():
        (root / name).write_bytes(content)
    split = FileSplit(root, list(files), [0] * len(files))
    return scan(("only",), {"train": split}, workers=workers)


def test_processes_find_what_one_process_finds() -> None:
    splits = {"train": Memory(pictures(40)), "val": Memory(pictures(7))}
    seen: list[tuple[int, int]] = []
    alone = scan(("a",), splits, workers=0)
    together = scan(("a",), splits, workers=2, progress=lambda done, total: seen.append((done, total)))
    for name in splits:
        np.testing.assert_array_equal(alone.splits[name].facts, together.splits[name].facts)
        np.testing.assert_array_equal(alone.splits[name].thumbs, together.splits[name].thumbs)
    assert seen[-1] == (47, 47)
    assert together.pictures == 47
    assert together.splits["train"].readable.all()


def test_a_process_that_dies_takes_one_picture_with_it() -> None:
    def crash(index: int) -> None:
        if index in (3, 17):
            os.kill(os.getpid(), signal.SIGKILL)

    found = scan(("a",), {"train": Memory(pictures(40), crash)}, workers=2).splits["train"]
    assert sorted(found.faults) == [3, 17]
    assert found.faults[3].kind is Kind.UNREADABLE
    assert "memory/3 cannot be read: the process that decoded it was ended by SIGKILL" in found.faults[3].problem
    assert found.readable.sum() == 38


def test_an_interrupt_ends_it_at_once() -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    split = Memory(pictures(80), lambda index: time.sleep(0.2 if index > 16 else 0))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        scan(("a",), {"train": split}, workers=2, progress=interrupt)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_machine_that_cannot_open_files_is_no_fault_of_a_picture(workers: int) -> None:
    def fail(index: int) -> None:
        raise StorageError("Too many open files.")

    with pytest.raises(StorageError, match="Too many"):
        scan(("a",), {"train": Memory(pictures(3), fail)}, workers=workers)


def test_a_source_may_raise_anything() -> None:
    def fail(index: int) -> None:
        if index == 1:
            raise ZeroDivisionError("by zero")
        if index == 2:
            raise DataError("The picture memory/2 is gone.", mend="Fetch it.")

    faults = scan(("a",), {"train": Memory(pictures(3), fail)}, workers=0).splits["train"].faults
    assert faults[1].problem == "The picture memory/1 cannot be read: ZeroDivisionError: by zero"
    assert faults[2].mend == "Fetch it."


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_a_file_that_ends_early_is_told_from_one_that_is_no_picture(form: str, tmp_path: Path) -> None:
    whole = encoded(picture("grain", np.random.default_rng(1)), form)
    files = {"whole": whole, "half": whole[: len(whole) // 2], "text": b"not a picture at all", "empty": b""}
    found = scanned(tmp_path, files).splits["train"]
    assert {index: fault.kind for index, fault in found.faults.items()} == {
        1: Kind.TRUNCATED,
        2: Kind.UNREADABLE,
        3: Kind.UNREADABLE,
    }
    assert not ends_early(whole)


def test_a_jpeg_whose_rest_was_filled_up_is_truncated(tmp_path: Path) -> None:
    whole = encoded(picture("grain", np.random.default_rng(1)), "JPEG")
    # an end marker after half of the data: Pillow reads it, and gives gray for the rest
    found = scanned(tmp_path, {"a.jpg": whole[: len(whole) // 2] + b"\xff\xd9"}).splits["train"]
    assert found.faults[0].kind is Kind.TRUNCATED
    assert "gray" in found.faults[0].problem


@pytest.mark.parametrize(
    ("image", "form", "mode"),
    [
        (Image.new("RGB", (4, 4)), "JPEG", "color"),
        (Image.new("CMYK", (4, 4)), "JPEG", "CMYK"),
        (Image.new("L", (4, 4)), "PNG", "gray"),
        (Image.new("I;16", (4, 4)), "PNG", "16 bit"),
        (Image.new("RGBA", (4, 4)), "PNG", "transparent"),
    ],
)
def test_modes(image: Image.Image, form: str, mode: str) -> None:
    assert read_header(encoded(image, form)).mode == mode
    assert read_header(encoded(image, form)).format == form


def test_the_orientation_is_read_and_the_size_is_as_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = scanned(tmp_path, {"a.jpg": encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)}).splits["train"]
    assert found.facts["orientation"][0] == 6
    assert (found.facts["width"][0], found.facts["height"][0]) == (20, 40)


def test_measures_of_a_known_picture() -> None:
    values = np.zeros((100, 100, 3), np.uint8)
    values[:, 50:] = 200
    found = measure(Image.fromarray(values))
    assert (found.p5, found.p95) == (0, 200)
    assert found.mean == pytest.approx(100)
    assert found.contrast == pytest.approx(100)
    assert found.entropy == pytest.approx(1)
    assert found.colorless
    assert found.thumb.shape == (32, 32)
    assert found.tint.shape == (8, 8, 2)


def test_equal_pixels_have_equal_digests_and_other_shapes_have_others() -> None:
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    one = measure(Image.fromarray(values)).pixels
    assert measure(Image.fromarray(values.copy())).pixels == one
    assert measure(Image.fromarray(values.reshape(8, 6, 3))).pixels != one


def test_properties_are_missing_where_nothing_was_read(tmp_path: Path) -> None:
    good = encoded(Image.new("RGB", (30, 60), (100, 100, 100)), "PNG")
    properties = scanned(tmp_path, {"a.png": good, "b.png": b"x"}).splits["train"].properties()
    assert properties["aspect"][0] == 0.5
    assert all(np.isnan(values[1]) for values in properties.values())
