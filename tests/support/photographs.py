"""Pictures that a JPEG encoder and a resize treat as they treat photographs."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageFilter


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft shapes, some hard edges and a little noise."""
    made = np.random.default_rng(seed)
    coarse = Image.fromarray(made.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8))
    picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
    for _ in range(12):
        left, top = int(made.integers(0, width)), int(made.integers(0, height))
        color = tuple(made.integers(0, 256, 3).tolist())
        picture.paste(color, (left, top, left + width // 9, top + height // 7))
    noisy = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.2))) + made.normal(0, 3, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def jpeg(picture: Image.Image, **how: Any) -> bytes:
    """The file, of quality 90."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90, **how)
    return file.getvalue()
