from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from frostline.backbones.sources import find_source, from_folder
from frostline.errors import ConfigError, StorageError
from frostline.specs import BackboneSpec


def find(name: str = "test_resnet", weights: str = "none") -> Any:
    return find_source(BackboneSpec(name=name, weights=weights))


@pytest.mark.parametrize(
    ("name", "close"),
    [("resnt18", "'resnet18'"), ("resnet50.a1_in1", "'resnet50.a1_in1k'"), ("convnext_tiy", "'convnext_tiny'")],
)
def test_an_unknown_name_lists_close_ones(name: str, close: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find(name)
    assert close in str(caught.value)


def test_an_unknown_name_with_none_close_says_where_the_names_are() -> None:
    with pytest.raises(ConfigError, match="no timm model 'qqqqqqqq'") as caught:
        find("qqqqqqqq")
    assert caught.value.mend == "timm.list_models() lists the names."


def test_a_renamed_model_says_its_new_name() -> None:
    with pytest.raises(ConfigError, match="It is now called 'tf_efficientnet"):
        find("tf_efficientnet_b0_ap")


def test_a_path_without_its_source_says_both_ways_to_write_it() -> None:
    with pytest.raises(ConfigError, match=r"hf-hub:timm/resnet18 .*local-dir:timm/resnet18"):
        find("timm/resnet18")


def test_a_model_without_pretrained_weights_says_so() -> None:
    with pytest.raises(ConfigError, match="no pretrained weights for 'test_maxvit'") as caught:
        find("test_maxvit", "pretrained")
    assert "backbone.weights=none" in str(caught.value.mend)


@pytest.mark.parametrize(("weights", "close"), [("pretraned", "'pretrained'"), ("non", "'none'")])
def test_a_misspelt_weights_word_is_mended(weights: str, close: str) -> None:
    with pytest.raises(ConfigError, match=close):
        find(weights=weights)


def test_weights_that_are_nowhere_are_named() -> None:
    with pytest.raises(StorageError, match=r"backbone.weights='outputs/train/x' is neither a file nor a folder"):
        find(weights="outputs/train/x")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").touch()
    with pytest.raises(ConfigError, match=r"weights.npz' is no weight file"):
        find(weights=str(tmp_path / "weights.npz"))


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(StorageError, match="'local-dir:nowhere' names the folder 'nowhere'"):
        find("local-dir:nowhere")


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"is no timm folder: there is no .*config.json"):
        from_folder(tmp_path, "local-dir:x")


def test_a_folder_without_weights_is_named(make_folder: Any) -> None:
    folder = make_folder()
    (folder / "model.safetensors").unlink()
    with pytest.raises(StorageError, match="holds no weights"):
        from_folder(folder, "x")
    assert from_folder(folder, "x", wants_weights=False).architecture == "test_resnet"


def test_safetensors_are_preferred_to_pickles(make_folder: Any) -> None:
    folder = make_folder()
    torch.save({}, folder / "pytorch_model.bin")
    assert from_folder(folder, "x").weights == folder / "model.safetensors"


@pytest.mark.parametrize(
    ("text", "fault", "message"),
    [
        ("{", StorageError, "cannot be read as JSON"),
        ("[]", StorageError, "holds no JSON object"),
        ('{"model_type": "bert"}', ConfigError, "names no 'architecture'"),
        ('{"architecture": "resnet19"}', ConfigError, "is a 'resnet19', which timm .* does not know"),
        ('{"architecture": "resnet18", "model_args": []}', None, ""),
        ('{"architecture": "resnet18", "model_args": [1]}', StorageError, "model_args is no JSON object"),
    ],
)
def test_a_config_that_came_with_a_model_is_checked(
    tmp_path: Path, text: str, fault: type[Exception] | None, message: str
) -> None:
    (tmp_path / "config.json").write_text(text)
    if fault is None:
        assert from_folder(tmp_path, "x", wants_weights=False).model_args == {}
        return
    with pytest.raises(fault, match=message):
        from_folder(tmp_path, "x", wants_weights=False)


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg_overlay", "features_only"])
def test_a_config_cannot_name_another_file_to_load(make_folder: Any, name: str) -> None:
    folder = make_folder()
    content = json.loads((folder / "config.json").read_text())
    content["model_args"][name] = "elsewhere.pth"
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=f"model_args.{name}, which a model folder may not"):
        from_folder(folder, "x")


@pytest.mark.parametrize("labels", [["cat", "dog"], {"0": "cat", "1": "dog"}])
def test_labels_are_read_in_the_order_of_their_index(make_folder: Any, labels: Any) -> None:
    folder = make_folder(classes=2)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "label_names": labels}))
    source = from_folder(folder, "x")
    assert source.labels == ("cat", "dog")
    assert "label_names" not in source.config
