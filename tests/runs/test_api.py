from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import frostline
from frostline.errors import ConfigError


def test_the_public_names_are_pinned() -> None:
    assert frostline.__all__ == ["Prediction", "Run", "compose", "load", "resume", "train"]
    with pytest.raises(AttributeError):
        frostline.nonsense  # noqa: B018  # looking it up is the test


def test_importing_frostline_imports_nothing_heavy() -> None:
    code = "import frostline, sys; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_loaded_run_predicts_on_pictures_and_paths(finished: frostline.Run, pictures: Path) -> None:
    run = frostline.load(finished.path)
    paths = sorted((pictures / "test" / "red=1").iterdir())
    with Image.open(paths[0]) as picture:
        opened = picture.copy()
    found = run.predict([opened, paths[0], str(paths[1])])
    assert found[0].probabilities == pytest.approx(found[1].probabilities)
    assert found[0].label in run.labels == ("blue, deep", "gréen", "red=1")
    assert sum(found[2].probabilities.values()) == pytest.approx(1)
    assert run.predict([]) == []


def test_what_is_no_run_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        frostline.load(tmp_path)


def test_composing_reports_faults_from_python_too() -> None:
    with pytest.raises(ConfigError, match="2 faults"):
        frostline.compose(["sede=1", "optimizer.lrr=2"])


def test_train_takes_a_config_and_leaves_it_alone(tiny: list[str], pictures: Path, output: Path) -> None:
    config = frostline.compose([*tiny, "data=folder", f'data.root="{pictures}"', f"output={output}", "test=false"])
    config.trainer.max_epochs = 1
    run = frostline.train(config)
    assert config.folder is None
    assert run.metrics["epochs"] == 1
    assert "test/accuracy" not in run.metrics
