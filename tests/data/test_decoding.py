from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from frostline.data import open_picture, to_rgb
from frostline.errors import DataError, StorageError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def chunk(kind: bytes, body: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(path: Path, width: int, height: int, depth: int, color: int, rows: bytes, extra: bytes = b"") -> Path:
    """Writes a PNG by hand, for what Pillow cannot write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def tiff(path: Path, data: bytes, *, compression: int, **tags: int) -> Path:
    """Writes a gray TIFF of 16 x 16 pixels by hand: the header, ``data`` at byte 8, then the directory."""
    numbers = {"tile_width": 322, "tile_height": 323, "tile_offset": 324, "tile_bytes": 325}
    numbers |= {"rows": 278, "strip_offset": 273, "strip_bytes": 279}
    entries = {256: 16, 257: 16, 258: 8, 259: compression, 262: 1, 277: 1}
    entries |= {numbers[name]: value for name, value in tags.items()}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    start = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    path.write_bytes(start + data + struct.pack("<H", len(entries)) + directory + bytes(4))
    return path


def two_colors() -> Image.Image:
    """Left half red, right half blue; 32 x 16."""
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    return image


def near(actual: object, expected: tuple[int, ...], tolerance: int = 12) -> bool:
    return bool(np.all(np.abs(np.array(actual, dtype=int) - expected) <= tolerance))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    two_colors().save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = open_picture(tmp_path / "a.jpg")
    red = {1: (4, 8), 2: (28, 8), 3: (28, 8), 4: (4, 8), 5: (8, 4), 6: (8, 4), 7: (8, 28), 8: (8, 28)}[orientation]
    assert image.mode == "RGB"
    assert image.size == ((32, 16) if orientation <= 4 else (16, 32))
    assert near(image.getpixel(red), RED)


def test_a_damaged_exif_block_does_not_lose_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_colors().save(tmp_path / "a.jpg", quality=95)

    def fail(image: Image.Image) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    assert near(open_picture(tmp_path / "a.jpg").getpixel((4, 8)), RED)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    two_colors().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.mode == "CMYK"
    image = open_picture(tmp_path / "a.jpg")
    assert near(image.getpixel((4, 8)), RED)
    assert near(image.getpixel((28, 8)), BLUE)


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\x80"], ids=["one color", "alpha per color"])
def test_palette_with_transparency_lies_on_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "a.png", transparency=transparency)
    left, middle, right = (open_picture(tmp_path / "a.png").getpixel((x, 0)) for x in range(3))
    assert (left, middle) == (RED, WHITE)
    assert right == (BLUE if isinstance(transparency, int) else (127, 127, 255))


def test_palette_without_transparency(tmp_path: Path) -> None:
    two_colors().quantize(2).save(tmp_path / "a.gif")
    assert open_picture(tmp_path / "a.gif").getpixel((4, 8)) == RED


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("LA", (100, 0), WHITE),
        ("LA", (100, 255), (100, 100, 100)),
        ("RGBA", (0, 0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("L", 77, (77, 77, 77)),
        ("1", 255, WHITE),
    ],
)
def test_alpha_and_gray(
    tmp_path: Path, mode: str, pixel: int | tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    Image.new(mode, (4, 4), pixel).save(tmp_path / "a.png")
    assert near(open_picture(tmp_path / "a.png").getpixel((1, 1)), expected, tolerance=1)


def test_a_transparent_color_of_an_rgb_picture(tmp_path: Path) -> None:
    two_colors().save(tmp_path / "a.png", transparency=RED)
    image = open_picture(tmp_path / "a.png")
    assert (image.getpixel((4, 8)), image.getpixel((28, 8))) == (WHITE, BLUE)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 32896, 65535, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert np.asarray(open_picture(tmp_path / f"a.{suffix}"))[0, :, 0].tolist() == [0, 1, 128, 255, 255]


def test_16_bit_color_is_scaled(tmp_path: Path) -> None:
    row = b"\x00" + struct.pack(">6H", 0, 0x8080, 0xFFFF, 0x0101, 0x4040, 0xC0C0)
    image = open_picture(png(tmp_path / "a.png", 2, 1, 16, 2, row))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(0, 128, 255), (1, 64, 192)]


def test_float_pictures_from_0_to_1_are_scaled_and_others_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(open_picture(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 128, 255]
    for bad in (np.array([[0.0, 900.0]]), np.array([[0.0, np.nan]])):
        with pytest.raises(DataError, match="32-bit values"):
            to_rgb(Image.fromarray(bad.astype(np.float32)))


def test_truncated_jpeg_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "short.jpg"
    Image.effect_noise((64, 64), 80).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"short\.jpg cannot be read") as caught:
        open_picture(path)
    assert caught.value.mend
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_foreign_content_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jpg cannot be read"):
        open_picture(tmp_path / "a.jpg")


@pytest.mark.parametrize("position", [40, 60, 80])
def test_a_flipped_bit_is_a_fault_or_a_picture_but_no_crash(tmp_path: Path, position: int) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((16, 16), 80).save(path)
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert open_picture(path).mode == "RGB"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_picture(tmp_path / "a.jpg")


def test_a_decompression_bomb_is_refused_before_decoding(tmp_path: Path) -> None:
    path = png(tmp_path / "bomb.png", 100_000, 100_000, 8, 2, b"")
    with pytest.raises(DataError, match="100000 x 100000") as caught:
        open_picture(path)
    assert "data.pixel_limit" in str(caught.value.mend)


def test_the_limit_is_the_callers_and_pillows_own_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_colors().save(tmp_path / "a.png")
    with pytest.raises(DataError, match="more than the limit of 511"):
        open_picture(tmp_path / "a.png", pixel_limit=511)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert open_picture(tmp_path / "a.png", pixel_limit=512).size == (32, 16)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_what_a_conversion_refuses_names_the_file(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 900.0]], dtype=np.float32)).save(tmp_path / "far.tif")
    with pytest.raises(DataError, match=r"far\.tif cannot be read: its 32-bit values go from 0 to 900") as caught:
        open_picture(tmp_path / "far.tif")
    assert caught.value.mend == "Save it with 8 or 16 bits per channel."


def test_a_file_over_the_limit_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_colors().save(tmp_path / "a.png")
    size = (tmp_path / "a.png").stat().st_size
    assert open_picture(tmp_path / "a.png", file_limit=size).size == (32, 16)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(DataError, match=f"has {size} bytes, more than the limit of {size - 1}") as caught:
        open_picture(tmp_path / "a.png", file_limit=size - 1)
    assert "data.file_limit" in str(caught.value.mend)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="no regular file"):
        open_picture(tmp_path / "a.jpg")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE])
def test_a_failing_machine_is_no_damaged_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    two_colors().save(tmp_path / "a.png")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(StorageError, match=r"a\.png cannot be opened"):
        open_picture(tmp_path / "a.png")


ZEROS = zlib.compress(bytes(100 * 2**20), 9)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + ZEROS),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + ZEROS),
        chunk(b"iCCP", b"profile\0\0" + ZEROS),
        b"".join(chunk(b"zTXt", b"%d\0\0" % number + zlib.compress(bytes(2**20), 9)) for number in range(80)),
    ],
    ids=["zTXt", "iTXt", "iCCP", "many"],
)
def test_compressed_text_of_a_png_is_not_expanded_without_limit(tmp_path: Path, extra: bytes) -> None:
    path = png(tmp_path / "a.png", 1, 1, 8, 0, b"\0\x7f", extra)
    assert path.stat().st_size < 2**18
    with pytest.raises(DataError, match=r"(?i)too large|too much"):
        open_picture(path)


@pytest.mark.parametrize(
    ("screen", "frame"), [((65535, 65535), (1, 1)), ((1, 1), (65535, 65535))], ids=["screen", "frame"]
)
def test_a_gif_that_declares_a_huge_picture_is_refused(
    tmp_path: Path, screen: tuple[int, int], frame: tuple[int, int]
) -> None:
    head = b"GIF89a" + struct.pack("<HH", *screen) + b"\x80\0\0" + bytes(6)
    image = b"," + struct.pack("<HHHH", 0, 0, *frame) + b"\0" + b"\x02\x02\x44\x01\0;"
    (tmp_path / "a.gif").write_bytes(head + image)
    with pytest.raises(DataError, match="65535 x 65535"):
        open_picture(tmp_path / "a.gif")


def test_a_tiff_with_huge_tiles_is_refused(tmp_path: Path) -> None:
    data = zlib.compress(bytes(2**20), 9)
    layout = {"tile_width": 2**15, "tile_height": 2**15, "tile_offset": 8, "tile_bytes": len(data)}
    with pytest.raises(DataError, match="32768 x 32768 pixels in a tile"):
        open_picture(tiff(tmp_path / "a.tif", data, compression=8, **layout))


@pytest.mark.parametrize("compression", [1, 5, 8], ids=["none", "lzw", "deflate"])
@pytest.mark.parametrize("rows", [16, 2**32 - 1])
def test_a_tiff_with_huge_strips_takes_no_more_than_it_holds(tmp_path: Path, compression: int, rows: int) -> None:
    layout = {"rows": rows, "strip_offset": 8, "strip_bytes": 2**32 - 1}
    with contextlib.suppress(DataError):
        path = tiff(tmp_path / "a.tif", zlib.compress(bytes(256)), compression=compression, **layout)
        assert open_picture(path).size == (16, 16)


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Every third time cut short, else with one to four flipped bits, half of them near the beginning."""
    if generator.random() < 1 / 3:
        return content[: generator.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 4))):
        span = generator.choice((len(content), min(len(content), 300)))
        changed[generator.randrange(span)] ^= 1 << generator.randrange(8)
    return bytes(changed)


def exif() -> Image.Exif:
    block = Image.Exif()
    block[0x0112], block[0x010E] = 6, "a description"
    return block


ENCODINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"exif": exif()}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {"exif": exif()}),
    "webp": ("WEBP", {"exif": exif()}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate": ("TIFF", {"compression": "tiff_deflate"}),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_damage_gives_a_picture_or_the_one_error_and_no_warning(tmp_path: Path, name: str) -> None:
    kind, options = ENCODINGS[name]
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, kind, **options)
    generator, path = random.Random(name), tmp_path / "a"
    faults: list[str] = []
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for _ in range(60):
            path.write_bytes(damaged(stored.getvalue(), generator))
            try:
                assert open_picture(path).mode == "RGB"
            except DataError as error:
                faults.append(error.problem)
    assert shown == []
    assert len(faults) > 5
    assert all(str(path) in fault for fault in faults)
