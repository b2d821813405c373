"""Classes of torchvision on files that are written here as the real ones are on the disk."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.server
import inspect
import pickle
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.io
import torchvision.datasets
from omegaconf import OmegaConf
from PIL import Image

from frostline.data import ImageData, ImageSplit
from frostline.data.torchvision_sets import TorchvisionData
from frostline.errors import ConfigError, DataError, StorageError

CONF = Path(__file__).parents[2] / "conf" / "data"
CLOSED = "http://127.0.0.1:9/"


def pixels(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(7, 9, 3, seed=seed)).save(path)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def loaded(name: str, root: Path, **settings: Any) -> TorchvisionData:
    data = TorchvisionData(name, str(root), **{"val_fraction": 0.0, **settings})
    data.load()
    return data


def counts(data: ImageData) -> dict[str, list[int]]:
    return {split: data.class_counts(split) for split in data.splits}


def names(split: ImageSplit) -> list[str]:
    return [split.name(index) for index in range(len(split))]


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def write_mnist(folder: Path, prefixes: tuple[str, str] = ("train", "t10k"), first: int = 0, classes: int = 10) -> None:
    for prefix, count in zip(prefixes, (2 * classes, classes), strict=True):
        write_idx(folder / f"{prefix}-images-idx3-ubyte", pixels(count, 28, 28, seed=count))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", (np.arange(count) % classes + first).astype(np.uint8))


def test_config_names_every_argument_with_its_default() -> None:
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / "torchvision.yaml"))
    own = set(inspect.signature(TorchvisionData).parameters) - set(inspect.signature(ImageData).parameters)
    assert node.pop("defaults")[0] == "common/files@_here_"  # which has root and file_limit
    assert node.pop("_target_") == "frostline.data.TorchvisionData"
    assert node == {"name": "???", "download": False, "arguments": {}}
    assert own == {*node, "root", "file_limit"}


# --- layouts ---


def test_mnist_stays_an_array(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    data = loaded("MNIST", tmp_path)
    assert counts(data) == {"train": [2] * 10, "test": [1] * 10}
    assert data.classes[:2] == ("0 - zero", "1 - one")
    assert data.in_memory
    train = data.splits["train"]
    for index in range(20):
        assert np.array_equal(np.asarray(train.image(index))[..., 0], pixels(20, 28, 28, seed=20)[index])
    assert train.labels.tolist() == [*range(10)] * 2
    assert names(data.splits["test"])[:2] == ["test/0000", "test/0001"]


def test_emnist_letters_are_26_classes(tmp_path: Path) -> None:
    write_mnist(tmp_path / "EMNIST/raw", ("emnist-letters-train", "emnist-letters-test"), first=1, classes=26)
    data = loaded("EMNIST", tmp_path, arguments={"split": "letters"})
    assert data.classes == tuple("abcdefghijklmnopqrstuvwxyz")
    assert counts(data) == {"train": [2] * 26, "test": [1] * 26}
    assert "The class 'N/A' without a picture in any split is left out." in data.notes


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Real batches are pickles of which torchvision knows the checksum."""
    kind = torchvision.datasets.CIFAR10
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    contents: dict[str, Any] = {}
    for number, (file, _) in enumerate([*kind.train_list, *kind.test_list]):
        contents[file] = {"data": pixels(4, 3072, seed=number), "labels": [0, 1, 1, 0]}
        (folder / file).write_bytes(pickle.dumps(contents[file]))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile"]}))
    for attribute in ("train_list", "test_list"):
        listed = [[file, md5(folder / file)] for file, _ in getattr(kind, attribute)]
        monkeypatch.setattr(kind, attribute, listed)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / "batches.meta")})
    return contents


def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = write_cifar(tmp_path, monkeypatch)
    data = loaded("CIFAR10", tmp_path)
    assert data.classes == ("airplane", "automobile")
    assert counts(data) == {"train": [10, 10], "test": [2, 2]}
    assert data.in_memory
    second = contents["data_batch_1"]["data"][1].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(np.asarray(data.splits["train"].image(1)), second)


def test_a_pickle_with_another_checksum_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)

    class Boom:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    batch = tmp_path / torchvision.datasets.CIFAR10.base_folder / "data_batch_1"
    batch.write_bytes(pickle.dumps(Boom()))
    with pytest.raises(DataError, match=r"CIFAR10 is not in .*, or is not complete: Dataset not found or corrupted"):
        loaded("CIFAR10", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_svhn_and_stl10_have_channels_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    svhn = torchvision.datasets.SVHN
    listed = {}
    for split, (address, file, _) in svhn.split_list.items():
        turned = pixels(32, 32, 3, 6, seed=len(split))
        scipy.io.savemat(tmp_path / file, {"X": turned, "y": np.array([[10], [1], [2]] * 2)})
        listed[split] = [address, file, md5(tmp_path / file)]
    monkeypatch.setattr(svhn, "split_list", listed)
    data = loaded("SVHN", tmp_path)
    assert (data.classes, counts(data)) == (("0", "1", "2"), {"train": [2, 2, 2], "test": [2, 2, 2]})
    assert np.array_equal(np.asarray(data.splits["test"].image(4)), pixels(32, 32, 3, 6, seed=4)[..., 4])
    assert data.in_memory

    stl = torchvision.datasets.STL10
    folder = tmp_path / stl.base_folder
    folder.mkdir()
    for file, _ in [*stl.train_list, *stl.test_list]:
        (folder / file).write_bytes((pixels(4, 3, 96, 96) if "X" in file else np.array([1, 2, 2, 1], "u1")).tobytes())
    (folder / stl.class_names_file).write_text("airplane\nbird\n")
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(stl, attribute, [[file, md5(folder / file)] for file, _ in getattr(stl, attribute)])
    data = loaded("STL10", tmp_path)
    assert (data.classes, counts(data)) == (("airplane", "bird"), {"train": [2, 2], "test": [2, 2]})
    assert np.array_equal(np.asarray(data.splits["train"].image(3)), pixels(4, 3, 96, 96)[3].transpose(2, 1, 0))


def test_usps_is_text(tmp_path: Path) -> None:
    for file in ("usps.bz2", "usps.t.bz2"):
        with bz2.open(tmp_path / file, "wt") as text:
            for label in range(1, 11):
                text.write(f"{label} " + " ".join(f"{index}:{label / 10 - 1:.2f}" for index in range(1, 257)) + "\n")
    data = loaded("USPS", tmp_path)
    assert (data.classes, counts(data)) == (tuple("0123456789"), {"train": [1] * 10, "test": [1] * 10})


def write_country(root: Path) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        for label in ("AD", "AE"):
            for index in range(3):
                picture(root / f"country211/{split}/{label}/{index}.png", seed=10 * number + index)


def test_class_folders_keep_their_three_splits(tmp_path: Path) -> None:
    write_country(tmp_path)
    data = loaded("Country211", tmp_path)
    assert (data.classes, counts(data)) == (("AD", "AE"), {"train": [3, 3], "val": [3, 3], "test": [3, 3]})
    val = data.splits["val"]
    assert names(val)[4] == "country211/valid/AE/1.png"
    assert np.array_equal(np.asarray(val.image(4)), pixels(7, 9, 3, seed=11))
    assert val.content(4) == (tmp_path / names(val)[4]).read_bytes()
    assert val.path(4) == tmp_path / names(val)[4]
    assert not data.in_memory


def test_our_limits_hold_for_files_and_nothing_is_decoded_to_read_the_set(tmp_path: Path) -> None:
    write_country(tmp_path)
    (tmp_path / "country211/train/AD/0.png").write_bytes(b"no picture")
    data = loaded("Country211", tmp_path, pixel_limit=62)
    with pytest.raises(DataError, match=r"AD/0\.png cannot be read"):
        data.splits["train"].image(0)
    with pytest.raises(DataError, match="limit of 62"):
        data.splits["train"].image(1)
    with pytest.raises(DataError, match="limit of 20"):
        loaded("Country211", tmp_path, file_limit=20).splits["train"].image(1)


def test_a_set_without_official_splits_is_train_at_first(tmp_path: Path) -> None:
    for label in ("River", "Forest"):
        for index in range(10):
            picture(tmp_path / f"eurosat/2750/{label}/{label}_{index}.jpg", seed=index)
    data = loaded("EuroSAT", tmp_path, val_fraction=0.2, test_fraction=0.3)
    assert data.classes == ("Forest", "River")
    assert counts(data) == {"train": [5, 5], "val": [2, 2], "test": [3, 3]}


def test_imagenette_has_names_instead_of_numbers_and_no_test(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in ("n01440764", "n02102040"):
            picture(tmp_path / f"imagenette2-160/{split}/{number}/{number}_1.jpeg")
    data = loaded("Imagenette", tmp_path, arguments={"size": "160px"})
    assert data.classes == ("tench", "English springer")
    assert (counts(data), data.notes) == ({"train": [1, 1], "val": [1, 1]}, ["There is no test split."])


def write_pets(root: Path) -> None:
    pets = root / "oxford-iiit-pet"
    (pets / "annotations").mkdir(parents=True)
    for split in ("trainval", "test"):
        lines = []
        for label, (breed, kind) in enumerate((("Abyssinian", 1), ("beagle", 2), ("Bengal", 1)), start=1):
            for index in range(2):
                picture(pets / f"images/{breed}_{split}{index}.jpg", seed=index)
                lines.append(f"{breed}_{split}{index} {label} {kind} 1\n")
        (pets / f"annotations/{split}.txt").write_text("".join(lines))


def test_pets_train_on_trainval(tmp_path: Path) -> None:
    write_pets(tmp_path)
    data = loaded("OxfordIIITPet", tmp_path)
    assert (data.classes, counts(data)) == (("Abyssinian", "Beagle", "Bengal"), {"train": [2] * 3, "test": [2] * 3})
    assert names(data.splits["test"])[2] == "oxford-iiit-pet/images/beagle_test0.jpg"
    assert data.notes == ["There is no val split."]


def test_an_argument_that_changes_the_labels_is_followed(tmp_path: Path) -> None:
    write_pets(tmp_path)
    data = loaded("OxfordIIITPet", tmp_path, arguments={"target_types": "binary-category"})
    assert (data.classes, counts(data)) == (("Cat", "Dog"), {"train": [4, 2], "test": [4, 2]})
    assert data.splits["train"].path(0) is not None


def test_gtsrb_and_caltech_open_files_on_their_own(tmp_path: Path) -> None:
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in (0, 1):
        picture(tmp_path / f"gtsrb/GTSRB/Training/{label:05d}/00000.ppm", seed=label)
        picture(tmp_path / f"gtsrb/GTSRB/Final_Test/Images/{label:05d}.ppm", seed=5 + label)
        rows.append(f"{label:05d}.ppm;9;7;1;1;1;1;{label}")
    (tmp_path / "gtsrb/GT-final_test.csv").write_text("\n".join(rows) + "\n")
    data = loaded("GTSRB", tmp_path)
    assert (data.classes, counts(data)) == (("0", "1"), {"train": [1, 1], "test": [1, 1]})
    assert names(data.splits["test"])[1] == "gtsrb/GTSRB/Final_Test/Images/00001.ppm"

    for label in ("ant", "BACKGROUND_Google", "accordion"):
        picture(tmp_path / f"caltech101/101_ObjectCategories/{label}/image_0001.jpg")
    data = loaded("Caltech101", tmp_path)
    assert (data.classes, counts(data)) == (("accordion", "ant"), {"train": [1, 1]})
    assert names(data.splits["train"])[1] == "caltech101/101_ObjectCategories/ant/image_0001.jpg"


def test_inaturalist_tells_its_splits_apart_by_version(tmp_path: Path) -> None:
    for version in ("2021_train_mini", "2021_valid"):
        for number, genus in enumerate(("Corvus", "Pica")):
            picture(tmp_path / f"{version}/0000{number}_Animalia_Chordata_Aves_Passeriformes_Corvidae_{genus}_x/1.jpg")
    chosen = {"version": "2021_train_mini", "target_type": "genus"}
    data = loaded("INaturalist", tmp_path, arguments=chosen)
    assert (data.classes, counts(data)) == (("Corvus", "Pica"), {"train": [1, 1], "val": [1, 1]})


def test_a_chosen_split_that_holds_val_leaves_val_out(tmp_path: Path) -> None:
    data = tmp_path / "fgvc-aircraft-2013b/data"
    for split in ("train", "val", "trainval", "test"):
        for index in range(2):
            picture(data / f"images/{split}{index}.jpg")
        (data / f"images_variant_{split}.txt").write_text(f"{split}0 A 300/B\n{split}1 Boeing 707\n")
    (data / "variants.txt").write_text("Boeing 707\nA 300/B\n")
    official = loaded("FGVCAircraft", tmp_path)
    assert official.classes == ("Boeing 707", "A 300/B")
    assert list(official.splits) == ["train", "val", "test"]
    both = loaded("FGVCAircraft", tmp_path, arguments={"split": "trainval"})
    assert list(both.splits) == ["train", "test"]
    assert names(both.splits["train"])[0].endswith("trainval0.jpg")


def test_pictures_that_are_made_on_demand(tmp_path: Path) -> None:
    data = loaded("FakeData", tmp_path, arguments={"size": 12, "num_classes": 2, "image_size": [3, 6, 8]})
    assert (data.classes, len(data.splits["train"])) == (("0", "1"), 12)
    assert data.splits["train"].image(3).size == (8, 6)
    again = loaded("FakeData", tmp_path, arguments={"size": 12, "num_classes": 2, "image_size": [3, 6, 8]})
    assert data.fingerprint() == again.fingerprint()


def test_a_test_split_without_labels_is_left_out_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "fer2013"
    folder.mkdir()
    values = " ".join(["7"] * 48 * 48)
    (folder / "train.csv").write_text("emotion,pixels\n" + f"0,{values}\n1,{values}\n")
    (folder / "test.csv").write_text(f"pixels\n{values}\n")
    kept = torchvision.datasets.FER2013._RESOURCES
    known = {**kept, **{split: (f"{split}.csv", md5(folder / f"{split}.csv")) for split in ("train", "test")}}
    monkeypatch.setattr(torchvision.datasets.FER2013, "_RESOURCES", known)
    data = loaded("FER2013", tmp_path)
    assert list(data.splits) == ["train"]
    assert "Ignored the test split of FER2013, which has no labels." in data.notes


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "arguments", "problem", "mend"),
    [
        ("CIFAR01", {}, "has no data set 'CIFAR01'", "Did you mean 'CIFAR10'"),
        ("cifar10", {}, "has no data set 'cifar10'", "CIFAR10"),
        ("os", {}, "has no data set 'os'", ""),
        ("CocoDetection", {}, "CocoDetection cannot be used: it has boxes", "one label"),
        ("Kitti2015Stereo", {}, "it has stereo pairs", "one label"),
        ("UCF101", {}, "it has videos", "one label"),
        ("LSUN", {}, "a pickle file without a checksum", "one label"),
        ("ImageFolder", {}, "is what data=folder reads", "one label"),
        ("EMNIST", {}, "EMNIST needs the argument 'split'", "Values: byclass, bymerge"),
        ("EMNIST", {"split": "leters"}, "Unknown value 'leters' for argument split", "data.arguments"),
        ("DTD", {"partitoin": 2}, "DTD has no argument 'partitoin'", "Did you mean 'partition'?"),
        ("DTD", {"split": "test"}, "is an official split of DTD", "Leave data.arguments.split out"),
        ("MNIST", {"train": False}, r"data\.arguments\.train is not taken", "all official splits"),
        ("QMNIST", {"what": "nist"}, r"data\.arguments\.what is not taken", "all official splits"),
        ("CIFAR10", {"transform": "x"}, r"data\.arguments\.transform is not taken", "augment"),
    ],
)
def test_faults_of_the_config(tmp_path: Path, name: str, arguments: dict[str, Any], problem: str, mend: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        loaded(name, tmp_path, arguments=arguments)
    assert mend in str(caught.value.mend)


def test_every_name_is_taken_or_refused_with_a_reason(tmp_path: Path) -> None:
    kinds = [name for name in torchvision.datasets.__all__ if inspect.isclass(getattr(torchvision.datasets, name))]
    told: dict[str, str] = {}
    absent = []
    for name in kinds:
        arguments = {"EMNIST": {"split": "letters"}, "FakeData": {"size": 4, "image_size": [3, 2, 2]}}.get(name, {})
        try:
            loaded(name, tmp_path, arguments=arguments)
        except DataError as error:
            absent.append(name)
            told[name] = str(error.mend)
        except ConfigError as error:
            told[name] = error.problem
    assert set(kinds) - set(told) == {"FakeData"}
    reasons = ("data.download=true", "torchvision cannot download it", "cannot be used: it", "that is not installed")
    assert [name for name, text in told.items() if not any(reason in text for reason in reasons)] == []
    assert len(absent) >= 33
    assert {"CIFAR100", "Places365", "CelebA", "Flowers102", "ImageNet"} <= set(absent)


def test_celeba_has_several_values_per_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_country(tmp_path)
    kind = torchvision.datasets.Country211
    monkeypatch.setattr(kind, "__getitem__", lambda self, index: (self.samples[index][0], np.array([0, 1])))
    with pytest.raises(DataError, match="Picture 0 of Country211's train split has no single label, but ndarray"):
        loaded("Country211", tmp_path)


def test_what_is_not_there_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CIFAR10 is not in .*nowhere.*the folder .*nowhere does not exist") as caught:
        loaded("CIFAR10", tmp_path / "nowhere")
    assert "data.download=true" in str(caught.value.mend)
    assert "cifar-10-python.tar.gz" in str(caught.value.mend)
    assert not (tmp_path / "nowhere").exists()


def test_a_missing_test_split_is_no_reason_to_go_on(tmp_path: Path) -> None:
    picture(tmp_path / "gtsrb/GTSRB/Training/00000/00000.ppm")
    picture(tmp_path / "gtsrb/GTSRB/Training/00001/00000.ppm")
    with pytest.raises(DataError, match=r"GTSRB is not in .*, or is not complete"):
        loaded("GTSRB", tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    with pytest.raises(DataError, match=r"MNIST in .* cannot be read"):
        loaded("MNIST", tmp_path)


# --- download ---


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server on this machine with MNIST, of which torchvision knows the checksums."""
    served = tmp_path / "served"
    write_mnist(served)
    resources = []
    for file in sorted(served.iterdir()):
        packed = file.with_name(f"{file.name}.gz")
        packed.write_bytes(gzip.compress(file.read_bytes()))
        resources.append((packed.name, md5(packed)))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_makes_the_folder_and_checks_what_comes(tmp_path: Path, mirror: Path) -> None:
    data = loaded("MNIST", tmp_path / "new", download=True)
    assert counts(data) == {"train": [2] * 10, "test": [1] * 10}
    assert loaded("MNIST", tmp_path / "new").classes == data.classes
    changed = next(mirror.glob("train-images*.gz"))
    changed.write_bytes(gzip.compress(b"other"))
    with pytest.raises((DataError, StorageError), match=r"MNIST"):
        loaded("MNIST", tmp_path / "other", download=True)


def test_no_network_is_a_fault_of_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [CLOSED])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{CLOSED}cifar.tar.gz")
    for name in ("MNIST", "CIFAR10"):
        with pytest.raises(StorageError, match=f"{name} cannot be downloaded into .*refused") as caught:
            loaded(name, tmp_path, download=True)
        assert "Try again" in str(caught.value.mend)


def test_what_torchvision_no_longer_downloads(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="StanfordCars cannot be downloaded"):
        loaded("StanfordCars", tmp_path, download=True)
