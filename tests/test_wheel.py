"""The wheel works where there is no checkout: installed in a clean environment, used from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel; what it depends on is seen through, for want of a network."""
    folder = tmp_path_factory.mktemp("clean") / "environment"
    venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
    pip = [folder / "bin" / "python", "-I", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # a folder that a .pth names is searched, but its own .pth files, an editable install's, are not read
    here = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site / "dependencies.pth").write_text("\n".join(here))
    return folder


@pytest.fixture
def run(environment, tmp_path):
    """Runs a program of the clean environment in an empty folder; what it printed."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def call(program: str, *arguments: str) -> str:
        command = [environment / "bin" / program, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_wheel_holds_the_package_its_configs_and_its_weights(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src" / "frostline"
    code = {f"frostline/{file.relative_to(source)}" for file in source.rglob("*.py")}
    configs = {f"frostline/{file.relative_to(ROOT)}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert code | configs | {"frostline/py.typed"} <= names
    assert any(name.startswith("frostline/weights/") and name.endswith(".safetensors") for name in names)
    assert {name.split("/")[0] for name in names} == {"frostline", wheel.name.split("-py3")[0] + ".dist-info"}
    assert not [name for name in names if "__pycache__" in name]


def test_wheel_is_small(wheel):
    assert wheel.stat().st_size < 3_000_000


def test_nothing_comes_from_the_checkout(run, environment):
    code = """
import frostline, importlib.metadata, json, sys
from frostline.config.schema import conf_folder
print(json.dumps([frostline.__file__, str(conf_folder()), sys.prefix, importlib.metadata.version("frostline")]))
"""
    package, conf, prefix, version = json.loads(run("python", "-c", code))
    assert Path(prefix) == environment
    assert Path(package).is_relative_to(environment)
    assert Path(conf).is_relative_to(environment)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert version == project["version"]


def test_help_lists_the_commands(run):
    listed = run("frostline", "--help")
    assert all(command in listed for command in ("train", "inspect", "audit", "evaluate", "predict", "pretrain"))


def test_config_is_composed_from_the_packaged_conf(run):
    config = yaml.safe_load(run("frostline", "train", "--cfg", "job", "freeze=linear_probe"))
    assert config["freeze"]["phases"]
    assert config["data"]["_target_"] == "frostline.data.DigitsData"


@pytest.mark.slow
def test_packaged_weights_are_found(run):
    shown = run("frostline", "inspect")
    assert "loaded" in shown
    assert "none loaded" not in shown
