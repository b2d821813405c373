"""Makes ``.venv`` of a checkout from the pinned and hashed requirements; started by ``environment.sh``.

Needs the standard library alone. What it is doing goes to standard error, so that the output of the command that
follows stays clean. Exit codes: 0; 5 when a step failed (network, disk); 130 when interrupted.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# What a source distribution among the pins is built with. It is installed first and builds run in the environment
# itself: an isolated build would fetch its tools without a pin or a hash.
BUILD_TOOLS = ("setuptools",)
HEARTBEAT = 20.0
# variables of the caller that would send packages elsewhere or let foreign modules in
DROPPED = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_HASHES", "VIRTUAL_ENV")


class SetupError(Exception):
    """A step of the set-up ended with an error; what it printed has been shown."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Environment:
    """The virtual environment of the checkout at ``root``."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """Written last: an environment without it is half-made, whatever else is there."""
        return self.folder / "made-from"

    def packages_made_from(self) -> str:
        return f"{self.root}\n{(self.root / 'requirements.txt').read_text(encoding='utf-8')}"

    def made_from(self) -> str:
        """What the stamp says of a current environment; ``environment.sh`` composes the same."""
        return self.packages_made_from() + (self.root / "pyproject.toml").read_text(encoding="utf-8")

    def stamped(self) -> str:
        return self.stamp.read_text(encoding="utf-8") if self.python.exists() and self.stamp.is_file() else ""

    def clear(self) -> None:
        """Empty the folder rather than remove it: it may be a link to a larger disk."""
        self.folder.mkdir(exist_ok=True)
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def write_stamp(self) -> None:
        half = self.stamp.with_suffix(".part")
        half.write_text(self.made_from(), encoding="utf-8")
        half.replace(self.stamp)


@dataclass(frozen=True)
class Installer:
    """uv where it is on PATH, plain venv and pip otherwise."""

    environment: Environment
    uv: str | None

    @property
    def name(self) -> str:
        return "uv" if self.uv else "pip"

    def create(self) -> list[str]:
        # the interpreter itself, not a name that may come to mean another release, nor a virtual environment's
        python, folder = os.path.realpath(sys.executable), str(self.environment.folder)
        if self.uv:
            return [self.uv, "venv", "--quiet", "--no-project", "--allow-existing", "--python", python, folder]
        return [python, "-I", "-m", "venv", folder]

    def install(self, *arguments: str) -> list[str]:
        python = str(self.environment.python)
        if self.uv:
            return [self.uv, "pip", "install", "--quiet", "--python", python, "--no-build-isolation", *arguments]
        # byte code is written afterwards, on all cores
        head = [python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        return [*head, "--no-build-isolation", *arguments]

    def compile(self, *folders: Path) -> list[str]:
        head = [str(self.environment.python), "-I", "-m", "compileall", "-q", "-j", "0"]
        # a third of what is installed is the packages' own tests
        return [*head, "-x", r"/site-packages/.*/tests?/|/torch/testing/_internal/", *map(str, folders)]


@dataclass
class Reporter:
    """Runs the steps one after another and says which, and how long it has taken so far."""

    started: float

    def run(self, title: str, command: Sequence[str], *, may_fail: bool = False) -> None:
        environ = {key: value for key, value in os.environ.items() if key not in DROPPED} | {"PIP_USER": "0"}
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environ)
            code = self._wait(process, title)
            output.seek(0)
            printed = output.read().strip()
        if code and not may_fail:
            say(printed)
            raise SetupError(title)
        say(f"  {self.seconds():4.0f} s  {title}")

    def _wait(self, process: subprocess.Popen[bytes], title: str) -> int:
        while True:
            try:
                return process.wait(HEARTBEAT)
            except subprocess.TimeoutExpired:
                say(f"  {self.seconds():4.0f} s  … {title}")
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise

    def seconds(self) -> float:
        return time.monotonic() - self.started


def pins(requirements: str, names: Sequence[str]) -> str:
    """The entries of a requirements file that pin ``names``, with their hashes."""
    entry = r"^{}==[^\n]*\n(?:[ \t]+--hash=[^\n]*\n)*"
    found = [re.search(entry.format(re.escape(name)), requirements, re.MULTILINE) for name in names]
    return "".join(match.group() for match in found if match)


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the lock of the checkout's environment; a second process waits for the first."""
    with open(root / ".venv.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("frostline: another process is making .venv; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install_packages(installer: Installer, reporter: Reporter) -> None:
    environment = installer.environment
    requirements = environment.root / "requirements.txt"
    tools = pins(requirements.read_text(encoding="utf-8"), BUILD_TOOLS)
    environment.clear()
    reporter.run("virtual environment", installer.create())
    if tools:
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
            file.write(tools)
            file.flush()
            reporter.run("build tools", installer.install("--require-hashes", "-r", file.name))
    reporter.run("pinned packages", installer.install("--require-hashes", "-r", str(requirements)))
    # some packages carry files for other Pythons, which do not compile and are never imported
    reporter.run("byte code", installer.compile(environment.folder / "lib", environment.root / "src"), may_fail=True)


def install_project(installer: Installer, reporter: Reporter) -> None:
    root = installer.environment.root
    reporter.run("frostline itself", installer.install("--no-deps", "--editable", str(root)))


def make(root: Path) -> None:
    """Bring ``.venv`` up to date, doing no more than is needed.

    Raises:
        SetupError: a step ended with an error.
        OSError: the checkout cannot be written.
    """
    environment = Environment(root)
    with only_one(root):
        stamped = environment.stamped()
        if stamped == environment.made_from():
            return
        installer, reporter = Installer(environment, shutil.which("uv")), Reporter(time.monotonic())
        environment.stamp.unlink(missing_ok=True)
        if stamped.startswith(environment.packages_made_from()):
            say("frostline: pyproject.toml changed; installing frostline anew")
        else:
            version = ".".join(map(str, sys.version_info[:3]))
            say(f"frostline: making .venv with Python {version} and {installer.name}; several GB, once")
            install_packages(installer, reporter)
        install_project(installer, reporter)
        environment.write_stamp()
        say(f"frostline: .venv is ready after {reporter.seconds():.0f} s")


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    try:
        make(root)
    except SetupError as step:
        say(f"error: the set-up of .venv stopped at: {step}")
        say("  What went wrong stands above. The half-made .venv is not used; the same command starts it anew.")
        return 5
    except OSError as error:
        say(f"error: .venv cannot be made in {root}: {error}")
        return 5
    except KeyboardInterrupt:
        say("frostline: interrupted; the half-made .venv is not used")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
