from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import frostline

TINY = [
    "backbone.name=test_resnet",
    "backbone.weights=none",
    "data.labels_per_class=3",
    "data.batch_size=4",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "report=false",
]


def test_csv_and_tensorboard_are_the_default(tmp_path: Path) -> None:
    run = frostline.train([*TINY, f"output={tmp_path}"])
    rows = (run.path / "metrics.csv").read_text().splitlines()
    assert {"epoch", "step", "lr", "train/loss", "val/accuracy", "val/loss"} <= set(rows[0].split(","))
    assert list((run.path / "tensorboard").glob("events.*"))


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="the extra mlflow is not installed")
def test_mlflow_works_offline_on_sqlite(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run = frostline.train([*TINY, f"output={tmp_path}", "logger=mlflow"])
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("train")
    assert experiment is not None
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.data.metrics["test/accuracy"] == pytest.approx(run.metrics["test/accuracy"])


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the extra wandb is not installed")
def test_wandb_works_offline(tmp_path: Path) -> None:
    run = frostline.train([*TINY, f"output={tmp_path}", "logger=wandb"])
    assert list((run.path / "wandb").glob("offline-run-*"))
