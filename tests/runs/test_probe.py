"""`frostline probe`, from the command to a run folder that `evaluate` and `predict` take."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from passing import pass_limits
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import frostline
from frostline.backbones import load_timm_folder
from frostline.config import absolute_paths, compose
from frostline.data import ImageData
from frostline.errors import ConfigError, DataError
from frostline.probing.choices import Extractor
from frostline.runs import probe as probing
from frostline.runs.evaluate import evaluate
from frostline.runs.folder import RunFolder
from frostline.runs.predict import predict
from frostline.specs import FeatureChoice

VIT = [
    "backbone=timm",
    "backbone.name=vit_tiny_patch16_224",
    "backbone.weights=none",
    "backbone.kwargs={patch_size: 8, depth: 4, embed_dim: 24, num_heads: 2}",
    "data.size=32",
]
DIGITS = ["data.labels_per_class=12", "data.batch_size=32", "device=cpu"]
ALONE = ["probe.references=[]"]


def run(output: Path, *overrides: str) -> RunFolder:
    config = compose("probe", [*DIGITS, f'output="{output}"', *overrides])
    absolute_paths(config)
    probing.probe(config)
    return RunFolder(Path(config.folder))


def rows(folder: RunFolder) -> list[dict[str, str]]:
    with (folder.path / "heads.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probes")


@pytest.fixture(scope="module")
def finished(output: Path) -> RunFolder:
    """Six heads on the default backbone, without references."""
    grid = ["probe.lr=[1e-3,1e-2,0.1]", "probe.seeds=[0,1]", "probe.weight_decay=[0.01]", "probe.epochs=8"]
    return run(output, *grid, *ALONE)


def test_the_folder_has_the_grid_and_what_was_selected(finished: RunFolder) -> None:
    found = rows(finished)
    assert len(found) == 6
    assert {row["kind"] for row in found} == {"head"}
    best = min(found, key=lambda row: (-float(row["val/accuracy"]), float(row["val/loss"])))
    assert [row for row in found if row["selected"] == "1"] == [best]
    metrics = finished.read_metrics()
    assert metrics["val/accuracy"] == pytest.approx(float(best["val/accuracy"]))
    assert metrics["val/loss"] == pytest.approx(float(best["val/loss"]), rel=1e-5)
    assert metrics["candidates"] == 6
    assert metrics["test/count"] == 269
    record = json.loads((finished.path / "best.json").read_text())
    assert (record["lr"], record["seed"]) == (float(best["lr"]), int(best["seed"]))
    provenance = json.loads(finished.provenance.read_text())
    assert provenance["command"] == "probe"
    with Image.open(finished.path / "probe.png") as picture:
        assert picture.width > 500


@pytest.mark.slow
def test_evaluate_and_predict_take_the_selected_head(finished: RunFolder, tmp_path: Path) -> None:
    metrics = finished.read_metrics()
    before = pyarrow.parquet.read_table(finished.predictions("test"))
    for split in ("val", "test"):
        scores = evaluate(compose("evaluate", [f'run="{finished.path}"', f"split={split}", "trainer=cpu"]))
        for name in ("accuracy", "loss", "auroc", "macro_f1"):
            assert scores[f"{split}/{name}"] == pytest.approx(metrics[f"{split}/{name}"], rel=1e-4), name
    after = pyarrow.parquet.read_table(finished.predictions("test"))
    assert before["image"].equals(after["image"])
    assert before["prediction"].equals(after["prediction"])
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 40), (10, 200, 10)).save(picture)
    predict(compose("predict", [f'run="{finished.path}"', f'images="{picture}"', f'output="{tmp_path}/p.csv"']))
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 2
    head, model = load_file(finished.path / "head.safetensors"), load_timm_folder(finished.model).model
    classifier = model.get_submodule("classifier")
    assert torch.equal(classifier.weight, head["weight"])
    assert torch.equal(classifier.bias, head["bias"])


def test_fine_tuning_goes_on_from_it(finished: RunFolder, output: Path) -> None:
    overrides = [
        f'backbone.weights="{finished.path}"',
        "trainer=cpu",
        "trainer.max_epochs=1",
        "optimizer.lr=0",
        *DIGITS[:2],
    ]
    later = frostline.train([*overrides, f'output="{output}"', "logger=csv", "augment=none", "freeze=linear_probe"])
    assert later.metrics["val/accuracy"] == pytest.approx(finished.read_metrics()["val/accuracy"])


def test_a_head_that_starts_at_zero_is_that_of_a_linear_probe_under_train(output: Path) -> None:
    common = ["monitor.metric=val/loss", "monitor.mode=min", *DIGITS[:2], f'output="{output}"', "seed=3"]
    grid = ["probe.lr=[0.1,0.01]", "probe.weight_decay=[0.1,0]", "probe.seeds=[3]", "probe.start=zero"]
    probe = run(output, *common, *grid, *ALONE, "probe.epochs=4", "probe.patience=null", "probe.clip=0.5")
    best = json.loads((probe.path / "best.json").read_text())
    assert best["lr"] == 0.1
    trained = frostline.train(
        [
            *common,
            "freeze=linear_probe",
            "augment=none",
            "optimizer.lr=0.1",
            f"optimizer.weight_decay={best['weight_decay']}",
            "trainer=cpu",
            "trainer.max_epochs=4",
            "trainer.gradient_clip_val=0.5",
            "callbacks=no_early_stopping",
            "logger=csv",
        ]
    )
    one, other = (
        load_timm_folder(path / "model").model.get_submodule("classifier") for path in (probe.path, trained.path)
    )
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.bias, other.bias, rtol=1e-4, atol=1e-5)
    assert probe.read_metrics()["test/loss"] == pytest.approx(trained.metrics["test/loss"], rel=1e-4)


@pytest.mark.slow
def test_each_head_of_each_choice_equals_its_own_run(output: Path) -> None:
    common = ["probe.epochs=10", "probe.patience=1", "probe.clip=0.5", "probe.standardize=true", *ALONE, *VIT]
    features = "probe.features=[last,last4,pooled,class_token]"
    together = rows(
        run(output, *common, features, "probe.lr=[0.003,0.1]", "probe.seeds=[0,1]", "probe.weight_decay=[0.1]")
    )
    assert len(together) == 16
    assert len({row["epochs"] for row in together}) > 2
    picked = together[1::4]
    assert {row["features"] for row in picked} == {choice.value for choice in FeatureChoice}
    for row in picked:
        own = [f"probe.features=[{row['features']}]", f"probe.lr=[{row['lr']}]", f"probe.seeds=[{row['seed']}]"]
        (alone,) = rows(run(output, *common, *own, "probe.weight_decay=[0.1]"))
        for name in ("val/accuracy", "best_epoch", "epochs"):
            assert alone[name] == row[name], name
        assert float(alone["val/loss"]) == pytest.approx(float(row["val/loss"]), rel=1e-5)


@pytest.mark.slow
def test_references_compete_and_what_is_no_layer_makes_no_model(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # a rate at which no head learns
    folder = run(output, "probe.lr=[1e-9]", "probe.epochs=1", "probe.references=[knn]", "probe.knn_k=[5,1,100000]")
    found = rows(folder)
    assert [(row["k"], row["votes"]) for row in found if row["kind"] == "knn"] == [
        ("5", "weighted"),
        ("5", "plain"),
        ("1", "weighted"),
        ("1", "plain"),
    ]
    assert next(row for row in found if row["selected"] == "1")["kind"] == "knn"
    assert not folder.model.exists()
    assert "no model: nearest neighbors" in capsys.readouterr().out
    assert folder.read_metrics()["test/accuracy"] > 0.5
    logistic = run(output, "probe.lr=[1e-9]", "probe.epochs=1", "probe.references=[logistic]", "probe.standardize=true")
    assert next(row for row in rows(logistic) if row["selected"] == "1")["C"]
    scores = evaluate(compose("evaluate", [f'run="{logistic.path}"', "trainer=cpu"]))
    assert scores["test/loss"] == pytest.approx(logistic.read_metrics()["test/loss"], rel=1e-3)


@pytest.mark.slow
def test_the_test_split_is_run_once_after_the_choice_for_what_was_chosen(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where no other test has left a feature
    events: list[str] = []
    read, choose, extract = ImageData.deliveries, probing.ranked, Extractor.plain

    def deliveries(self: ImageData, split: str, **named: Any) -> Any:
        events.append(split)
        return read(self, split, **named)

    def ranked(*arguments: Any, **named: Any) -> Any:
        events.append("choice")
        return choose(*arguments, **named)

    def extracted(self: Extractor, images: Tensor, choices: Sequence[FeatureChoice]) -> Any:
        events.append(f"{len(choices)} of {len(images)}")
        return extract(self, images, choices)

    monkeypatch.setattr(ImageData, "deliveries", deliveries)
    monkeypatch.setattr(probing, "ranked", ranked)
    monkeypatch.setattr(Extractor, "plain", extracted)
    short = ["probe.epochs=1", *ALONE, *VIT, "data.batch_size=300", "data.split_seed=5"]
    run(output, *short, "probe.features=[last,last4]")
    passes = [event for event in events if not event.endswith(" of 2")]
    assert passes == ["train", "2 of 120", "val", "2 of 269", "choice", "test", "1 of 269"]
    # all that is needed is there now, and the network does not run at all
    events.clear()
    run(output, *short, "probe.features=[last4,last]", "probe.lr=[0.5]", "probe.seeds=[7]", "test=false")
    assert events == ["choice"]


def test_fixed_views_are_taken_in_turn(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(output, "augment=light", "probe.views=2", "probe.epochs=2", "probe.lr=[0.01]", *ALONE)
    text = capsys.readouterr().out
    assert "train pictures, view 0" in text
    assert "train pictures, view 1" in text
    assert folder.read_metrics()["val/accuracy"] > 0.2


@pytest.mark.slow
def test_pictures_that_cannot_be_read_are_left_out_or_refused(
    pictures: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pictures, tmp_path / "set")
    next((tmp_path / "set" / "train").rglob("*.jpg")).write_bytes(b"nothing")
    own = ["data=folder", f'data.root="{tmp_path}/set"', "data.workers=0", "data.size=32", "data.batch_size=8"]
    with pytest.raises(DataError, match="jpg"):
        probing.probe(compose("probe", [*own, f'output="{output}"', "device=cpu", *ALONE]))
    # the features are in the store now, with a row that has no number
    config = compose("probe", [*own, f'output="{output}"', "device=cpu", "data.on_error=skip", "probe.epochs=2"])
    probing.probe(config)
    assert "1 training pictures cannot be read" in capsys.readouterr().out
    next((tmp_path / "set" / "val").rglob("*.jpg")).write_bytes(b"nothing")
    with pytest.raises(DataError, match="val"):
        probing.probe(compose("probe", [*own, f'output="{output}"', "device=cpu", "data.on_error=skip"]))


def test_a_picture_that_can_be_read_by_now_is_learned_on(
    pictures: Path,
    output: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pass_limits(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(pictures, tmp_path / "set")
    large = next((tmp_path / "set" / "train").rglob("*.jpg"))
    Image.open(large).resize((400, 300)).save(large)
    own = ["data=folder", f'data.root="{tmp_path}/set"', "data.workers=0", "data.size=32", "data.labels_per_class=null"]
    with pytest.raises(DataError, match="pixel_limit"):
        run(output, *own, *ALONE, "data.pixel_limit=100000")
    # its features are in the store, without a number
    run(output, *own, *ALONE, "probe.epochs=1")
    said = capsys.readouterr().out
    assert re.search(r"train pictures .*: computed", said)
    assert "cannot be read" not in said
    run(output, *own, *ALONE, "probe.epochs=1")
    assert re.search(r"train pictures .*: found", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["probe.features=[class_token]"], "has no class token.*offers last, last4, pooled"),
        (["augment=light"], "changes each training picture.*probe.views=4"),
        (["probe.views=3"], "all views are the same"),
        (["augment=light", "augment.mixup=0.2", "probe.views=2"], "mixup"),
        (["probe.lr=[]", "probe.epochs=0", "monitor.metric=val/auroc"], "3 faults"),
        (["probe.lr=[0.1,-1]"], "probe.lr"),
        (["monitor.mode=min"], "monitor.mode=max"),
        (["monitor.metric=val/loss", "monitor.mode=max"], "a larger loss is not better"),
        (["speed.compile=true"], "speed.compile"),
        (["lr.floor=2"], "lr.floor"),
        (["lr.warmup.fraction=null", "lr.warmup.epochs=99"], "lr.warmup.epochs"),
        (["probe.features=[first]"], "probe.features"),
        (["probe.patience=0"], "null to stop no head"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(overrides: list[str], said: str, output: Path) -> None:
    folders = set(output.glob("probe/*"))
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        run(output, *overrides)
    left = set(output.glob("probe/*")) - folders
    assert not any(RunFolder(folder).finished for folder in left)


def test_a_set_without_validation_is_refused(output: Path) -> None:
    with pytest.raises(DataError, match=r"data\.val_fraction"):
        run(output, "data.val_fraction=0")
