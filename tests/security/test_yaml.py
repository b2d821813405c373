"""YAML that came with a run: tags, bombs and depths."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from frostline.config import load_config
from frostline.errors import ConfigError


def refused(tmp_path: Path, text: str) -> str:
    (tmp_path / "config.yaml").write_text(text)
    started = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "config.yaml")
    assert time.perf_counter() - started < 5
    assert "config.yaml" in str(caught.value)
    assert len(str(caught.value)) < 3000
    return str(caught.value)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch CANARY']",
        "!!python/object/apply:subprocess.check_output [['touch', 'CANARY']]",
        "!!python/object/new:os.system ['touch CANARY']",
        "!!python/object/apply:builtins.exec [\"open('CANARY', 'w')\"]",
        "!!python/object/apply:builtins.eval [\"open('CANARY', 'w')\"]",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1]",
        "!!python/object:pathlib.Path {}",
        "!!javax.script.ScriptEngineManager []",
        "!include /etc/passwd",
        "!ENV ${HOME}",
    ],
)
def test_tags_do_not_run(tmp_path: Path, canary: Path, tag: str) -> None:
    refused(tmp_path, f"data: {tag.replace('CANARY', str(canary))}\n")
    refused(tmp_path, f"data:\n  list:\n    - {{a: {tag.replace('CANARY', str(canary))}}}\n")


def test_a_billion_laughs_do_not_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    for level in range(1, 12):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    refused(tmp_path, "\n".join(lines) + "\n")


def test_merge_keys_do_not_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, 25):
        lines.append(f"a{level}: &a{level} {{l: *a{level - 1}, r: *a{level - 1}}}")
    refused(tmp_path, "\n".join(lines) + "\n")


def test_an_alias_of_itself_comes_to_an_end(tmp_path: Path) -> None:
    refused(tmp_path, "a: &a [*a]\n")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[" * 50_000, "a: " + "{a: " * 20_000, "- " * 20_000 + "x"])
def test_depth_comes_to_an_end(tmp_path: Path, text: str) -> None:
    refused(tmp_path, text)


def test_a_file_that_is_far_too_long_is_not_read(tmp_path: Path) -> None:
    refused(tmp_path, "a: 1\n" + "# endless\n" * 500_000)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \x00", b"a: \x1b[2J", b"a: 1\n---\nb: 2\n", b"- 1"])
def test_what_is_no_config_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "config.yaml")


def test_a_device_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError):
        load_config(tmp_path / "config.yaml")
