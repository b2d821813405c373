"""Folders of models: their ``config.json`` describes a model, and does nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from frostline.backbones import create_backbone, load_timm_folder
from frostline.errors import ConfigError, FrostlineError, StorageError
from frostline.specs import BackboneSpec

MakeFolder = Callable[..., Path]
READERS: dict[str, Callable[[Path], Any]] = {
    "loaded": load_timm_folder,
    "a backbone": lambda folder: create_backbone(BackboneSpec(name=f"local-dir:{folder}"), num_classes=3),
    "weights": lambda folder: create_backbone(BackboneSpec(name="test_resnet", weights=str(folder)), num_classes=3),
}


@pytest.fixture(params=READERS)
def read(request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    """Each way in which a timm folder is read."""
    return READERS[request.param]


def refused(read: Callable[[Path], Any], folder: Path) -> str:
    with pytest.raises((ConfigError, StorageError)) as caught:
        read(folder)
    text = str(caught.value)
    assert "\x1b" not in text
    return text


@pytest.mark.parametrize(
    "architecture",
    [
        "hf-hub:evil/model",
        "hf_hub:evil/model",
        "local-dir:/tmp",
        "../../evil",
        "os.system",
        "resnet18.evil",
        "test_resnet\n",
        "\x1b[2Jevil",
        "",
        None,
        7,
        ["test_resnet"],
        {"_target_": "os.system"},
    ],
)
def test_the_architecture_is_one_of_timms_own(make: MakeFolder, read: Callable[[Path], Any], architecture: Any) -> None:
    refused(read, make({"architecture": architecture}))


@pytest.fixture
def make(timm_folder: MakeFolder, canary: Path) -> MakeFolder:
    """Writes a timm folder; no test with it may find a canary."""
    return timm_folder


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://127.0.0.1:9/evil.pth"},
        {"hf_hub_id": "evil/model", "hf_hub_filename": "../../evil.bin"},
        {"custom_load": True, "url": "http://127.0.0.1:9/evil.npz"},
        {"custom_load": "hf", "hf_hub_id": "evil/model"},
        {"file": "/etc/passwd"},
        {"state_dict": {"conv1.weight": [1]}},
        {"source": "hf-hub", "architecture": "hf-hub:evil/model"},
        {"classifier": ["__class__", "__init__"], "tag": 5, "license": "<script>alert(1)</script>"},
        {"_target_": "os.system"},
    ],
)
def test_what_a_config_says_of_other_weights_is_not_followed(
    make: MakeFolder, read: Callable[[Path], Any], changes: dict[str, Any]
) -> None:
    folder = make({f"pretrained_cfg.{key}": value for key, value in changes.items()})
    found = read(folder)
    assert found.model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert found.report.loaded > 80


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block", "os.system"),
        ("act_layer", "os.system"),
        ("norm_layer", "subprocess.Popen"),
        ("checkpoint_path", "/tmp/evil.pth"),
        ("pretrained_cfg", {"url": "http://127.0.0.1:9/evil.pth"}),
        ("pretrained_cfg_overlay", {"file": "evil.pth"}),
        ("cache_dir", "/tmp/evil"),
        ("pretrained", True),
        ("features_only", True),
        ("model_name", "hf-hub:evil/model"),
        ("model_cfg", "evil"),
        ("_target_", "os.system"),
        ("__class__", "evil"),
        ("self", 1),
        ("stem_width", 10**12),
        ("in_chans", 10**9),
        ("in_chans", "evil"),
    ],
)
@pytest.mark.parametrize("reader", ["loaded", "a backbone"])
def test_arguments_of_the_model_are_the_models_own(make: MakeFolder, reader: str, name: str, value: Any) -> None:
    refused(READERS[reader], make({f"model_args.{name}": value}))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "NaN", '"text"', "[" * 100_000, '{"architecture": ' + "9" * 5000 + "}"]
)
def test_a_config_that_is_none_is_refused(make: MakeFolder, read: Callable[[Path], Any], content: str) -> None:
    folder = make()
    (folder / "config.json").write_text(content)
    refused(read, folder)


ODD: list[tuple[str, Any]] = [
    ("num_classes", "evil"),
    ("num_classes", [1]),
    ("num_classes", -1),
    ("num_classes", 10**12),
    ("label_names", 5),
    ("label_names", "abc"),
    ("label_names", ["a"]),
    ("label_names", [None, {}, []]),
    ("model_args", [1]),
    ("model_args.in_chans", 0),
    ("pretrained_cfg", [1]),
    ("pretrained_cfg.input_size", 5),
    ("pretrained_cfg.input_size", [3]),
    ("pretrained_cfg.input_size", [3, 10**6, 10**6]),
    ("pretrained_cfg.input_size", [3, -1, -1]),
    ("pretrained_cfg.input_size", ["a", 1, 2]),
    ("pretrained_cfg.mean", "abc"),
    ("pretrained_cfg.mean", [float("nan")] * 3),
    ("pretrained_cfg.std", {}),
    ("pretrained_cfg.std", [0, 0, 0]),
    ("pretrained_cfg.crop_pct", "evil"),
    ("pretrained_cfg.crop_pct", 1e-9),
    ("pretrained_cfg.crop_pct", -1),
    ("pretrained_cfg.crop_mode", "evil"),
    ("pretrained_cfg.interpolation", "evil"),
    ("pretrained_cfg.first_conv", 5),
]


@pytest.mark.parametrize(("key", "value"), ODD)
def test_a_config_that_lies_about_its_types_is_refused(make: MakeFolder, key: str, value: Any) -> None:
    refused(load_timm_folder, make({key: value}))


def test_labels_may_be_any_text_on_one_line(make: MakeFolder) -> None:
    labels = ["../../etc/passwd", "<script>alert(1)</script>", "=cmd|' /C calc'!A0"]
    assert load_timm_folder(make({"label_names": labels})).labels == tuple(labels)


def test_a_pickle_in_place_of_the_weights_is_refused(
    make: MakeFolder, read: Callable[[Path], Any], traps: dict[str, Any]
) -> None:
    folder = make()
    torch.save({"x": traps["exec"]}, folder / "model.safetensors")
    assert "model.safetensors" in refused(read, folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pth", "evil.ckpt"])
def test_a_pickle_beside_the_config_is_refused(
    make: MakeFolder, read: Callable[[Path], Any], traps: dict[str, Any], name: str
) -> None:
    folder = make()
    (folder / "model.safetensors").unlink()
    torch.save({"x": traps["system"]}, folder / name)
    assert "more than tensors" in refused(read, folder)


def test_safetensors_are_taken_before_a_pickle_beside_them(
    make: MakeFolder, read: Callable[[Path], Any], traps: dict[str, Any]
) -> None:
    folder = make()
    for name in ("pytorch_model.bin", "a.pth"):
        torch.save({"x": traps["system"]}, folder / name)
    assert read(folder).report.loaded > 80


def test_code_in_the_folder_is_not_imported(make: MakeFolder, read: Callable[[Path], Any], canary: Path) -> None:
    folder = make()
    for name in ("__init__.py", "modeling.py", "timm.py", "torch.py", "conftest.py"):
        (folder / name).write_text(f"open({str(canary)!r}, 'w').close()\n")
    content = json.loads((folder / "config.json").read_text())
    content["auto_map"] = {"AutoModel": "modeling.Evil"}
    content["trust_remote_code"] = True
    (folder / "config.json").write_text(json.dumps(content))
    assert read(folder).report.loaded > 80


def test_a_folder_that_names_itself_as_a_run_is_read_as_none(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "model").symlink_to(tmp_path / "loop", target_is_directory=True)
    with pytest.raises(FrostlineError):
        read(tmp_path / "loop")
