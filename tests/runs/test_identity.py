from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from frostline.config import compose, load_config
from frostline.runs.folder import RunFolder, write_json
from frostline.runs.identity import (
    code_version,
    config_hash,
    find_earlier,
    identity_of,
    recorded_fingerprint,
    weights_hash,
)
from frostline.runs.starting import prepare


def hash_of(*overrides: str) -> str:
    return config_hash(compose("train", overrides))


def test_what_changes_the_result_changes_the_hash() -> None:
    changes = ["seed=1", "optimizer.lr=0.5", "freeze=linear_probe", "data.split_seed=1", "test=false", "lr=constant"]
    hashes = {hash_of(), *map(hash_of, changes)}
    assert len(hashes) == 1 + len(changes)


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "output=elsewhere",
        "debug=true",
        "logger=csv",
        "data.workers=3",
        "rerun=true",
        "test=true",
        "speed.keep_memory=false",
    ],
)
def test_what_does_not_change_the_result_does_not_change_the_hash(override: str) -> None:
    assert hash_of(override) == hash_of()


def test_a_saved_config_has_the_hash_of_the_one_it_was_made_from(tmp_path: Path) -> None:
    config = compose("train", [f"output={tmp_path}", "optimizer.lr=1e-5", "callbacks=ema"])
    before = config_hash(config)
    folder = prepare(config, [])
    assert config_hash(config) == before
    assert config_hash(load_config(folder.config)) == before


def test_the_environment_counts_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose("train")
    OmegaConf.set_struct(config, False)
    config.optimizer.note = "${oc.env:FROSTLINE_NOTE}"
    monkeypatch.setenv("FROSTLINE_NOTE", "one")
    one = config_hash(config)
    monkeypatch.setenv("FROSTLINE_NOTE", "two")
    assert config_hash(config) == one


def test_weights_on_this_machine_count_by_their_content(tmp_path: Path) -> None:
    config = compose("train", [])
    config.backbone.weights = str(tmp_path / "w.safetensors")
    assert weights_hash(compose("train", ["backbone.weights=none", "backbone.name=resnet18"])) == ""
    (tmp_path / "w.safetensors").write_bytes(b"one")
    one = weights_hash(config)
    (tmp_path / "w.safetensors").write_bytes(b"other")
    assert weights_hash(config) != one
    (tmp_path / "w.safetensors").write_bytes(b"one")
    assert weights_hash(config) == one
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "model.safetensors").write_bytes(b"one")
    config.backbone.weights = str(tmp_path / "run")
    assert weights_hash(config) not in ("", one)


def test_the_code_version_is_the_same_in_another_process_without_torch() -> None:
    code = (
        "import sys; from frostline.runs.identity import code_version; print(code_version()); assert not "
        "{'torch', 'timm', 'lightning'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == code_version()


def test_earlier_runs_are_found_newest_first_beside_and_inside_sweeps(tmp_path: Path) -> None:
    def asked(*overrides: str) -> list[str]:
        return [f"output={tmp_path}", *overrides]

    alone = prepare(compose("train", asked()), [])
    swept = prepare(compose("train", asked()), [], parent=tmp_path / "train" / "2026-01-01_00-00-00-sweep-0")
    prepare(compose("train", asked("seed=1")), [])
    wanted = compose("train", asked())
    assert find_earlier(tmp_path / "train", wanted) == [swept, alone]
    assert find_earlier(tmp_path / "absent", wanted) == []

    # one was resumed with more epochs since, the other is of another version of the code
    saved = load_config(swept.config)
    saved.trainer.max_epochs = 99
    OmegaConf.save(saved, swept.config)
    assert find_earlier(tmp_path / "train", wanted) == [alone]
    write_json(alone.identity, {**identity_of(wanted), "code": "0", "made": 1})
    assert find_earlier(tmp_path / "train", wanted) == []
    alone.identity.write_text("{ torn")
    assert find_earlier(tmp_path / "train", wanted) == []


def test_a_moved_experiment_is_still_known(tmp_path: Path) -> None:
    prepare(compose("train", [f"output={tmp_path / 'a'}"]), [])
    (tmp_path / "a").rename(tmp_path / "b")
    wanted = compose("train", [f"output={tmp_path / 'b'}"])
    assert len(find_earlier(tmp_path / "b" / "train", wanted)) == 1


def test_the_fingerprint_is_known_once_the_data_was_loaded(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert recorded_fingerprint(folder) is None
    write_json(folder.provenance, {"data_fingerprint": "abc"})
    assert recorded_fingerprint(folder) == "abc"
