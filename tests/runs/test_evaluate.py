from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import frostline
from frostline.config import load_config, save_config
from frostline.errors import ConfigError
from frostline.runs.evaluate import evaluate


def evaluated(run: Path, *overrides: str) -> dict[str, float]:
    return evaluate(frostline.compose([f"run={run}", "trainer=cpu", *overrides], command="evaluate"))


def test_evaluation_repeats_what_training_scored(finished: frostline.Run) -> None:
    for split in ("val", "test"):
        scores = evaluated(finished.path, f"split={split}")
        for name in ("accuracy", "macro_f1", "auroc", "count"):
            assert scores[f"{split}/{name}"] == pytest.approx(finished.metrics[f"{split}/{name}"], abs=1e-6)
    assert evaluated(finished.path, "split=train", "batch_size=3")["train/count"] == 30


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
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    config = load_config(copy / "config.yaml")
    config.data = OmegaConf.create({"_target_": "pathlib.Path.mkdir", "self": str(tmp_path / "made")})
    save_config(config, copy / "config.yaml")
    with pytest.raises(ConfigError, match=r"pathlib\.Path\.mkdir is not one of"):
        evaluated(copy)
    assert not (tmp_path / "made").exists()


def test_pictures_of_other_classes_are_refused(finished: frostline.Run, tmp_path: Path, pictures: Path) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    assert evaluated(finished.path, f'root="{moved}"')["test/count"] == 21
    for split in ("train", "val", "test"):
        (moved / split / "gréen").rename(moved / split / "other")
    with pytest.raises(ConfigError, match="gréen"):
        evaluated(finished.path, f'root="{moved}"')
