from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
from omegaconf import OmegaConf

import frostline
from frostline.config import load_config, save_config
from frostline.errors import ConfigError, StorageError
from frostline.runs.evaluate import evaluate
from frostline.runs.ledger import Looks


def evaluated(run: Path, *overrides: str) -> dict[str, float]:
    return evaluate(frostline.compose([f"run={run}", "trainer=cpu", *overrides], command="evaluate"))


def test_evaluation_repeats_what_training_scored(finished: frostline.Run) -> None:
    for split in ("val", "test"):
        scores = evaluated(finished.path, f"split={split}")
        for name in ("accuracy", "macro_f1", "auroc", "count"):
            assert scores[f"{split}/{name}"] == pytest.approx(finished.metrics[f"{split}/{name}"], abs=1e-6)
    assert evaluated(finished.path, "split=train", "batch_size=3")["train/count"] == 30


@pytest.mark.slow
def test_averaged_weights_are_scored_as_they_are_saved(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    own = ["data=folder", f'data.root="{pictures}"', f"output={tmp_path}", "callbacks=ema", "monitor.metric=val/loss"]
    run = frostline.train([*tiny, *own, "monitor.mode=min", "trainer.max_epochs=4", "loss=label_smoothing"])
    assert evaluated(run.path, "split=val")["val/loss"] == pytest.approx(run.metrics["val/loss"], rel=1e-5)


def test_an_unknown_split_or_run_is_refused(finished: frostline.Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'test'"):
        evaluated(finished.path, "split=tset")
    with pytest.raises(ConfigError, match="is not a run"):
        evaluated(tmp_path)


def test_a_runs_config_is_not_trusted(finished: frostline.Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    config = load_config(copy / "config.yaml")
    config.data = OmegaConf.create({"_target_": "pathlib.Path.mkdir", "self": str(tmp_path / "made")})
    save_config(config, copy / "config.yaml")
    with pytest.raises(ConfigError, match=r"pathlib\.Path\.mkdir is not one of"):
        evaluated(copy)
    assert not (tmp_path / "made").exists()


def test_pictures_of_other_classes_are_refused(finished: frostline.Run, tmp_path: Path, pictures: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    assert evaluated(finished.path, f'root="{moved}"')["test/count"] == 21
    for split in ("train", "val", "test"):
        (moved / split / "gréen").rename(moved / split / "other")
    with pytest.raises(ConfigError, match="gréen"):
        evaluated(finished.path, f'root="{moved}"')


def read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def predictions(run: Path, split: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Class names, labels ``[N]`` and probabilities ``[N, K]`` of ``predictions/SPLIT.parquet``."""
    table = pyarrow.parquet.read_table(run / "predictions" / f"{split}.parquet")
    classes = [name[2:-1] for name in table.column_names if name.startswith("p(")]
    shares = np.stack([table[f"p({name})"].to_numpy() for name in classes], axis=1)
    return classes, np.array([classes.index(name) for name in table["label"].to_pylist()]), shares


@pytest.mark.parametrize("split", ["val", "test"])
def test_what_is_written_follows_from_the_predictions(finished: frostline.Run, split: str) -> None:
    found = read(finished.path / "evaluation" / f"{split}.json")
    classes, labels, shares = predictions(finished.path, split)
    right = (shares.argmax(axis=1) == labels).astype(float)
    accuracy = found["scores"]["accuracy"]
    assert accuracy["value"] == pytest.approx(right.mean())
    assert finished.metrics[f"{split}/accuracy"] == pytest.approx(right.mean())
    interval = scipy.stats.bootstrap((right,), np.mean, method="percentile", rng=0).confidence_interval
    assert accuracy["low"] == pytest.approx(interval.low, abs=0.5 / len(labels) + 1e-9)
    assert accuracy["high"] == pytest.approx(interval.high, abs=0.5 / len(labels) + 1e-9)
    confusion = sklearn.metrics.confusion_matrix(labels, shares.argmax(axis=1), labels=range(len(classes)))
    assert found["confusion"] == confusion.tolist()
    assert [item["class"] for item in found["classes"]] == classes
    recalls = sklearn.metrics.recall_score(labels, shares.argmax(axis=1), average=None)
    assert [item["recall"]["value"] for item in found["classes"]] == pytest.approx(recalls.tolist())
    temperature = read(finished.path / "calibration.json")
    assert found["calibration"]["temperature"] == temperature["temperature"]
    logits = np.log(shares) / temperature["temperature"]
    nll = (scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]).mean()
    assert found["scores"]["nll_calibrated"]["value"] == pytest.approx(nll, rel=1e-5)
    assert finished.metrics[f"{split}/nll_calibrated"] == pytest.approx(nll, rel=1e-5)


def test_the_temperature_is_fitted_on_validation_alone(finished: frostline.Run) -> None:
    found = read(finished.path / "calibration.json")
    _, labels, shares = predictions(finished.path, "val")
    assert (found["fitted_on"], found["pictures"]) == ("val", 15)
    rows = np.arange(len(labels))

    def loss(temperature: float) -> float:
        logits = np.log(shares) / temperature
        return float((scipy.special.logsumexp(logits, axis=1) - logits[rows, labels]).mean())

    assert found["reason"] is None
    assert loss(found["temperature"]) <= min(loss(value) for value in np.geomspace(0.05, 20, 300)) + 1e-6


def test_training_pictures_are_scored_as_validation_is(finished: frostline.Run) -> None:
    found, metrics = read(finished.path / "evaluation" / "train_sample.json"), finished.metrics
    # all of them, since there are no more than 100
    assert found["sample_of"] == found["pictures"] == metrics["train_sample/count"] == 30
    gap = metrics["train_sample/accuracy"] - metrics["val/accuracy"]
    assert metrics["gap/accuracy"] == pytest.approx(gap)
    assert found["gap_to_val"]["accuracy"]["value"] == pytest.approx(gap)
    assert evaluated(finished.path, "split=train")["train/accuracy"] == pytest.approx(metrics["train_sample/accuracy"])


@pytest.mark.slow
def test_each_later_look_at_the_test_split_is_counted_and_said(
    tiny: list[str], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*tiny, "data=folder", f'data.root="{pictures}"', f"output={tmp_path}/out", "trainer.max_epochs=1"]
    run = frostline.train(own)
    shown = capsys.readouterr().out
    assert "test split scored once" in shown
    assert "overfitting accuracy" in shown
    assert "the model alone" in shown
    assert "a later look" not in shown
    assert read(run.path / "evaluation" / "test.json")["looks"]["count"] == 1
    frostline.resume(run.path)  # it is done
    assert "test split scored" not in capsys.readouterr().out
    evaluated(run.path, "split=val")
    assert "test split" not in capsys.readouterr().out
    evaluated(run.path)
    shown = capsys.readouterr().out
    assert "test split scored 2 times, all by this run" in shown
    assert "a later look" in shown
    assert read(run.path / "evaluation" / "test.json")["looks"]["count"] == 2
    frostline.train([*own, "seed=1"])
    assert "test split scored 3 times, by this run and 1 other" in capsys.readouterr().out
    frostline.train([*own, "seed=2", "test=false"])
    assert len((tmp_path / "out" / "test_looks.jsonl").read_text().splitlines()) == 3


def test_other_pictures_leave_what_is_known_of_the_runs_own(
    finished: frostline.Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [finished.path / name for name in ("predictions/test.parquet", "evaluation/test.json", "calibration.json")]
    before = [file.read_bytes() for file in files]
    others = tmp_path / "others"
    shutil.copytree(pictures, others)
    for picture in others.glob("test/*/[3-6].jpg"):
        picture.unlink()
    assert evaluated(finished.path, f'root="{others}"')["test/count"] == 9
    assert [file.read_bytes() for file in files] == before
    (written,) = (finished.path / "evaluation").glob("test-*.json")
    assert str(written) in capsys.readouterr().out
    assert (finished.path / "predictions" / written.with_suffix(".parquet").name).is_file()
    assert read(written)["pictures"] == 9
    assert "test has 9 pictures" in read(written)["notes"][0]
    assert "test split scored once" in Looks(**read(written)["looks"]).sentence


def test_a_run_from_before_temperatures_gets_one_from_its_validation_pictures(
    finished: frostline.Run, tmp_path: Path
) -> None:
    copy = tmp_path / "out" / "train" / "run"
    shutil.copytree(finished.path, copy)
    own = read(copy / "calibration.json")
    (copy / "calibration.json").unlink()
    assert "test/ece_calibrated" not in evaluated(copy, "split=test")
    assert "val/ece_calibrated" in evaluated(copy, "split=val")
    assert read(copy / "calibration.json")["temperature"] == pytest.approx(own["temperature"], rel=1e-3)
    (copy / "calibration.json").write_text('{"temperature": -1, "pictures": 15, "reason": null}')
    with pytest.raises(StorageError, match="a temperature of -1"):
        evaluated(copy, "split=test")
    (copy / "calibration.json").write_text("[")
    with pytest.raises(StorageError, match="cannot be read"):
        evaluated(copy, "split=test")


def test_what_an_earlier_model_scored_does_not_stay_with_the_next(
    tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    own = [
        "data=folder",
        f'data.root="{pictures}"',
        f"output={tmp_path}",
        "monitor.metric=val/loss",
        "monitor.mode=min",
    ]
    run = frostline.train([*tiny, *own, "trainer.max_epochs=1"])
    assert (run.path / "evaluation" / "test.json").is_file()
    more = frostline.resume(run.path, ["trainer.max_epochs=6", "test=false"])
    assert "test/accuracy" not in more.metrics
    assert not (run.path / "evaluation" / "test.json").exists()
    assert not (run.path / "predictions" / "test.parquet").exists()
    assert (run.path / "evaluation" / "val.json").is_file()
    assert "No separate test split" in (run.path / "model" / "README.md").read_text(encoding="utf-8")
