from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from frostline.config import check_targets, trusted_targets
from frostline.errors import ConfigError


def faults(tree: object, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check_targets(OmegaConf.create(tree), **options)  # type: ignore[arg-type]  # a dict is one config
    return str(caught.value)


def test_a_good_tree_passes() -> None:
    check_targets(OmegaConf.create({"a": {"_target_": "collections.OrderedDict"}, "b": [1, {"c": "x"}]}))


def test_every_fault_is_named_with_its_path() -> None:
    text = faults(
        {
            "a": {"_target_": "no.such.module"},
            "b": {"c": [{"_target_": "pathlib.PurePath.joinpath.x"}]},
            "d": {"_target_": "textwrap.dedent", "text": "a", "widht": 3},
            "e": {"_target_": "textwrap.dedent"},
            "f": {"_target_": "string.digits"},
        }
    )
    assert text.startswith("5 faults")
    assert "a._target_=no.such.module" in text
    assert "b.c.0._target_" in text
    assert "d.widht" in text
    assert "e (textwrap.dedent) lacks 'text'" in text
    assert "not a class or a function" in text


def test_partials_and_supplied_arguments_may_be_absent() -> None:
    tree = {"e": {"_target_": "textwrap.dedent", "_partial_": True}, "g": {"_target_": "textwrap.dedent"}}
    check_targets(OmegaConf.create(tree), supplied={"g": ("text",)})


def test_only_trusted_targets_of_a_foreign_config_may_run() -> None:
    allowed = trusted_targets()
    assert "lightning.Trainer" in allowed
    tree = {"trainer": {"_target_": "os.system", "command": "true"}}
    assert "os.system" in faults(tree, allowed=allowed)
    check_targets(
        OmegaConf.create({"a": {"_target_": "textwrap.dedent", "text": "x"}}), allowed=allowed, trust=["textwrap"]
    )
    assert "textwrapped" in faults({"a": {"_target_": "textwrapped.fill"}}, allowed=allowed, trust=["textwrap"])


def test_targets_of_a_users_folder_are_trusted(tmp_path: Path) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("_target_: my.package.Loss\n")
    assert "my.package.Loss" in trusted_targets([tmp_path])
