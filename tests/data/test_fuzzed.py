"""Damaged pictures, read by a process that may be killed: none ends it; reduced, the same are accepted as whole."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import numpy as np
import pytest
from photographs import photograph

from frostline.data import evaluation_transform
from frostline.data.decoding import decode_picture
from frostline.data.transforms import Look
from frostline.errors import DataError
from frostline.types import Preprocessing

KINDS = ["JPEG", "progressive JPEG", "PNG", "WEBP", "GIF", "TIFF"]
TOLD = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic")


def damaged(kind: str, count: int, seed: int) -> Iterator[bytes]:
    """Files with some bits flipped, cut short, or with a part that is repeated or left out."""
    made = np.random.default_rng(seed)
    file = io.BytesIO()
    photograph(256, 192, seed).save(file, kind.split()[-1], progressive=kind.startswith("progressive"))
    whole = np.frombuffer(file.getvalue(), dtype=np.uint8)
    for _ in range(count):
        content = whole.copy()
        # the headers, which are short, get half of it
        reach = 700 if made.random() < 0.5 else len(content)
        for at in made.integers(0, reach, made.integers(1, 6)):
            content[at] ^= 1 << int(made.integers(0, 8))
        start, end = sorted(made.integers(0, len(content), 2).tolist())
        match int(made.integers(0, 6)):
            case 0:
                content = content[:end]
            case 1:
                content = np.concatenate([content[:start], content[end:]])
            case 2:
                content = np.concatenate([content[:end], content[start:]])
        yield content.tobytes()


def look_at(contents: list[bytes], results: Connection) -> None:
    for content in contents:
        accepted = []
        for reducing in (False, True):
            look = Look(evaluation_transform(TOLD))
            try:
                picture = decode_picture(content, "damaged", 10**7, look.reduction if reducing else None)
                accepted.append(look.input(picture).shape == TOLD.size)
            except DataError:
                accepted.append(False)
        results.send(accepted)
    results.close()


def decisions(contents: list[bytes], seconds: float) -> list[list[bool]]:
    """Accepted whole and reduced, of each; the process is killed where it does not answer."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    worker = context.Process(target=look_at, args=(contents, there))
    worker.start()
    there.close()
    found = []
    try:
        while len(found) < len(contents) and here.poll(seconds):
            found.append(here.recv())
    except EOFError:
        pass
    finally:
        worker.kill() if len(found) < len(contents) else worker.join()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_no_damaged_picture_ends_the_process(kind: str) -> None:
    contents = list(damaged(kind, 80, seed=KINDS.index(kind)))
    found = decisions(contents, seconds=30)
    assert len(found) == len(contents), f"ended by picture {len(found)}"
    assert all(whole == reduced for whole, reduced in found)
    assert any(not whole for whole, _ in found)
    assert any(whole for whole, _ in found)
