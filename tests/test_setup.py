"""The entry points make ``.venv`` when it is missing or stale, once, and never take a half-made one for whole."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
ENTRY_POINTS = ["scripts/frostline", "scripts/test", "scripts/lint", "scripts/lock", ".ci/run"]

# Stands in for uv: notes what it was asked, and makes just enough of an environment.
UV = r"""#!/usr/bin/env bash
echo "$*" >>"$UV_LOG"
sleep "${UV_SLEEP:-0}"
if [[ -n "${UV_FAILS_AT:-}" && "$*" == *"$UV_FAILS_AT"* ]]; then
    echo "no such distribution"
    exit 1
fi
folder="${@: -1}"
if [[ "$1" == venv ]]; then
    mkdir -p "$folder/bin" && ln -s "$BASE_PYTHON" "$folder/bin/python"
elif [[ "$*" == *--editable* ]]; then
    printf '%s\n' '#!/bin/sh' 'printf "%s\n" "$PWD" "$@"' >"$folder/.venv/bin/frostline"
    chmod +x "$folder/.venv/bin/frostline"
fi
"""

# A build backend that needs no package: the project's editable wheel is one .pth file and one console script.
BACKEND = """
import zipfile

def _wheel(directory):
    name, info = "frostline-0-py3-none-any.whl", "frostline-0.dist-info"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as wheel:
        wheel.writestr("frostline.pth", __file__.rsplit("/", 1)[0])
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: frostline\\nVersion: 0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\\nfrostline = tiny:main\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name

def build_editable(directory, config_settings=None, metadata_directory=None):
    return _wheel(directory)
"""


def setup_module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_environment", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass
class Checkout:
    """A checkout small enough to be set up in a moment."""

    root: Path
    environ: dict[str, str]

    @property
    def log(self) -> Path:
        return Path(self.environ["UV_LOG"])

    @property
    def stamp(self) -> Path:
        return self.root / ".venv" / "made-from"

    def start(self, *arguments: str, cwd: Path | None = None, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.root / "scripts" / "frostline", *arguments],
            cwd=cwd or self.root.parent,
            env=self.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # a suite that runs in the background may have been told to ignore an interrupt, and would pass that on
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            text=True,
        )

    def run(self, *arguments: str, cwd: Path | None = None, code: int = 0, **environ: str) -> tuple[str, str]:
        process = self.start(*arguments, cwd=cwd, **environ)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err
        return out, err

    def asked(self) -> list[str]:
        """What uv was asked since the last time, in short."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        kinds = {"venv --quiet": "venv", "--editable": "project", "requirements.txt": "packages"}
        return [next((kind for mark, kind in kinds.items() if mark in line), "build tools") for line in lines]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root = tmp_path / "my clone (1)"
    shutil.copytree(SCRIPTS, root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "requirements.txt").write_text("setuptools==84.2.1 \\\n    --hash=sha256:00\n    # via torch\n")
    (root / "pyproject.toml").write_text("[project]\nname = 'frostline'\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python3.13").symlink_to(os.path.realpath(sys.executable))
    (programs / "uv").write_text(UV)
    (programs / "uv").chmod(0o755)
    (tmp_path / "home").mkdir()
    environ = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "UV_LOG": str(tmp_path / "uv.log"),
        "BASE_PYTHON": os.path.realpath(sys.executable),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return Checkout(root, environ)


MADE = ["venv", "build tools", "packages", "project"]


def test_first_call_makes_the_environment_and_runs_the_command_where_the_caller_is(checkout, tmp_path):
    elsewhere = tmp_path / "some where"
    elsewhere.mkdir()
    out, err = checkout.run("train", "data.root=my pictures (2)", "name='ä b'", cwd=elsewhere)
    assert out.splitlines() == [str(elsewhere), "train", "data.root=my pictures (2)", "name='ä b'"]
    assert checkout.asked() == MADE
    for said in ("making .venv with Python", "pinned packages", ".venv is ready after"):
        assert said in err


def test_second_call_starts_nothing_and_says_nothing(checkout):
    checkout.run()
    checkout.asked()
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        out, err = checkout.run("inspect")
        seconds.append(time.perf_counter() - started)
        assert (err, out.splitlines()[1:]) == ("", ["inspect"])
    assert checkout.asked() == []
    assert min(seconds) < 0.25


def test_packages_come_with_hashes_and_nothing_is_built_with_unpinned_tools(checkout):
    checkout.run()
    venv, *installs = checkout.log.read_text().splitlines()
    assert f"--python {os.path.realpath(sys.executable)}" in venv
    assert all("--no-build-isolation" in line for line in installs)
    assert ["--require-hashes" in line for line in installs] == [True, True, False]
    assert "--no-deps" in installs[-1]


def test_changed_requirements_make_the_environment_anew(checkout):
    checkout.run()
    checkout.asked()
    left_over = checkout.root / ".venv" / "lib" / "dropped.py"
    left_over.parent.mkdir()
    left_over.touch()
    with open(checkout.root / "requirements.txt", "a") as file:
        file.write("six==1.17.0 --hash=sha256:11\n")
    checkout.run()
    assert checkout.asked() == MADE
    assert not left_over.exists()


def test_changed_pyproject_installs_the_project_alone(checkout):
    checkout.run()
    checkout.asked()
    with open(checkout.root / "pyproject.toml", "a") as file:
        file.write("version = '2'\n")
    checkout.run()
    assert checkout.asked() == ["project"]
    checkout.run()
    assert checkout.asked() == []


def test_moved_checkout_makes_the_environment_anew(checkout):
    checkout.run()
    checkout.asked()
    checkout.root = checkout.root.rename(checkout.root.with_name("elsewhere"))
    checkout.run()
    assert checkout.asked() == MADE


def test_interpreter_that_is_gone_makes_the_environment_anew(checkout, tmp_path):
    base = tmp_path / "python-of-yesterday"
    base.symlink_to(os.path.realpath(sys.executable))
    checkout.run(BASE_PYTHON=str(base))
    checkout.asked()
    base.unlink()
    checkout.run()
    assert checkout.asked() == MADE


@pytest.mark.parametrize("step", ["venv", "requirements.txt", "--editable"])
def test_failed_step_is_shown_and_leaves_nothing_that_looks_whole(checkout, step):
    out, err = checkout.run("train", code=5, UV_FAILS_AT=step)
    assert out == ""
    assert "no such distribution" in err
    assert "error: the set-up of .venv stopped at" in err
    assert "Traceback" not in err
    assert not checkout.stamp.exists()
    checkout.asked()
    checkout.run("train")
    assert checkout.asked() == MADE


def test_failed_update_is_not_taken_for_whole(checkout):
    checkout.run()
    with open(checkout.root / "pyproject.toml", "a") as file:
        file.write("version = '2'\n")
    checkout.run(code=5, UV_FAILS_AT="--editable")
    checkout.asked()
    checkout.run()
    assert checkout.asked() == MADE


def test_two_at_once_make_one_environment(checkout):
    both = [checkout.start("train", UV_SLEEP="0.3") for _ in range(2)]
    ends = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [out.splitlines()[1:] for out, _ in ends] == [["train"], ["train"]]
    assert sorted("waiting" in err for _, err in ends) == [False, True]
    assert checkout.asked() == MADE


def test_interrupt_stops_the_step_and_leaves_nothing_that_looks_whole(checkout):
    process = checkout.start("train", UV_SLEEP="60")
    while not checkout.log.exists():
        time.sleep(0.01)
    script = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(script.stdout), 2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not checkout.stamp.exists()


def test_environment_may_lie_on_another_disk(checkout, tmp_path):
    other = tmp_path / "scratch"
    (other / "old").mkdir(parents=True)
    (checkout.root / ".venv").symlink_to(other)
    checkout.run()
    assert (other / "made-from").is_file()
    assert not (other / "old").exists()


def test_called_through_a_link(checkout, tmp_path):
    link = tmp_path / "frostline"
    link.symlink_to(checkout.root / "scripts" / "frostline")
    done = subprocess.run([link, "train"], env=checkout.environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["train"]
    assert checkout.stamp.is_file()


def only(programs: Path, *names: str) -> str:
    """A PATH that holds the programs ``names`` and no other."""
    for name in ("bash", "cat", "cmp", "dirname", "env", "readlink", *names):
        found = shutil.which(name)
        assert found, name
        (programs / name).symlink_to(found)
    return str(programs)


def test_without_python_it_says_what_is_needed(checkout, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    out, err = checkout.run("train", code=1, PATH=only(empty))
    assert out == ""
    assert err.startswith("error: Frostline needs Python 3.11 or later")
    assert "put it on PATH" in err
    assert not (checkout.root / ".venv").exists()


def test_python_that_is_too_old_is_named(checkout, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    path = only(old)
    # answers the question for its version, and fails the one whether it will do
    (old / "python3").write_text('#!/bin/bash\n[[ "$*" == *sys.executable* ]] && echo 3.9.2 at /opt/python3\n')
    (old / "python3").chmod(0o755)
    _, err = checkout.run("train", code=1, PATH=path)
    assert "python3 is 3.9.2 at /opt/python3, without venv" in err


@pytest.mark.slow
@pytest.mark.parametrize("home", ["empty folder", "unset"])
def test_plain_venv_and_pip(checkout, tmp_path, home):
    (checkout.root / "requirements.txt").write_text("# nothing to fetch\n")
    (checkout.root / "backend.py").write_text(BACKEND)
    (checkout.root / "tiny.py").write_text("import sys\ndef main():\n    print(sys.prefix, *sys.argv[1:], sep='\\n')\n")
    (checkout.root / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    (tmp_path / "bin" / "uv").unlink()
    # the caller's own settings must not reach into the environment
    checkout.environ |= {"PIP_NO_INDEX": "1", "PIP_USER": "1", "PYTHONPATH": str(tmp_path), "VIRTUAL_ENV": "/nowhere"}
    checkout.environ["PATH"] = only(tmp_path / "bin", "rm", "sh")
    if home == "unset":
        del checkout.environ["HOME"]
    out, err = checkout.run("train", "a b")
    assert out.splitlines() == [str(checkout.root / ".venv"), "train", "a b"]
    assert re.search(r"making \.venv with Python 3\.\d+\.\d+ and pip", err)
    assert list((tmp_path / "home").iterdir()) == []
    out, err = checkout.run("train")
    assert err == ""


@pytest.mark.parametrize("script", ENTRY_POINTS)
def test_entry_points_are_bash_and_can_be_executed(script):
    path = ROOT / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)


def test_pins_takes_whole_entries():
    module = setup_module_of(SCRIPTS / "setup_environment.py")
    before = "set==1 \\\n    --hash=sha256:aa\n    # via x\n"
    entry = "setuptools==84 ; python_version > '3' \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\n"
    after = "    # via torch\nsetuptools-scm==1 \\\n    --hash=sha256:dd\n"
    assert module.pins(before + entry + after, ["setuptools", "wheel"]) == entry


def locked() -> dict[str, str]:
    """Versions by name in requirements.txt; fails where an entry is not pinned or has no hash."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        entry = re.fullmatch(r"([a-z0-9-]+)==(\S+)( ; [^#]+?)?((\s+--hash=sha256:[0-9a-f]{64})+)", line.rstrip())
        assert entry, line[:80]
        found[entry[1]] = entry[2]
    return found


def test_requirements_are_pinned_and_hashed_and_name_no_host():
    assert len(locked()) > 50
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|^\s*-(?!-hash)|^\s*--(?!hash)", text, re.MULTILINE)


def test_requirements_satisfy_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in project["dependencies"] + extras["dev"] + extras["mlflow"]]
    versions = locked()
    unmet = [
        str(requirement)
        for requirement in wanted
        if not requirement.specifier.contains(versions.get(requirement.name.lower().replace("_", "-"), "0"))
    ]
    assert unmet == [], "scripts/lock brings requirements.txt up to date"
    assert "setuptools" in versions, "builds among the pins need it before they start"
