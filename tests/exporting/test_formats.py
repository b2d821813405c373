"""Each format gives the model's own logits, for any number of pictures; what does not is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from frostline.errors import ConfigError
from frostline.exporting import (
    FORMATS,
    ExportError,
    Facts,
    PictureClassifier,
    Run,
    compare,
    eager,
    onnx_session,
    quantize,
    require_agreement,
    require_package,
    require_parity,
)
from frostline.types import Preprocessing

LABELS = ("a", "é", "c|d")


def classifier(name: str, *, temperature: float = 1.7) -> tuple[PictureClassifier, Facts]:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    with torch.no_grad():
        # at its start a network says the same of every picture
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    side = model.pretrained_cfg["input_size"][1]
    made = Preprocessing((3, side, side), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return PictureClassifier(model, made, temperature), Facts(LABELS, made, name, temperature)


def pictures(facts: Facts, *counts: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = facts.preprocessing.size
    return [torch.randint(0, 256, (count, *size), generator=generator, dtype=torch.uint8) for count in counts]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("test_resnet", "onnx"),
        ("test_resnet", "openvino"),
        ("test_vit", "torch_export"),
        pytest.param("test_vit", "onnx", marks=pytest.mark.slow),
        pytest.param("test_convnext", "onnx", marks=pytest.mark.slow),
    ],
)
def test_a_format_is_the_model(name: str, kind: str, tmp_path: Path) -> None:
    for package in FORMATS[kind].packages:
        pytest.importorskip(package)
    model, facts = classifier(name)
    FORMATS[kind]().write(model, facts, tmp_path)
    run = FORMATS[kind]().load(tmp_path)
    shown = pictures(facts, 1, 5, 2)
    parity = compare(eager(model), run, shown)
    assert parity.pictures == 8
    assert parity.holds
    require_parity(parity, kind)
    with torch.inference_mode():
        logits = model.model((shown[1] / 255 - model.mean) / model.std)
    torch.testing.assert_close(run(shown[1])[1], (logits / 1.7).softmax(dim=1), rtol=0, atol=1e-5)


def test_an_onnx_file_says_what_it_is(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model, facts = classifier("test_resnet")
    FORMATS["onnx"]().write(model, facts, tmp_path)
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(said["labels"]) == list(LABELS)
    assert json.loads(said["preprocessing"])["mean"] == [0.485, 0.456, 0.406]
    assert float(said["temperature"]) == 1.7
    assert "uint8" in said["input"]


def test_a_gray_model_is_normalised_by_the_mean_of_the_colors() -> None:
    made = Preprocessing((1, 8, 8), (0.1, 0.2, 0.3), (0.5, 0.5, 0.8))
    seen: list[Tensor] = []

    class Looks(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.mean(dim=(2, 3))

    PictureClassifier(Looks(), made)(torch.full((1, 1, 8, 8), 51, dtype=torch.uint8))
    torch.testing.assert_close(seen[0], torch.full((1, 1, 8, 8), (0.2 - 0.2) / 0.6))


def test_another_model_is_refused() -> None:
    model, facts = classifier("test_resnet")
    shown = pictures(facts, 4)

    def off(by: float) -> Run:
        def run(batch: Tensor) -> tuple[Tensor, Tensor]:
            logits, probabilities = eager(model)(batch)
            return logits + torch.tensor([0.0, by, 0.0]), probabilities

        return run

    require_parity(compare(eager(model), off(1e-6), shown), "onnx")
    with pytest.raises(ExportError, match=r"format=onnx was refused: on 4 pictures"):
        require_parity(compare(eager(model), off(0.01), shown), "onnx")
    with pytest.raises(ExportError, match=r"up to inf"):
        require_parity(compare(eager(model), off(float("nan")), shown), "onnx")
    with pytest.raises(ExportError, match="another label"):
        require_agreement(compare(eager(model), lambda batch: (-eager(model)(batch)[0],) * 2, shown), 0.95, "onnx")


def test_eight_bits_are_smaller_and_nearly_the_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, facts = classifier("test_resnet")
    FORMATS["onnx"]().write(model, facts, tmp_path)
    whole, small = tmp_path / "model.onnx", tmp_path / "small.onnx"
    quantize(whole, small, pictures(facts, 8, 8))
    assert small.stat().st_size < 0.6 * whole.stat().st_size
    parity = compare(eager(model), onnx_session(small), pictures(facts, 1, 15))
    assert 0 < parity.difference < 0.2 * parity.scale
    assert not list(tmp_path.glob("*.prepared.onnx"))


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"format=onnx needs the package onnxscript(.|\n)*frostline\[export\]"):
        FORMATS["onnx"]().require()
    require_package("torch", "nothing")
