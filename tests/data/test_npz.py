from __future__ import annotations

import inspect
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from omegaconf import OmegaConf

from frostline.data import ImageData, npz
from frostline.data.npz import ArraysData
from frostline.errors import ConfigError, DataError

CONF = Path(__file__).parents[2] / "conf" / "data"


def pixels(count: int, *shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def arrays(**changed: Any) -> dict[str, Any]:
    """A set as MedMNIST has them: labels ``[N, 1]`` uint8."""
    found: dict[str, Any] = {}
    for number, (split, count) in enumerate((("train", 12), ("val", 4), ("test", 6))):
        found[f"{split}_images"] = pixels(count, 8, 6, 3, seed=number)
        found[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    return {name: array for name, array in {**found, **changed}.items() if array is not None}


def saved(folder: Path, contents: Mapping[str, Any]) -> Path:
    path = folder / "set.npz"
    np.savez_compressed(path, **contents)
    return path


def loaded(folder: Path, contents: Mapping[str, Any], **settings: Any) -> ArraysData:
    data = ArraysData(str(saved(folder, contents)), **settings)
    data.load()
    return data


def test_config_names_every_argument_with_its_default() -> None:
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / "npz.yaml"))
    own = set(inspect.signature(ArraysData).parameters) - set(inspect.signature(ImageData).parameters)
    assert node.pop("defaults")[0] == "common/base@_here_"
    assert node.pop("_target_") == "frostline.data.ArraysData"
    assert node == {"root": "???", "classes": None}
    assert own == set(node)


def test_official_splits_pictures_and_labels(tmp_path: Path) -> None:
    contents = arrays()
    data = loaded(tmp_path, contents)
    assert data.classes == ("0", "1")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "val": 4, "test": 6}
    for name, split in data.splits.items():
        assert split.labels.tolist() == contents[f"{name}_labels"][:, 0].tolist()
        for index in range(len(split)):
            assert np.array_equal(np.asarray(split.image(index)), contents[f"{name}_images"][index])
    assert [data.splits["test"].name(index) for index in (0, 5)] == ["test/0000", "test/0005"]
    assert data.notes == []


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 1)])
@pytest.mark.parametrize("fortran", [False, True])
def test_gray_pictures(tmp_path: Path, shape: tuple[int, ...], fortran: bool) -> None:
    gray = pixels(12, *shape)
    order = np.asfortranarray(gray) if fortran else gray
    data = loaded(tmp_path, {"train_images": order, "train_labels": np.arange(12) % 3}, val_fraction=0.0)
    for index in (0, 7):
        image = data.splits["train"].image(index)
        assert (image.mode, image.size) == ("RGB", (6, 8))
        assert np.array_equal(np.asarray(image)[..., 2], gray[index].reshape(8, 6))


def test_absent_splits_are_derived(tmp_path: Path) -> None:
    contents = {"train_images": pixels(40, 4, 4), "train_labels": np.arange(40) % 2}
    data = loaded(tmp_path, contents, test_fraction=0.2, val_fraction=0.1)
    assert {name: data.class_counts(name) for name in data.splits} == {
        "train": [14, 14],
        "val": [2, 2],
        "test": [4, 4],
    }


def test_another_name_of_val_and_other_arrays(tmp_path: Path) -> None:
    contents = arrays(val_images=None, val_labels=None, mean=np.zeros(3))
    contents |= {"Valid_images": pixels(2, 8, 6, 3), "Valid_labels": np.array([0, 1])}
    data = loaded(tmp_path, contents)
    assert len(data.splits["val"]) == 2
    assert data.notes == ["Ignored other arrays of set.npz: mean."]


def test_classes_by_position_by_text_and_in_numeric_order(tmp_path: Path) -> None:
    named = loaded(tmp_path, arrays(), classes=["no", "yes, of course"])
    assert named.classes == ("no", "yes, of course")
    assert named.class_counts("train") == [6, 6]
    text = np.array(["10", "9"] * 6)
    alone = {"train_images": pixels(12, 4, 4), "train_labels": text}
    assert loaded(tmp_path, alone, val_fraction=0.0).classes == ("9", "10")
    assert loaded(tmp_path, alone, val_fraction=0.0).splits["train"].labels.tolist() == [1, 0] * 6


def test_a_label_outside_the_classes_names_array_and_row(tmp_path: Path) -> None:
    labels = np.array([0, 1, 0, 7])
    with pytest.raises(DataError, match=r"label '7' of val_labels\[3\] in .*set\.npz is none of the 2"):
        loaded(tmp_path, arrays(val_labels=labels), classes=["a", "b"])


def test_bad_names_of_classes_are_a_fault_of_the_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds 'a' twice"):
        loaded(tmp_path, arrays(), classes=["a", "a"])


TEXT = {"val_labels": np.array(["a"] * 4), "test_labels": np.array(["b"] * 6)}
EMPTY = {"train_labels": np.array(["a", ""] * 6), **TEXT}
OBJECTS = np.array([{"a": 1}] * 12, dtype=object)


@pytest.mark.parametrize(
    ("changed", "problem", "mend"),
    [
        ({"train_images": pixels(12, 8, 6).astype(np.float32)}, "train_images is float32", "as uint8"),
        ({"train_images": OBJECTS}, "train_images is object", "as uint8"),
        ({"train_labels": OBJECTS}, "train_labels is object", "int64"),
        ({"train_labels": np.zeros(12)}, "train_labels is float64", "int64"),
        ({"test_images": pixels(6, 4, 4, 4)}, r"test_images has the shape \(6, 4, 4, 4\)", "Volumes"),
        ({"test_images": pixels(6, 0, 4)}, r"test_images has the shape \(6, 0, 4\)", "Volumes"),
        ({"train_labels": np.zeros((12, 14), np.uint8)}, r"\(12, 14\): 14 values per picture", "Several labels"),
        ({"train_labels": np.zeros((12, 1, 1), np.uint8)}, r"train_labels has the shape \(12, 1, 1\)", "Reshape"),
        ({"val_labels": np.zeros(3, int)}, "val_images has 4 pictures and val_labels 3 labels", "one label"),
        ({"val_labels": None}, "has no array val_labels, but train_images", "Name the arrays"),
        ({"train_images": None, "train_labels": None}, "has no array train_images, but val_images", "Name the arrays"),
        ({"valid_images": pixels(2, 8, 6)}, "has two val splits, val and valid", "Remove one"),
        ({"train_labels": np.array(["a", "b"] * 6)}, "of several kinds: text in train, integers in", "one kind"),
        (EMPTY, r"label of train_labels\[1\] in .* is empty", "Fill it in"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_named(tmp_path: Path, changed: dict[str, Any], problem: str, mend: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        loaded(tmp_path, arrays(**changed))
    assert mend in str(caught.value.mend)
    assert "set.npz" in caught.value.problem or "several kinds" in caught.value.problem


def test_no_pickle_is_read(tmp_path: Path) -> None:
    class Boom:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    array = np.empty(12, dtype=object)
    array[:] = [Boom()] * 12
    path = saved(tmp_path, arrays(train_labels=array))
    with pytest.raises(DataError, match="train_labels is object"):
        ArraysData(str(path)).load()
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Boom()))
    assert (tmp_path / "ran").exists(), "the pickle would not have shown itself"


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def with_member(path: Path, name: str, content: bytes) -> Path:
    """The archive with another content of one array."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, kept in {**members, f"{name}.npy": content}.items():
            archive.writestr(member, kept)
    return path


def test_a_shape_that_the_archive_does_not_hold_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = with_member(saved(tmp_path, arrays()), "train_images", header((10**12, 8, 6, 3)) + b"\0" * 100)
    with pytest.raises(DataError, match="array train_images: it has 228 bytes, which its shape"):
        ArraysData(str(path)).load()


def test_arrays_larger_than_the_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, arrays(train_images=np.zeros((12, 500, 500, 3), np.uint8)))
    assert path.stat().st_size < 100_000 < 12 * 500 * 500 * 3
    monkeypatch.setattr(npz, "_memory", lambda: 10_000_000)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("an array was read"))
    with pytest.raises(DataError, match=r"take 9,001,4\d\d bytes, more than this machine may hold \(8,000,000\)"):
        ArraysData(str(path)).load()


def test_a_limit_of_pixels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pictures of train_images have 6 x 8 pixels, more than data\.pixel_limit=47"):
        loaded(tmp_path, arrays(), pixel_limit=47)


@pytest.mark.parametrize("damage", ["no archive", "truncated", "flipped", "another format", "long header", "method"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = saved(tmp_path, arrays())
    content = path.read_bytes()
    if damage == "no archive":
        path.write_bytes(b"no archive")
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        place = content.index(b"train_images.npy") + 600
        path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
    elif damage == "another format":
        with_member(path, "train_images", b"\x93NUMPY\x09\x00")
    elif damage == "long header":
        with_member(path, "train_images", b"\x93NUMPY\x02\x00" + (10**6).to_bytes(4, "little") + b" " * 10**6)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
            for name, array in arrays().items():
                archive.writestr(f"{name}.npy", header(array.shape) + array.tobytes())
    with pytest.raises(DataError, match=r"set\.npz is damaged or no \.npz file"):
        ArraysData(str(path)).load()


def test_a_missing_file_suggests_another(tmp_path: Path) -> None:
    saved(tmp_path, arrays())
    with pytest.raises(DataError, match="does not exist") as caught:
        ArraysData(str(tmp_path / "sett.npz")).load()
    assert "Did you mean 'set.npz'?" in str(caught.value.mend)
