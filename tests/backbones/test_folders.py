from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from frostline.backbones import create_backbone, load_timm_folder, save_timm_folder
from frostline.errors import ConfigError, StorageError
from frostline.specs import BackboneSpec

from .conftest import jitter

LABELS = ["cat", "dog", "snow fox"]
MODELS: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "resnet": ("test_resnet", 64, {"drop_path_rate": 0.1}),
    "vit": ("test_vit", 64, {}),
    "args": ("test_efficientnet", 64, {"pad_type": "same", "bn_eps": 0.01, "global_pool": "max"}),
}

# Run by a Python that sees no PYTHONPATH and no user site, and in which `import frostline` fails.
PLAIN = """
import json, sys
sys.modules["frostline"] = None
import timm, torch
torch.set_num_threads(1)
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
with torch.no_grad():
    logits = model(torch.load(sys.argv[2], weights_only=True))
torch.save(logits, sys.argv[3])
config = timm.data.resolve_model_data_config(model)
print(json.dumps({**config, "labels": model.pretrained_cfg["label_names"]}))
"""


def backbone_of(kind: str) -> Any:
    name, size, kwargs = MODELS[kind]
    backbone = create_backbone(BackboneSpec(name=name, weights="none", kwargs=kwargs), num_classes=3, size=size)
    jitter(backbone.model)
    backbone.model.eval()
    return backbone


def plain_python(*arguments: str) -> str:
    """Run ``PLAIN`` without whatever puts this checkout on the path: an editable install does that by a .pth file."""
    sites = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    program = f"import sys; sys.path += {sites!r}\n" + PLAIN
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(arguments[1]).parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_plain_timm_gives_equal_logits_in_a_fresh_process(tmp_path: Path, kind: str) -> None:
    backbone = backbone_of(kind)
    preprocessing = replace(backbone.preprocessing, mean=(0.1, 0.2, 0.3), crop_pct=0.9, interpolation="bilinear")
    pictures = torch.rand(2, *preprocessing.size)
    torch.save(pictures, tmp_path / "pictures.pt")
    save_timm_folder(backbone.model, tmp_path / "model", labels=LABELS, preprocessing=preprocessing)
    told = json.loads(plain_python(*(str(tmp_path / name) for name in ("model", "pictures.pt", "logits.pt"))))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        expected = backbone.model(pictures)
    torch.set_num_threads(threads)
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), expected)
    assert told == {
        "input_size": list(preprocessing.size),
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": preprocessing.crop_mode,
        "labels": LABELS,
    }


@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_folder_loads_with_its_head_preprocessing_and_labels(tmp_path: Path, kind: str) -> None:
    backbone = backbone_of(kind)
    save_timm_folder(backbone.model, tmp_path / "model", labels=LABELS, preprocessing=backbone.preprocessing)
    loaded = load_timm_folder(tmp_path / "model")
    pictures = torch.rand(2, *backbone.preprocessing.size)
    assert torch.equal(loaded.model(pictures), backbone.model(pictures))
    assert not loaded.model.training
    assert loaded.preprocessing == backbone.preprocessing
    assert loaded.labels == tuple(LABELS)
    assert load_timm_folder(tmp_path).labels == tuple(LABELS)


def test_a_model_of_any_input_size_keeps_the_size_of_its_preprocessing(tmp_path: Path) -> None:
    backbone = backbone_of("vit")
    larger = replace(backbone.preprocessing, size=(3, 96, 96))
    save_timm_folder(backbone.model, tmp_path / "model", labels=LABELS, preprocessing=larger)
    assert load_timm_folder(tmp_path / "model").preprocessing.size == (3, 96, 96)


def test_only_the_two_files_are_written_and_an_older_folder_is_replaced(tmp_path: Path) -> None:
    backbone = backbone_of("resnet")
    for labels in (LABELS, ["a", "b", "c"]):
        save_timm_folder(backbone.model, tmp_path / "model", labels=labels, preprocessing=backbone.preprocessing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert load_timm_folder(tmp_path / "model").labels == ("a", "b", "c")


def test_a_save_that_fails_leaves_the_older_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = backbone_of("resnet")
    save_timm_folder(backbone.model, tmp_path / "model", labels=LABELS, preprocessing=backbone.preprocessing)

    def full(model: Any, folder: str, **_: Any) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("timm.models.save_for_hf", full)
    with pytest.raises(StorageError, match="No space left"):
        save_timm_folder(backbone.model, tmp_path / "model", labels=LABELS, preprocessing=backbone.preprocessing)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert load_timm_folder(tmp_path / "model").labels == tuple(LABELS)


def test_a_channels_last_model_is_saved(tmp_path: Path) -> None:
    backbone = backbone_of("resnet")
    model = backbone.model.to(memory_format=torch.channels_last)
    save_timm_folder(model, tmp_path / "model", labels=LABELS, preprocessing=backbone.preprocessing)
    loaded = load_timm_folder(tmp_path / "model").model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    assert not model.conv1[0].weight.is_contiguous()


def test_a_fine_tuned_folder_does_not_carry_the_labels_of_its_source(tmp_path: Path) -> None:
    backbone = backbone_of("resnet")
    save_timm_folder(backbone.model, tmp_path / "one", labels=LABELS, preprocessing=backbone.preprocessing)
    spec = BackboneSpec(name=f"local-dir:{tmp_path / 'one'}")
    again = create_backbone(spec, num_classes=3)
    save_timm_folder(again.model, tmp_path / "two", labels=["x", "y", "z"], preprocessing=again.preprocessing)
    assert "cat" not in (tmp_path / "two" / "config.json").read_text()


def test_a_folder_with_something_else_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    backbone = backbone_of("resnet")
    with pytest.raises(StorageError, match="is no timm folder"):
        save_timm_folder(backbone.model, tmp_path, labels=LABELS, preprocessing=backbone.preprocessing)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_labels_and_size_must_be_those_of_the_model(tmp_path: Path) -> None:
    backbone = backbone_of("vit")
    with pytest.raises(ConfigError, match="2 labels were given for a model with 3 classes"):
        save_timm_folder(backbone.model, tmp_path / "m", labels=LABELS[:2], preprocessing=backbone.preprocessing)
    fixed = create_backbone(BackboneSpec(name="test_vit_relpos", weights="none"), num_classes=3, size=64)
    other = replace(fixed.preprocessing, size=(3, 96, 96))
    with pytest.raises(ConfigError, match=r"\(96, 96\)"):
        save_timm_folder(fixed.model, tmp_path / "m", labels=LABELS, preprocessing=other)
    assert not (tmp_path / "m").exists()


def test_an_encoder_without_classes_is_saved_and_loaded(tmp_path: Path) -> None:
    encoder = create_backbone(BackboneSpec(name="test_vit", weights="none"), num_classes=0, size=32)
    save_timm_folder(encoder.model, tmp_path / "m", labels=(), preprocessing=encoder.preprocessing)
    loaded = load_timm_folder(tmp_path / "m")
    assert loaded.labels == ()
    assert loaded.model(torch.zeros(1, 3, 32, 32)).shape == (1, 64)
    assert create_backbone(BackboneSpec(name=f"local-dir:{tmp_path / 'm'}"), num_classes=4).preprocessing.size[1] == 32


def test_weights_that_are_not_those_of_the_config_are_refused(make_folder: Any) -> None:
    folder = make_folder(classes=5)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "num_classes": 4}))
    with pytest.raises(StorageError, match=r"not those that its config.json describes: fc.weight"):
        load_timm_folder(folder)
