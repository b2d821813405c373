from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from frostline.backbones import LoadReport, create_backbone
from frostline.backbones.reading import file_sha256
from frostline.errors import ConfigError
from frostline.specs import BackboneSpec


def load(path: Path, name: str = "test_resnet", classes: int = 3, **kwargs: Any) -> Any:
    return create_backbone(BackboneSpec(name=name, weights=str(path), **kwargs), num_classes=classes)


def assert_body_equals(model: Any, tensors: dict[str, torch.Tensor], head: str = "fc.") -> None:
    for name, tensor in model.state_dict().items():
        assert name.startswith(head) or torch.equal(tensor, tensors[name]), name


def test_a_file_fills_the_body_and_leaves_the_head_new(resnet_file: Path) -> None:
    backbone = load(resnet_file, classes=5)
    tensors = load_file(resnet_file)
    assert_body_equals(backbone.model, tensors)
    assert not torch.equal(backbone.model.fc.weight, tensors["fc.weight"])
    report = backbone.report
    assert (report.loaded, report.missing, report.unexpected) == (len(tensors) - 2, ("fc.weight", "fc.bias"), ())
    assert report.left_out == ("fc.bias", "fc.weight")
    assert report.sha256 == file_sha256(resnet_file)


@pytest.mark.parametrize("prefix", ["model.", "module.", "backbone.", "_orig_mod.", "student.backbone."])
@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
def test_prefixes_and_nesting_are_taken_off(tmp_path: Path, resnet_file: Path, prefix: str, nest: str | None) -> None:
    tensors = load_file(resnet_file)
    content: Any = {prefix + name: tensor for name, tensor in tensors.items()}
    content["criterion.weight"] = torch.ones(3)
    torch.save({nest: content, "epoch": 1} if nest else content, tmp_path / "wrapped.pth")
    backbone = load(tmp_path / "wrapped.pth")
    assert_body_equals(backbone.model, tensors)
    assert backbone.report.loaded == len(tensors) - 2


def test_missing_and_unexpected_tensors_are_reported(tmp_path: Path, resnet_file: Path) -> None:
    tensors = load_file(resnet_file)
    del tensors["layer1.0.conv1.weight"]
    save_file({**tensors, "neck.weight": torch.ones(1)}, tmp_path / "part.safetensors")
    report = load(tmp_path / "part.safetensors").report
    assert report.missing == ("layer1.0.conv1.weight", "fc.weight", "fc.bias")
    assert report.unexpected == ("neck.weight",)
    sentence = report.sentence()
    assert "\n" not in sentence
    assert f"{len(tensors) - 2} tensors loaded from {tmp_path / 'part.safetensors'}" in sentence
    assert "3 missing (layer1.0.conv1.weight, fc.weight, fc.bias)" in sentence
    assert "1 unexpected (neck.weight)" in sentence


def test_a_file_that_matches_nothing_is_refused_with_keys_of_both(resnet_file: Path) -> None:
    with pytest.raises(ConfigError, match="No tensor of") as caught:
        load(resnet_file, name="test_vit")
    problem = caught.value.problem
    assert str(resnet_file) in problem
    assert "it holds bn1.bias, bn1.running_mean, bn1.running_var, ..." in problem
    assert "the model wants blocks.0.attn.proj.bias" in problem


def test_a_body_of_another_width_is_refused_with_the_shapes(tmp_path: Path, resnet_file: Path) -> None:
    tensors = load_file(resnet_file)
    tensors["layer4.0.conv2.weight"] = torch.zeros(2, 2, 3, 3)
    save_file(tensors, tmp_path / "wide.safetensors")
    with pytest.raises(ConfigError, match=r"1 tensors of .* layer4.0.conv2.weight \(2, 2, 3, 3\) instead of"):
        load(tmp_path / "wide.safetensors")


def test_a_head_alone_is_not_taken_for_a_match(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(3, 96), "fc.bias": torch.zeros(3)}, tmp_path / "head.safetensors")
    with pytest.raises(ConfigError, match="No tensor"):
        load(tmp_path / "head.safetensors")


def test_original_names_pass_through_timms_filter(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=5)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    # the filter of timm's vision transformers resamples the position table of another input size
    state["model.pos_embed"] = torch.rand(1, 65, 64)
    torch.save(state, tmp_path / "vit.pth")
    backbone = load(tmp_path / "vit.pth", name="test_vit")
    assert backbone.report.missing == ("head.weight", "head.bias")
    assert backbone.model.pos_embed.shape == (1, 101, 64)


def test_other_input_channels_adapt_the_first_convolution(resnet_file: Path) -> None:
    backbone = load(resnet_file, kwargs={"in_chans": 1})
    assert torch.allclose(backbone.model.conv1[0].weight, load_file(resnet_file)["conv1.0.weight"].sum(1, keepdim=True))
    assert backbone.preprocessing.size[0] == len(backbone.preprocessing.mean) == len(backbone.preprocessing.std) == 1


def test_a_report_without_weights_says_that_all_is_new() -> None:
    assert LoadReport("none", 0, ("a", "b"), (), None).sentence() == "weights: none loaded, all 2 tensors are new"
