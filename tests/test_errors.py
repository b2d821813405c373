from __future__ import annotations

import pickle

import pytest

from frostline.errors import ConfigError, DataError, near_misses, override_for, suggestion


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(DataError("what", mend="how")))
    assert type(error) is DataError
    assert (error.problem, error.mend, str(error)) == ("what", "how", "what\n  how")


def test_one_fault_stays_itself_and_several_are_counted() -> None:
    fault = ConfigError("a")
    assert ConfigError.of([fault]) is fault
    assert str(ConfigError.of([fault, ConfigError("b", mend="c")])).splitlines() == [
        "2 faults in the configuration:",
        "1. a",
        "2. b",
        "  c",
    ]


def test_a_misspelt_name_gets_what_is_near_or_all_there_is() -> None:
    assert suggestion("trian", ["train", "test"]) == "Did you mean 'train'?"
    assert suggestion("x", ["b", "a"]) == "Known: a, b."
    assert suggestion("x", []) == "There are none known."
    assert near_misses("resnet5", ["resnet50", "vit"]) == ["resnet50"]


@pytest.mark.parametrize("path", ["/a/b.c-d", "/a b/é(1)", "/a=b,c", "/it's", '/say "x"', "/back\\slash"])
def test_an_override_that_is_copied_into_a_shell_is_read_as_it_is(path: str) -> None:
    import shlex

    from hydra.core.override_parser.overrides_parser import OverridesParser

    (typed,) = shlex.split(override_for("run", path))
    assert OverridesParser.create().parse_override(typed).value() == path
