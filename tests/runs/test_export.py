"""``frostline export``: the formats of a run, its card, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import DictConfig
from PIL import Image

import frostline
from frostline.data import evaluation_transform
from frostline.errors import ConfigError, StorageError
from frostline.evaluation import Temperature
from frostline.exporting import Facts
from frostline.runs.cards import write_card
from frostline.runs.export import _batches, export
from frostline.runs.folder import RunFolder
from frostline.runs.identity import recorded_splits
from frostline.runs.ledger import look
from frostline.runs.scoring import write_temperature
from frostline.types import Preprocessing


def asked(run: frostline.Run, *overrides: str) -> DictConfig:
    return frostline.compose([f"run={run.path}", *overrides], command="export")


@pytest.fixture(scope="module")
def run(finished: frostline.Run, tmp_path_factory: pytest.TempPathFactory) -> frostline.Run:
    """A copy of its own, in which an export may write."""
    return frostline.load(shutil.copytree(finished.path, tmp_path_factory.mktemp("export") / "run"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_what_goes_into_the_graph_is_what_the_model_was_scored_on(channels: int, mode: str) -> None:
    made = Preprocessing((channels, 24, 24), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic", 0.9, mode)
    pictures = [Image.effect_noise((50, 40), 60).convert("RGB"), Image.effect_noise((31, 70), 60).convert("RGB")]
    values = torch.cat(_batches(pictures, made))
    graph = frostline_graph(made)
    wanted = torch.stack([evaluation_transform(made)(picture) for picture in pictures])
    torch.testing.assert_close(graph(values), wanted, rtol=0, atol=1e-6)


def frostline_graph(made: Preprocessing) -> torch.nn.Module:
    from frostline.exporting import PictureClassifier

    class Images(torch.nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            seen: list[torch.Tensor] = []
            model = torch.nn.Flatten()
            model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            PictureClassifier(model, made)(pictures)
            return seen[0]

    return Images()


@pytest.mark.slow
def test_formats_of_a_run_with_a_card(run: frostline.Run, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    export(asked(run, "format=[timm,onnx]"))
    shown = capsys.readouterr().out
    assert "15 of 15" in shown
    labels = json.loads((run.path / "export" / "onnx" / "labels.json").read_text())
    assert tuple(labels) == run.labels
    copied = timm.create_model(f"local-dir:{run.path / 'export' / 'timm'}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(copied(images), run.model(images), rtol=0, atol=0)
    card = (run.path / "model" / "README.md").read_text()
    assert (run.path / "export" / "timm" / "README.md").read_text() == card
    assert f"| test | accuracy | {run.metrics['test/accuracy']:.4f} |" in card
    assert str(run.path.parent) not in card
    assert "30 train, 15 val, 21 test" in card
    assert "| onnx |" in (run.path / "export" / "export.md").read_text().replace("  ", " ")
    # again, over the earlier one
    export(asked(run, "format=timm"))


def test_a_card_has_the_test_scores_of_a_later_evaluation(run: frostline.Run, tmp_path: Path) -> None:
    """As of the best run of a sweep, which leaves the test split alone."""
    folder = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    scores = {name: value for name, value in folder.read_metrics().items() if not name.startswith("test/")}
    facts = Facts(run.labels, Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3), "resnet18")
    text = write_card(folder, facts, scores).read_text(encoding="utf-8")
    interval = json.loads(folder.evaluation("test").read_text(encoding="utf-8"))["scores"]["accuracy"]
    shown = f"| {interval['value']:.4f} | {interval['low']:.4f} to {interval['high']:.4f} |"
    assert f"| test | accuracy {shown}" in text
    assert "No separate test split" not in text
    assert "has been scored" not in text
    # by then other runs have seen the same pictures
    split = recorded_splits(folder)["test"]
    for number in range(3):
        (tmp_path / f"{number}" / "model").mkdir(parents=True)
        look(RunFolder(tmp_path / f"{number}"), split, pictures=21, command="train", output=str(tmp_path))
    assert "The test split has been scored 3 times" in write_card(folder, facts, scores).read_text(encoding="utf-8")
    folder.evaluation("test").unlink()
    assert "No separate test split" in write_card(folder, facts, scores).read_text(encoding="utf-8")


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_temperature_is_optional(run: frostline.Run, tmp_path: Path, calibrated: bool) -> None:
    folder = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    write_temperature(folder, Temperature(2.0, 15))
    export(asked(frostline.load(folder.path), "format=torch_export", f"calibrated={str(calibrated).lower()}"))
    made = torch.export.load(folder.path / "export" / "torch_export" / "model.pt2").module()
    logits, probabilities = made(torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8))
    torch.testing.assert_close(probabilities, (logits / (2.0 if calibrated else 1.0)).softmax(dim=1))
    facts = json.loads((folder.path / "export" / "torch_export" / "facts.json").read_text())
    assert float(facts["temperature"]) == (2.0 if calibrated else 1.0)
    assert "divide the logits by 2 " in (folder.model / "README.md").read_text()


def test_another_folder_is_not_overwritten(run: frostline.Run, tmp_path: Path) -> None:
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="is no export"):
        export(asked(run, "format=timm", f"output={tmp_path}"))
    assert (tmp_path / "timm" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["format=onxx"], "format=onxx is none(.|\n)*onnx"),
        (["format=timm", "int8=true"], "int8=true is for onnx and openvino"),
        (["format=timm", "pictures=0"], "pictures=0: parity takes a picture"),
        (["format=[]"], "format=(.|\n)*names none"),
        (["format=timm", "split=tset"], "split=tset: this data set has none"),
    ],
)
def test_what_cannot_be_is_refused(run: frostline.Run, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export(asked(run, *overrides))


def test_pictures_that_are_gone_can_be_others(run: frostline.Run, pictures: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run.path, moved)
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace(str(pictures), str(tmp_path / "gone")))
    other = frostline.load(moved)
    with pytest.raises(Exception, match=r"images=FOLDER"):
        export(asked(other, "format=timm"))
    export(asked(other, "format=timm", f'images="{pictures / "test"}"'))
