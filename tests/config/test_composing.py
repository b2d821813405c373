from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose as composed_by_hydra
from hydra import initialize_config_dir
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from frostline.config import compose
from frostline.errors import ConfigError


def message(*overrides: str, command: str = "train") -> str:
    with pytest.raises(ConfigError) as caught:
        compose(command, overrides)
    return str(caught.value)


def test_the_default_of_every_command_composes() -> None:
    for command, needs in {
        "train": [],
        "inspect": [],
        "audit": [],
        "pretrain": [],
        "evaluate": ["run=r"],
        "predict": ["run=r", "images=i"],
    }.items():
        assert "hydra" not in compose(command, needs)


def test_overrides_reach_the_config() -> None:
    config = compose("train", ["seed=3", "freeze=linear_probe", "optimizer.lr=0.5"])
    assert (config.seed, config.optimizer.lr) == (3, 0.5)
    assert config.freeze.phases.probe.train == "head"


def test_a_phase_is_added_without_a_plus() -> None:
    config = compose("train", ["freeze.phases.late={train: head}", "freeze.phases.full.until.epochs=2"])
    assert config.freeze.phases.late.train == "head"
    assert config.freeze.phases.full.until.epochs == 2


def test_every_fault_is_reported_at_once() -> None:
    text = message("freeze=linear_prob", "trainer=gpuu", "seed")
    assert text.startswith("3 faults")
    assert "'linear_probe'" in text
    assert "'gpu'" in text
    assert "'seed' is not an override" in text


def test_value_faults_come_together_with_suggestions() -> None:
    text = message("optimizer.lrr=1", "seed=abc", "optimzer.lr=1", "freeze.lr_decy=2")
    assert text.startswith("4 faults")
    assert "optimizer.lrr" in text
    assert "'lr'" in text
    assert "'optimizer'" in text
    assert "'lr_decay'" in text
    assert "'abc'" in text


def test_a_misspelt_key_in_a_phase_is_named() -> None:
    text = message("freeze.phases.full.untl=3")
    assert "freeze.phases.full.untl" in text
    assert "'until'" in text


def test_a_deep_misspelt_key_in_a_phase_is_a_fault() -> None:
    assert "freeze.phases.full.until" in message("freeze.phases.full.until={epoch: 3}")


def test_a_wrong_type_in_a_phase_is_a_fault() -> None:
    assert "freeze.phases.full.until" in message("freeze.phases.full.until={epochs: many}")


def test_an_override_that_does_not_parse_shows_how_to_quote() -> None:
    text = message("data.root=/my set (1)")
    assert "'data.root=/my set (1)' is not an override" in text
    assert "'data.root=\"/data/my set (1)\"'" in text


def test_a_word_without_equals_is_explained() -> None:
    assert "KEY=VALUE" in message("linear_probe")


@pytest.mark.parametrize("path", ["/data/my set (1)", "/data/a=b", "/données/日本", "/data/a, b"])
def test_quoted_paths_come_through(path: str) -> None:
    assert compose("train", ["data=folder", f'data.root="{path}"']).data.root == path


def test_a_list_of_values_needs_multirun() -> None:
    assert "Add -m" in message("seed=0,1")


def test_a_missing_value_is_named() -> None:
    assert "data.root has no value" in message("data=folder")


def test_unknown_monitors_are_refused() -> None:
    assert "'val/accuracy'" in message("monitor.metric=val/acuracy")
    assert "selects nothing" in message("monitor.metric=test/accuracy")
    assert "monitor.mode=min" in message("monitor.metric=val/loss")
    assert compose("train", ["monitor.metric=val/loss", "monitor.mode=min"]).monitor.metric == "val/loss"


@pytest.mark.parametrize(
    "override",
    [
        *("seed=-1", "optimizer.lr=-1", "optimizer.lr=abc", "optimizer=null"),
        *("trainer.max_epochs=ten", "trainer.max_steps=0.5", "data.batch_size=1.5", "data.size=large"),
    ],
)
def test_values_that_are_none_are_refused(override: str) -> None:
    assert override in message(override)


def test_a_missing_environment_variable_is_named() -> None:
    assert "FROSTLINE_NOT_SET" in message("output=${oc.env:FROSTLINE_NOT_SET}")


def test_unknown_commands_get_a_suggestion() -> None:
    assert "'train'" in message(command="trian")


def test_a_users_own_config_folder_is_searched_first(tmp_path: Path) -> None:
    (tmp_path / "freeze").mkdir()
    (tmp_path / "freeze" / "mine.yaml").write_text("defaults: [schema, _self_]\nphases: {only: {train: head}}\n")
    config = compose("train", ["freeze=mine"], [tmp_path])
    assert config.freeze.phases.only.train == "head"


def test_a_config_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        compose("train", [], [tmp_path / "absent"])


def test_composing_leaves_no_hydra_behind() -> None:
    compose("train")
    assert not GlobalHydra.instance().is_initialized()


def test_composing_leaves_the_hydra_of_the_calling_program(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("answer: 42\n")
    its_config: Any = OmegaConf.create({"hydra": {}})
    HydraConfig.instance().cfg = its_config
    try:
        with initialize_config_dir(str(tmp_path), version_base=None):
            own = GlobalHydra.instance().hydra
            compose("train", ["data=digits", "backbone.name=test_vit"])
            assert GlobalHydra.instance().hydra is own
            assert HydraConfig.instance().cfg is its_config
            assert composed_by_hydra("mine").answer == 42
    finally:
        HydraConfig.instance().cfg = None


def test_hydras_repository_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # each copy takes as long as reading a few configs
    copies: list[str] = []
    made = CachingConfigRepository.__init__

    def count(self: CachingConfigRepository, delegate: IConfigRepository) -> None:
        copies.append("one")
        made(self, delegate)

    monkeypatch.setattr(CachingConfigRepository, "__init__", count)
    compose("train", ["data=digits", "backbone.name=test_vit", "freeze=lp_ft", "optimizer=sgd", "optimizer.lr=0.1"])
    assert copies == ["one"]
