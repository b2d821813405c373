from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

import frostline
from frostline.checkpoints import checkpoints_in, read_checkpoint
from frostline.errors import ConfigError, DataError, NumericsError

Train = Callable[..., frostline.Run]


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = read_checkpoint(checkpoints_in(run / "checkpoints")[-1])["state_dict"]
    return weights


@pytest.fixture
def train(tiny: list[str], pictures: Path, tmp_path: Path) -> Train:
    def run(*overrides: str) -> frostline.Run:
        own = ["data=folder", f'data.root="{pictures}"', f"output={tmp_path}/out"]
        return frostline.train([*tiny, *own, *overrides])

    return run


@pytest.mark.slow
def test_a_run_leaves_a_whole_folder(finished: frostline.Run) -> None:
    names = {path.name for path in finished.path.iterdir()}
    assert {
        "config.yaml",
        "provenance.json",
        "checkpoints",
        "model",
        "metrics.csv",
        "metrics.json",
        "schedule.csv",
        "predictions",
        "tensorboard",
    } <= names
    kept = checkpoints_in(finished.path / "checkpoints")
    assert 2 <= len(kept) <= 3  # the two latest, and the best where it is none of them
    assert all(path.with_name(path.name + ".sha256").is_file() for path in kept)


def test_metrics_are_flat_and_count_every_picture_once(finished: frostline.Run) -> None:
    metrics = json.loads((finished.path / "metrics.json").read_text())
    assert metrics["test/count"] == 21
    assert metrics["val/count"] == 15
    for split in ("val", "test"):
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "loss"):
            assert metrics[f"{split}/{name}"] >= 0
        assert f"{split}/top5_accuracy" not in metrics
    assert metrics["seconds"] > 0
    assert metrics["images_per_second"] > 0
    assert metrics["test/accuracy"] > 0.6


def test_predictions_agree_with_the_metrics(finished: frostline.Run) -> None:
    table = pyarrow.parquet.read_table(finished.path / "predictions" / "test.parquet").to_pydict()
    assert len(table["image"]) == len(set(table["image"])) == 21
    right = [label == predicted for label, predicted in zip(table["label"], table["prediction"], strict=True)]
    assert sum(right) / 21 == pytest.approx(finished.metrics["test/accuracy"])
    assert set(table["label"]) == {"blue, deep", "gréen", "red=1"}


@pytest.mark.slow
def test_the_model_folder_needs_only_timm(finished: frostline.Run, tmp_path: Path) -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = finished.model(images)
    torch.save({"images": images, "logits": expected}, tmp_path / "expected.pt")
    code = (
        "import sys, timm, torch\n"
        f"saved = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        f"model = timm.create_model({'local-dir:' + str(finished.path / 'model')!r}, pretrained=True).eval()\n"
        "assert torch.equal(model(saved['images']), saved['logits'])\n"
        "assert list(model.pretrained_cfg['label_names']) == ['blue, deep', 'gréen', 'red=1']\n"
        "assert model.pretrained_cfg['input_size'] == (3, 32, 32)\n"
        "assert 'frostline' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)


def test_the_saved_config_trains_the_same_again(finished: frostline.Run) -> None:
    config = finished.config
    again = frostline.train(config)
    assert again.path != finished.path
    for name, value in finished.metrics.items():
        if "/" in name:
            assert again.metrics[name] == value, name


def test_provenance_says_where_it_comes_from(finished: frostline.Run) -> None:
    said = json.loads((finished.path / "provenance.json").read_text())
    assert said["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert len(said["data_fingerprint"]) == 64
    assert said["seed"] == 0
    assert "source" in said["weights"]


@pytest.mark.slow
def test_a_linear_probe_changes_the_head_alone(train: Train) -> None:
    run = train("freeze=linear_probe", "optimizer.lr=0.1", "optimizer.weight_decay=0.1")
    checkpoint = last_weights(run.path)
    untouched = train("freeze=linear_probe", "optimizer.lr=0.0", "optimizer.weight_decay=0.0")
    fresh = last_weights(untouched.path)
    changed = {name for name in fresh if name.startswith("model.") and not torch.equal(fresh[name], checkpoint[name])}
    assert changed == {"model.fc.weight", "model.fc.bias"}


@pytest.mark.slow
def test_schedule_csv_records_the_phases(train: Train) -> None:
    run = train("freeze=lp_ft", "freeze.phases.probe.until.epochs=1")
    rows = (run.path / "schedule.csv").read_text().splitlines()
    assert rows[0].startswith("step,epoch,phase")
    assert [row.split(",")[2] for row in rows[1:]] == ["probe", list(run.config.freeze.phases)[1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["augment=strong", "loss=bce"],
        ["augment=standard", "loss=focal", "class_weights=balanced"],
        ["loss=label_smoothing", "class_weights=balanced", "optimizer=sgd", "lr=step"],
        ["callbacks=ema", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1.0"],
        ["speed.channels_last=true", "trainer.precision=bf16-mixed", "lr=constant"],
        ["lr_find=true", "lr=linear"],
        ["callbacks=no_early_stopping", "logger=csv", "data.workers=2", "test=false"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_variants_train(train: Train, overrides: list[str]) -> None:
    run = train(*overrides)
    assert ("test/accuracy" in run.metrics) == ("test=false" not in overrides)
    assert (run.path / "lr_find.csv").exists() == ("lr_find=true" in overrides)


@pytest.mark.slow
def test_a_compiled_run_saves_a_plain_model(train: Train) -> None:
    run = train("speed.compile=true", "speed.compile_backend=eager", "trainer.max_epochs=1")
    assert not any("_orig_mod" in name for name in run.model.state_dict())


@pytest.mark.slow
def test_workers_do_not_change_the_result(train: Train) -> None:
    runs = [train("augment=standard", f"data.workers={count}", "trainer.max_epochs=2") for count in (0, 2)]
    one, other = (last_weights(run.path) for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_another_seed_is_another_run(train: Train) -> None:
    one, other = train("seed=1"), train("seed=2")
    assert one.metrics["val/loss"] != other.metrics["val/loss"]


@pytest.mark.slow
def test_a_run_starts_from_another(train: Train, finished: frostline.Run, capsys: pytest.CaptureFixture[str]) -> None:
    train(f"backbone.weights={finished.path}", "optimizer.lr=0.0")
    assert str(finished.path) in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run(train: Train, tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match="the loss is nan at step"):
        train("optimizer=sgd", "optimizer.lr=1e30", "lr=constant")
    assert not list(tmp_path.rglob("metrics.json"))
    assert not list(tmp_path.rglob("model"))


def test_a_monitor_that_these_classes_do_not_have_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="val/top5_accuracy"):
        train("monitor.metric=val/top5_accuracy")
    assert not list(tmp_path.rglob("metrics.json"))


def test_class_weights_need_a_loss_that_takes_them(train: Train) -> None:
    with pytest.raises(ConfigError, match="takes no 'weight'"):
        train("class_weights=balanced", "loss._target_=torch.nn.MSELoss", "~loss.label_smoothing")


def test_pictures_without_labels_are_for_pretrain(train: Train) -> None:
    with pytest.raises(ConfigError, match="no labels"):
        train("data=pictures")


def test_an_unreadable_picture_names_itself(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(pictures, broken)
    victim = broken / "train" / "gréen" / "3.jpg"
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(DataError, match=r"3\.jpg"):
        frostline.train([*tiny, "data=folder", f'data.root="{broken}"', f"output={tmp_path}/out"])
    assert not list(tmp_path.rglob("metrics.json"))
