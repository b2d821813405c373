"""The throw-away environment of the peers: an interpreter that sees the packages of this one, and fastai beside them.

What is shared (torch, timm, lightning) is the same version for all by being the same files, and costs no disk.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"


class InstallError(Exception):
    """The environment could not be made."""


def make_environment(folder: Path) -> str:
    """The interpreter of a new environment in ``folder``.

    Raises:
        InstallError: with the last line of what failed.
    """
    uv = shutil.which("uv")
    made = [uv, "venv", "--quiet", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
    _do([*made, str(folder)])
    python = str(folder / "bin" / "python")
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (Path(own) / "frostline_peers.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    _do([*install, "--quiet", "--no-deps", "-r", str(REQUIREMENTS)])
    return python


def _do(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise InstallError(f"{' '.join(command[:4])} ...: {lines[-1] if lines else done.returncode}")
