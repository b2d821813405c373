from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from frostline.backbones import create_backbone, load_timm_folder, save_timm_folder
from frostline.errors import ConfigError, StorageError
from frostline.specs import BackboneSpec

TEST_MODELS = ["test_vit", "test_resnet", "test_efficientnet", "test_convnext", "test_byobnet", "test_nfnet"]


def create(name: str, weights: str = "", *, classes: int = 3, size: int | None = None, **kwargs: Any) -> Any:
    """A backbone with its own weights where they lie in a folder, and fresh ones otherwise."""
    chosen = weights or ("pretrained" if name.startswith("local-dir:") else "none")
    return create_backbone(BackboneSpec(name=name, weights=chosen, kwargs=kwargs), num_classes=classes, size=size)


@pytest.mark.parametrize(("name", "size"), [("test_vit", None), *((name, 64) for name in TEST_MODELS)])
def test_a_model_takes_pictures_of_its_preprocessing_and_gives_logits(name: str, size: int | None) -> None:
    backbone = create(name, size=size)
    side = size or 160
    assert backbone.preprocessing.size == (3, side, side)
    assert backbone.model(torch.zeros(2, *backbone.preprocessing.size)).shape == (2, 3)
    assert sum(len(group.parameters) for group in backbone.groups) == len(list(backbone.model.parameters()))
    assert backbone.report.loaded == 0
    assert set(backbone.report.missing) == set(backbone.model.state_dict())
    assert not any(tensor.is_meta for tensor in backbone.model.state_dict().values())


def test_size_reaches_a_constructor_as_img_size_only_where_it_takes_one() -> None:
    assert create("test_vit", size=64).model.patch_embed.img_size == (64, 64)
    assert "img_size" not in create("test_resnet", size=64).model._model_args


def test_img_size_among_the_kwargs_sets_the_preprocessing_too() -> None:
    assert create("test_vit", img_size=96).preprocessing.size == (3, 96, 96)
    assert create("test_vit", img_size=[64, 96]).preprocessing.size == (3, 64, 96)


def test_img_size_and_size_must_agree() -> None:
    assert create("test_vit", size=64, img_size=64).preprocessing.size == (3, 64, 64)
    with pytest.raises(ConfigError, match=r"img_size=96 and data.size=64 disagree"):
        create("test_vit", size=64, img_size=96)


def test_preprocessing_is_that_of_the_pretrained_config() -> None:
    told = timm.data.resolve_model_data_config(timm.create_model("test_vit"))
    found = create("test_vit").preprocessing
    assert (found.mean, found.std, found.crop_pct) == (told["mean"], told["std"], told["crop_pct"])
    assert (found.interpolation, found.crop_mode, found.size) == (
        told["interpolation"],
        told["crop_mode"],
        told["input_size"],
    )


def test_kwargs_reach_the_constructor() -> None:
    model = create("test_vit", drop_path_rate=0.25).model
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.25)


@pytest.mark.parametrize("name", TEST_MODELS)
def test_an_unknown_argument_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} takes no argument 'drop_paths_rate'") as caught:
        create(name, drop_paths_rate=0.1, size=64)
    assert caught.value.mend is not None
    assert "'drop_path_rate'" in caught.value.mend


def test_img_size_for_a_model_that_takes_none_is_named() -> None:
    with pytest.raises(ConfigError, match="test_resnet takes no argument 'img_size'") as caught:
        create("test_resnet", img_size=64)
    assert caught.value.mend == "Set data.size alone."


@pytest.mark.parametrize("name", ["num_classes", "pretrained", "checkpoint_path", "pretrained_cfg", "features_only"])
def test_what_the_run_decides_elsewhere_is_no_argument(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"backbone.kwargs.{name} cannot be set"):
        create("test_resnet", **{name: 1})


def test_a_value_that_the_constructor_refuses_is_shown() -> None:
    with pytest.raises(ConfigError, match="test_vit cannot be built with num_heads=7"):
        create("test_vit", num_heads=7)


def test_unsafe_loading_is_refused_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "true")
    with pytest.raises(ConfigError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        create("test_resnet")


class TestTimmFolders:
    def test_arguments_and_normalization_of_the_folder_are_honored(self, make_folder: Any) -> None:
        folder = make_folder("test_efficientnet", pad_type="same", bn_eps=0.01)
        rewrite_normalization(folder)
        for name, weights in ((f"local-dir:{folder}", "pretrained"), ("test_efficientnet", str(folder))):
            backbone = create(name, weights)
            assert type(backbone.model.conv_stem).__name__ == "Conv2dSame"
            assert backbone.model.bn1.eps == 0.01
            assert (backbone.preprocessing.mean, backbone.preprocessing.std) == ((0.5,) * 3, (0.25,) * 3)
            assert backbone.report.missing == ("classifier.weight", "classifier.bias")
            assert backbone.report.source == (name if weights == "pretrained" else weights)

    def test_features_equal_those_of_plain_timm(self, make_folder: Any) -> None:
        folder = make_folder("test_efficientnet", pad_type="same", bn_eps=0.01)
        ours = create(f"local-dir:{folder}").model.eval()
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        pictures = torch.rand(2, 3, 64, 64)
        assert torch.equal(ours.forward_features(pictures), plain.forward_features(pictures))

    def test_the_users_arguments_win_over_the_saved_ones(self, make_folder: Any) -> None:
        folder = make_folder("test_efficientnet", bn_eps=0.01)
        assert create(f"local-dir:{folder}", bn_eps=0.5).model.bn1.eps == 0.5

    def test_position_tables_are_resampled_to_another_size(self, make_folder: Any) -> None:
        folder = make_folder("test_vit", img_size=64)
        assert create(f"local-dir:{folder}").preprocessing.size == (3, 64, 64)
        larger = create(f"local-dir:{folder}", size=96)
        assert larger.model.pos_embed.shape == (1, 37, 64)
        assert larger.preprocessing.size == (3, 96, 96)
        assert larger.report.missing == ("head.weight", "head.bias")
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=96, num_classes=3)
        assert torch.equal(larger.model.pos_embed, plain.pos_embed)

    def test_a_folder_without_a_head_gets_one(self, make_folder: Any) -> None:
        backbone = create(f"local-dir:{make_folder(classes=0)}")
        assert backbone.model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
        assert backbone.report.left_out == ()

    def test_weights_none_takes_the_architecture_alone(self, make_folder: Any) -> None:
        folder = make_folder("test_efficientnet", bn_eps=0.01)
        (folder / "model.safetensors").unlink()
        backbone = create(f"local-dir:{folder}", "none")
        assert (backbone.model.bn1.eps, backbone.report.loaded) == (0.01, 0)

    def test_weights_of_another_architecture_do_not_change_the_preprocessing(self, make_folder: Any) -> None:
        folder = make_folder("test_efficientnet_gn")
        rewrite_normalization(folder)
        backbone = create("test_efficientnet_ln", str(folder))
        assert backbone.report.loaded > 40
        assert backbone.preprocessing.mean == create("test_efficientnet_ln").preprocessing.mean != (0.5,) * 3

    def test_plain_pickled_weights_are_read_where_there_are_no_others(self, make_folder: Any) -> None:
        folder = make_folder()
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        assert create(f"local-dir:{folder}").report.missing == ("fc.weight", "fc.bias")


class TestRuns:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        backbone = create("test_resnet", size=64)
        save_timm_folder(
            backbone.model, tmp_path / "run" / "model", labels=list("abc"), preprocessing=backbone.preprocessing
        )
        return tmp_path / "run"

    def test_a_run_with_as_many_classes_gives_its_head_too(self, run: Path) -> None:
        backbone = create("test_resnet", str(run))
        assert backbone.report.missing == backbone.report.left_out == ()
        assert torch.equal(backbone.model.fc.weight, load_timm_folder(run).model.fc.weight)
        assert backbone.preprocessing.size == (3, 64, 64)

    def test_a_head_of_another_shape_is_left_out_and_named(self, run: Path) -> None:
        report = create("test_resnet", str(run), classes=4).report
        assert report.left_out == ("fc.bias", "fc.weight")
        assert "its own classifier left out (fc.bias, fc.weight)" in report.sentence()

    def test_its_model_folder_is_a_timm_folder_whose_head_is_not_taken(self, run: Path) -> None:
        assert create("test_resnet", str(run / "model")).report.missing == ("fc.weight", "fc.bias")

    def test_a_run_without_a_model_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "half").mkdir()
        with pytest.raises(StorageError, match="half"):
            create("test_resnet", str(tmp_path / "half"))


def rewrite_normalization(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["pretrained_cfg"].update(mean=[0.5] * 3, std=[0.25] * 3)
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext"])
def test_a_new_head_on_loaded_weights_starts_at_chance(name: str, tmp_path: Path) -> None:
    saved = create_backbone(BackboneSpec(name, weights="none"), num_classes=10)
    file = tmp_path / "weights.pth"
    torch.save(saved.model.state_dict(), file)
    fresh = create_backbone(BackboneSpec(name, weights=str(file)), num_classes=6)
    images = torch.randn(4, *fresh.preprocessing.size)
    assert torch.equal(fresh.model.eval()(images), torch.zeros(4, 6))
    # where nothing was loaded, the model's own initialization stays
    own = create_backbone(BackboneSpec(name, weights="none"), num_classes=6)
    assert bool(own.model.get_classifier().weight.any())
