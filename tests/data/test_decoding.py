from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from frostline.data import open_picture, to_rgb
from frostline.errors import DataError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def png(path: Path, width: int, height: int, depth: int, color: int, rows: bytes, extra: bytes = b"") -> Path:
    """Writes a PNG by hand, for what Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
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
