from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from frostline.checkpoints import (
    checkpoints_in,
    newest_loadable,
    read_checkpoint,
    remove_checkpoint,
    remove_leftovers,
    write_checkpoint,
)
from frostline.checkpoints.files import checkpoint_name
from frostline.errors import StorageError

CONTENT = {"weights": torch.arange(6.0).reshape(2, 3), "step": 3, "name": "é"}


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / checkpoint_name(3)
    write_checkpoint(CONTENT, path)
    found = read_checkpoint(path)
    assert torch.equal(found.pop("weights"), CONTENT["weights"])
    assert found == {"step": 3, "name": "é"}
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "step-00000003.ckpt",
        "step-00000003.ckpt.sha256",
    ]


def test_the_checksum_is_the_one_that_sha256sum_checks(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / checkpoint_name(1)
    write_checkpoint(CONTENT, path)
    digest, name = (tmp_path / f"{path.name}.sha256").read_text().split()
    assert name == path.name
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_names_order_by_step_and_an_unvalidated_one_comes_first(tmp_path: Path) -> None:
    names = [checkpoint_name(10), checkpoint_name(9), checkpoint_name(10, validated=False), checkpoint_name(123456789)]
    for name in [*names, "step-x.ckpt", "other.ckpt", ".step-00000011.ckpt.part"]:
        (tmp_path / name).touch()
    assert [path.name for path in checkpoints_in(tmp_path)] == [
        "step-00000009.ckpt",
        "step-00000010.unvalidated.ckpt",
        "step-00000010.ckpt",
        "step-123456789.ckpt",
    ]


@pytest.mark.parametrize("size", [0, 10, 700])
def test_a_cut_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / checkpoint_name(1)
    write_checkpoint(CONTENT, path)
    os.truncate(path, size)
    with pytest.raises(StorageError, match="is damaged"):
        read_checkpoint(path)


def test_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / checkpoint_name(1)
    write_checkpoint(CONTENT, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="is damaged"):
        read_checkpoint(path)


def test_the_newest_that_can_be_read_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint({**CONTENT, "step": step}, tmp_path / checkpoint_name(step))
    os.truncate(tmp_path / checkpoint_name(3), 20)
    (tmp_path / f"{checkpoint_name(2)}.sha256").unlink()
    path, content, faults = newest_loadable(tmp_path)
    assert path.name == checkpoint_name(1)
    assert content["step"] == 1
    assert len(faults) == 2
    assert "is damaged" in faults[0]
    assert "has no checksum" in faults[1]


def test_where_none_can_be_read_all_are_named(tmp_path: Path) -> None:
    (tmp_path / checkpoint_name(1)).touch()
    with pytest.raises(StorageError, match=r"no checkpoint to go on from:\n.*step-00000001"):
        newest_loadable(tmp_path)
    with pytest.raises(StorageError, match="holds none"):
        newest_loadable(tmp_path / "absent")


def test_a_full_disk_leaves_the_older_file_and_nothing_half_made(tmp_path: Path) -> None:
    older = tmp_path / checkpoint_name(1)
    write_checkpoint(CONTENT, older)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            write_checkpoint({"weights": torch.zeros(10_000)}, tmp_path / checkpoint_name(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [older.name, f"{older.name}.sha256"]


def test_removing_twice_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / checkpoint_name(1)
    write_checkpoint(CONTENT, path)
    remove_checkpoint(path)
    remove_checkpoint(path)
    assert not list(tmp_path.iterdir())


def test_what_kills_left_behind_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(CONTENT, tmp_path / checkpoint_name(step))
    (tmp_path / f".{checkpoint_name(4)}.part").touch()
    (tmp_path / f"{checkpoint_name(5)}.sha256").touch()
    (tmp_path / "notes.txt").touch()
    remove_leftovers(tmp_path, {checkpoint_name(1), checkpoint_name(3)})
    kept = [checkpoint_name(1), checkpoint_name(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*kept, *(f"{name}.sha256" for name in kept), "notes.txt"]
    )
