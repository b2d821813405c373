from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from frostline.config import check_targets, check_trusted_names, trusted_targets
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


def test_runs_of_an_earlier_version_are_trusted_as_ours() -> None:
    config = OmegaConf.create({"logger": {"tensorboard": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"}}})
    check_trusted_names(config, trusted_targets())


def test_targets_of_a_users_folder_are_trusted(tmp_path: Path) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("_target_: my.package.Loss\n")
    assert "my.package.Loss" in trusted_targets([tmp_path])


def refused(tree: Any, *, allowed: frozenset[str] = frozenset({"a.Good"}), trust: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        check_trusted_names(OmegaConf.create(tree), allowed, trust)
    return str(caught.value)


EVIL: Any = {"_target_": "os.system", "command": "true"}


@pytest.mark.parametrize(
    "tree",
    [
        {"a": EVIL},
        {"a": [1, [EVIL]]},
        {"a": {"_target_": "a.Good", "_args_": [EVIL]}},
        {"a": {"_target_": "a.Good", "_partial_": True, "inner": {"deep": EVIL}}},
        {"a": "${b}", "b": EVIL},
        {"a": {"_target_": "${oc.env:FROSTLINE_NOT_SET,os.system}"}},
        {"a": {"_target_": "${oc.env:FROSTLINE_NOT_SET,'os.system'}"}},
        {"a": {"_target_": ["os.system"]}},
        {"a": {"_target_": 3}},
        {"a": {"_target_": None}},
        {"a": {"_target_": "???"}},
        {"a": {"_target_": ""}},
    ],
)
def test_a_target_is_found_wherever_it_hides(tree: Any) -> None:
    assert "is not one of Frostline's own" in refused(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"a": {"_target_": "${b}"}, "b": "a.Good"},
        {"a": {"_target_": "${.names.${.count}}", "count": 1, "names": {1: "a.Good", 2: "os.system"}}},
        {"a": {"_target_": "os.${oc.env:NAME}"}},
        {"a": {"_target_": "${oc.env:${b}}"}, "b": "NAME"},
        {"a": '${oc.create:"{_target_: os.system}"}'},
        {"a": "${oc.decode:'{_target_: os.system}'}"},
        {"a": "${oc.select:nowhere,{_target_: os.system}}"},
        {"a": "${b.${c}}", "b": {"x": 1}, "c": "x"},
        {"a": "${${b}:{_target_: os.system}}", "b": "oc.create"},
        {"a": "${oc.env:NAME,${oc.create:{_target_: os.system}}}"},
        {"a": "\\\\${oc.create:{_target_: os.system}}"},
        {"a": "${ oc.create:{_target_: os.system}}"},
    ],
)
def test_what_could_turn_out_otherwise_later_is_refused(tree: Any) -> None:
    text = refused(tree)
    assert "which the config of a run may not" in text or "is not one of Frostline's own" in text


def test_all_names_are_refused_at_once_and_nothing_is_imported() -> None:
    text = refused({"a": EVIL, "b": [{"_target_": "this.Zen"}], "c": {"_target_": "a.Good"}, "d": "${x.y:1}"})
    assert text.startswith("3 faults")
    assert "a._target_=os.system" in text
    assert "b.0._target_=this.Zen" in text
    assert "d=${x.y:1}" in text
    code = """
import sys
from omegaconf import OmegaConf
from frostline.config import check_trusted_names
from frostline.errors import ConfigError
try:
    check_trusted_names(OmegaConf.create({"a": {"_target_": "timm.create_model"}, "b": {"_target_": "this.s"}}),
                        frozenset({"timm.create_model"}))
except ConfigError as error:
    print("refused", sorted({"timm", "torch", "this"} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "refused []\n"


def test_what_a_saved_config_holds_passes() -> None:
    tree = {
        "a": {"_target_": "a.Good", "x": "${oc.env:HOME}/x", "y": ["${b}", "${.0}", "${oc.env:NONE,'a, b'}"]},
        "b": "${frostline.weights:digits}",
        "c": {"_target_": "${oc.env:FROSTLINE_NOT_SET,'a.Good'}"},
        "d": {"_target_": "mine.losses.Own"},
        "e": "???",
        "f": None,
    }
    check_trusted_names(OmegaConf.create(tree), frozenset({"a.Good"}), ["mine"])


@pytest.mark.parametrize(
    "name", ["mine.__loader__.x", "mine.a.__class__", "mine..x", "mine.x\n", "mine. x", "mine.a;b"]
)
def test_a_trusted_prefix_is_no_way_around(name: str) -> None:
    assert "is not one of" in refused({"a": {"_target_": name}}, trust=("mine",))


def test_what_a_trusted_module_merely_imports_is_not_trusted() -> None:
    text = faults(
        {"a": {"_target_": "textwrap.re.compile", "pattern": "x"}, "b": {"_target_": "json.codecs.builtins.exec"}},
        allowed=frozenset(),
        trust=["textwrap", "json"],
    )
    assert "a._target_=textwrap.re.compile is re.compile, which lies outside what you trust" in text
    assert "json.codecs.builtins.exec is builtins.exec" in text
    check_targets(OmegaConf.create({"a": {"_target_": "json.JSONDecoder"}}), allowed=frozenset(), trust=["json"])
    whole = {"a": {"_target_": "textwrap.re.compile", "pattern": "x"}}
    check_targets(OmegaConf.create(whole), allowed=frozenset(), trust=["textwrap.re.compile"])


def test_a_strangers_text_is_shown_on_one_line() -> None:
    text = refused({"a\nb": {"_target_": "x\x1b[2J\n<b>y" + "z" * 9999}})
    assert text.isprintable()
    assert len(text) < 600
