from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from frostline.averaging import between, mean_of, put, shapes_of, unlike
from frostline.errors import StorageError


def saved(path: Path, **tensors: Tensor) -> Path:
    save_file(tensors, path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    torch.manual_seed(0)
    return [
        saved(
            tmp_path / f"{index}.safetensors",
            weight=torch.randn(3, 2),
            half=torch.randn(4, dtype=torch.bfloat16),
            same=torch.ones(2),
            counted=torch.tensor(index + 5),
        )
        for index in range(3)
    ]


def test_a_mean_is_computed_in_float64_and_counts_are_those_of_the_first(files: list[Path]) -> None:
    single = [dict(mean_of([file])) for file in files]
    mean = dict(mean_of(files))
    assert list(mean) == sorted(mean)
    for name in ("weight", "half"):
        wanted = torch.stack([one[name].double() for one in single]).mean(dim=0)
        assert mean[name].dtype == single[0][name].dtype
        assert torch.equal(mean[name], wanted.to(mean[name].dtype))
    assert int(mean["counted"]) == 5
    assert int(dict(mean_of(files[::-1]))["counted"]) == 7


def test_a_mean_of_equal_weights_is_those_weights(files: list[Path]) -> None:
    three = dict(mean_of([files[1]] * 3))
    for name, tensor in mean_of([files[1]]):
        assert torch.equal(tensor, three[name])


def test_large_and_small_values_do_not_drown_each_other(tmp_path: Path) -> None:
    values = (1e8, 1.0, -1e8, 1.0)
    files = [saved(tmp_path / f"{value}{index}", w=torch.tensor([value])) for index, value in enumerate(values)]
    assert float(dict(mean_of(files))["w"]) == 0.5


def test_between_two_models(files: list[Path]) -> None:
    start = {"weight": torch.tensor([[-0.0, 2.0]] * 3), "counted": torch.tensor(0)}
    end = dict(mean_of([files[0]]))
    middle = dict(between(start, files[0], 0.25))
    wanted = 0.75 * start["weight"].double() + 0.25 * end["weight"].double()
    assert torch.equal(middle["weight"], wanted.float())
    assert torch.equal(middle["same"], end["same"])
    assert int(middle["counted"]) == 5
    first, last = dict(between(start, files[0], 0)), dict(between(start, files[0], 1))
    # bitwise: 0 and -0 are equal and not the same
    assert torch.equal(first["weight"].view(torch.int32), start["weight"].view(torch.int32))
    assert int(first["counted"]) == 0
    assert all(torch.equal(last[name], tensor) for name, tensor in end.items())


def test_what_differs_is_found(files: list[Path]) -> None:
    assert unlike(files) == {"weight", "half", "counted"}
    assert unlike(files[:1]) == set()
    assert unlike(files[:1], {"same": torch.zeros(2), "absent": torch.zeros(1)}) == {"same"}
    assert shapes_of(files[0]) == {"counted": (), "half": (4,), "same": (2,), "weight": (3, 2)}


def test_weights_are_put_in_whole_or_refused() -> None:
    model = nn.Linear(2, 3).to(memory_format=torch.channels_last)
    given = {"weight": torch.randn(3, 2), "bias": torch.randn(3)}
    put(model, iter(given.items()))
    assert torch.equal(model.weight, given["weight"])
    with pytest.raises(StorageError, match="no 'bias'"):
        put(model, iter([("weight", given["weight"])]))
    with pytest.raises(StorageError, match="'more'"):
        put(model, iter([("more", given["weight"])]))
    with pytest.raises(StorageError, match=r"\(2, 3\)"):
        put(model, iter([("weight", given["weight"].T)]))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for file in (tmp_path / "broken.safetensors", tmp_path / "absent.safetensors"):
        with pytest.raises(StorageError, match=file.name):
            shapes_of(file)
