from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from frostline.config import absolute_paths, compose, load_config, save_config
from frostline.errors import ConfigError


def test_a_saved_config_is_resolved_and_loads(tmp_path: Path) -> None:
    config = compose("train", ["seed=4"])
    config.folder = str(tmp_path)
    save_config(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "${" not in text
    loaded = load_config(tmp_path / "config.yaml")
    assert loaded.seed == 4
    assert loaded.monitor.mode == "max"
    assert loaded.callbacks.checkpoint.monitor == "val/accuracy"


def test_a_secret_from_the_environment_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_SECRET", "hunter2")
    config = compose("train", ["name=${oc.env:FROSTLINE_SECRET}", "+logger.csv.prefix=${name}-x"])
    config.folder = "f"
    absolute_paths(config)
    save_config(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "hunter2" not in text
    loaded = load_config(tmp_path / "config.yaml")
    assert loaded.name == "hunter2"
    assert loaded.logger.csv.prefix == "hunter2-x"


def test_a_typed_key_from_the_environment_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_SEED", "7")
    config = compose("train", ["seed=${oc.env:FROSTLINE_SEED}"])
    config.folder = "f"
    save_config(config, tmp_path / "config.yaml")
    assert int(load_config(tmp_path / "config.yaml").seed) == 7
    assert "FROSTLINE_SEED" in (tmp_path / "config.yaml").read_text()


def test_defaults_of_the_environment_survive(tmp_path: Path) -> None:
    config = compose("train", ["name=${oc.env:FROSTLINE_NOT_SET,'a, b'}", "folder=${oc.env:FROSTLINE_NOT_SET,null}"])
    save_config(config, tmp_path / "config.yaml")
    loaded = load_config(tmp_path / "config.yaml")
    assert loaded.name == "a, b"
    assert loaded.folder is None


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").touch()
    overrides = ["data=folder", "data.root=pictures", "backbone.name=local-dir:m/w", "backbone.weights=weights.pth"]
    config = compose("train", overrides)
    absolute_paths(config)
    assert config.data.root == str(tmp_path / "pictures")
    assert config.backbone.name == f"local-dir:{tmp_path}/m/w"
    assert config.backbone.weights == str(tmp_path / "weights.pth")
    assert config.output == str(tmp_path / "outputs")


def test_the_list_of_an_audit_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose("audit", ["audit.exclude=bad.txt"])
    absolute_paths(config)
    assert config.audit.exclude == str(tmp_path / "bad.txt")


def test_words_are_not_taken_for_paths() -> None:
    config = compose("train", ["backbone.weights=none", "backbone.name=resnet18"])
    absolute_paths(config)
    assert (config.backbone.weights, config.backbone.name) == ("none", "resnet18")


def test_what_is_no_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        load_config(tmp_path / "config.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="list"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "broken.yaml")


def test_yaml_tags_do_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "config.yaml")
    assert not (tmp_path / "made").exists()
    assert OmegaConf.create({}) == {}
