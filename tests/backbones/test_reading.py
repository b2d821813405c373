from __future__ import annotations

import argparse
import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from frostline.backbones.reading import file_sha256, read_tensors
from frostline.errors import ConfigError, StorageError

TENSORS = {"conv.weight": torch.arange(4.0), "conv.bias": torch.ones(2)}


class Trap:
    """Unpickling this runs code: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def same(read: dict[str, torch.Tensor]) -> bool:
    return read.keys() == TENSORS.keys() and all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"state_dict": TENSORS, "epoch": 3},
        {"model": TENSORS, "args": argparse.Namespace(lr=1.0)},
        {"model": {"state_dict": TENSORS}},
        {"state_dict": {"conv.weight": torch.zeros(4)}, "state_dict_ema": TENSORS},
    ],
    ids=["plain", "state_dict", "namespace", "twice", "averaged"],
)
def test_tensors_are_found_in_the_nesting_of_a_checkpoint(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert same(read_tensors(tmp_path / "weights.pth"))


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.safetensors")
    assert same(read_tensors(tmp_path / "weights.safetensors"))


def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(tmp_path: Path) -> None:
    torch.save({**TENSORS, "extra": Trap(tmp_path / "sprung")}, tmp_path / "weights.pth")
    with pytest.raises(StorageError, match="more than tensors") as caught:
        read_tensors(tmp_path / "weights.pth")
    assert str(tmp_path / "weights.pth") in caught.value.problem
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    big = {"weight": torch.rand(1000)}
    if name.endswith("pth"):
        torch.save(big, tmp_path / name)
    else:
        save_file(big, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:2000])
    with pytest.raises(StorageError, match=f"{name}' cannot be read as weights"):
        read_tensors(tmp_path / name)


def test_a_file_that_is_no_weights_at_all_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text("no weights here")
    with pytest.raises(StorageError, match=r"weights.pth' cannot be read as weights"):
        read_tensors(tmp_path / "weights.pth")


def test_a_checkpoint_without_tensors_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "weights.pth")
    with pytest.raises(StorageError, match="it holds: epoch, lr"):
        read_tensors(tmp_path / "weights.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone.pth"):
        read_tensors(tmp_path / "gone.pth")


def test_an_environment_that_turns_safe_loading_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({**TENSORS, "extra": Trap(tmp_path / "sprung")}, tmp_path / "weights.pth")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ConfigError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        read_tensors(tmp_path / "weights.pth")
    assert not (tmp_path / "sprung").exists()


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"snow")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"snow").hexdigest()


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(StorageError, match="no weights by name"):
        read_tensors(tmp_path / "weights.pth")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "small.pth", "w", 8) as small:
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    with pytest.raises(StorageError, match="is compressed"):
        read_tensors(tmp_path / "small.pth")


@pytest.mark.parametrize("protocol", [0, 1, 2, 5])
def test_a_bare_pickle_with_code_is_told_as_such(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=protocol))
    with pytest.raises(StorageError, match="more than tensors"):
        read_tensors(tmp_path / "weights.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_large_tensor_of_few_values_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(10**9)}, tmp_path / "weights.pth")
    with pytest.raises(StorageError, match="no weight"):
        read_tensors(tmp_path / "weights.pth")


def test_tied_weights_are_weights(tmp_path: Path) -> None:
    shared = torch.rand(8)
    torch.save({"a": shared, "b": shared, "c": shared[:4]}, tmp_path / "weights.pth")
    assert set(read_tensors(tmp_path / "weights.pth")) == {"a", "b", "c"}
