"""The environment: a variable that would make weights run code, and secrets that must not be written down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import yaml
from PIL import Image

import frostline
from frostline.backbones import create_backbone, load_timm_folder
from frostline.errors import ConfigError
from frostline.runs.evaluate import evaluate
from frostline.runs.resuming import prepare_resume
from frostline.runs.starting import prepare
from frostline.runs.worker import execute
from frostline.specs import BackboneSpec

UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
SECRET = "hunter2-correct-horse"


def overrides_of(command: str, run: Path) -> list[str]:
    tiny = ["data=digits", "trainer=cpu", "trainer.max_epochs=1", f"output={run.parent}/out", "logger=csv"]
    return {
        "train": tiny,
        "pretrain": tiny,
        "evaluate": [f"run={run}", "trainer=cpu"],
        "predict": [f"run={run}", f"images={run}", f"output={run.parent}/predictions.csv"],
    }[command]


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "pretrain"])
def test_no_command_works_where_torch_is_told_to_load_unsafely(
    run: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(UNSAFE, "1")
    config = frostline.compose(overrides_of(command, run), command=command)
    folder = prepare(config, []) if command in ("train", "pretrain") else None
    assert execute(command, config, folder) == ConfigError.exit_code
    assert UNSAFE in capsys.readouterr().err
    assert folder is None or not folder.checkpoints.exists()


@pytest.mark.parametrize("value", ["1", "true", "True", "YES", "y"])
def test_every_way_to_say_yes_is_refused_by_whatever_loads(
    run: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(UNSAFE, value)
    for use in (
        lambda: load_timm_folder(run / "model"),
        lambda: create_backbone(BackboneSpec(name="test_resnet", weights=str(run)), num_classes=10),
        lambda: frostline.load(run).model,
        lambda: frostline.train(overrides_of("train", run)),
    ):
        with pytest.raises(ConfigError, match=UNSAFE):
            use()


@pytest.mark.parametrize("value", ["", "0", "no", "false"])
def test_no_is_no(run: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNSAFE, value)
    assert isinstance(load_timm_folder(run / "model").model, torch.nn.Module)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "predict"])
def test_the_public_command_refuses_it(run: Path, command: str) -> None:
    line = [sys.executable, "-P", "-m", "frostline.cli", command, *overrides_of(command, run)]
    environment = {**os.environ, UNSAFE: "1"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == ConfigError.exit_code, done.stderr
    assert UNSAFE in done.stderr
    assert "Traceback" not in done.stderr


def written(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, tables as text: their pages are compressed."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        is_table = path.suffix == ".parquet"
        text = str(pyarrow.parquet.read_table(path).to_pydict()).encode() if is_table else b""
        found[str(path.relative_to(folder))] = path.read_bytes() + text
    return found


def holding(folder: Path, secret: str) -> list[str]:
    return [name for name, content in written(folder).items() if secret in name or secret.encode() in content]


def pictures(root: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for name, color in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (20 + index, 20), color).save(folder / f"{index}.png")


def test_a_secret_of_the_environment_is_nowhere_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / SECRET)
    monkeypatch.setenv("FROSTLINE_ROOT", str(tmp_path / SECRET))
    monkeypatch.setenv("FROSTLINE_SECRET", SECRET)
    run = frostline.train(
        [
            "backbone.name=test_resnet",
            "backbone.weights=none",
            "data=folder",
            "data.root=${oc.env:FROSTLINE_ROOT}",
            "data.size=32",
            "data.batch_size=4",
            "data.workers=0",
            "trainer=cpu",
            "trainer.max_epochs=1",
            "logger=default",
            # goes on to the writer, which ignores it
            "+logger.tensorboard.comment=${oc.env:FROSTLINE_SECRET}",
            f"output={tmp_path}/out",
        ]
    )
    names = written(run.path)
    assert any("tfevents" in name for name in names)
    assert {"config.yaml", "provenance.json", "metrics.csv", "metrics.json"} <= names.keys()
    assert any(name.endswith(".ckpt") for name in names)
    assert holding(run.path, SECRET) == []
    assert "FROSTLINE_SECRET" in (run.path / "config.yaml").read_text()
    evaluate(frostline.compose([f"run={run.path}", "trainer=cpu", "split=val"], command="evaluate"))
    prepare_resume(run.path, ["trainer.max_epochs=2"])
    assert holding(run.path, SECRET) == []
    assert "FROSTLINE_SECRET" in (run.path / "config.yaml").read_text()


def test_a_foreign_run_does_not_get_secrets_written_down(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_SECRET", SECRET)
    reference = "${oc.env:FROSTLINE_SECRET}"
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["name"] = content["output"] = reference
    content["backbone"]["kwargs"]["tag"] = f"${{name}} {reference}"
    content["freeze"]["phases"]["full"]["train"] = "${oc.env:NOT_SET_EITHER,all}"
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    evaluate(frostline.compose([f"run={run}", "trainer=cpu", "split=val"], command="evaluate"))
    prepare_resume(run, ["trainer.max_epochs=2"])
    assert holding(run, SECRET) == []
