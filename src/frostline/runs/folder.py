"""The run folder: made with one atomic ``mkdir``, never reused, whole only once ``metrics.json`` is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from frostline.errors import ConfigError, StorageError
from frostline.runs.locking import held, is_held
from frostline.writing import write_text


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, by what they hold."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, from which the run can be trained again."""
        return self.path / "config.yaml"

    @property
    def identity(self) -> Path:
        """What the run was asked to be, before it started; see `frostline.runs.identity`."""
        return self.path / "identity.json"

    @property
    def provenance(self) -> Path:
        """Code, packages, hardware, data fingerprint, weights."""
        return self.path / "provenance.json"

    @property
    def checkpoints(self) -> Path:
        """The best and the latest checkpoints, with their checksums."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The fine-tuned model as a timm folder."""
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        """The flat ``split/metric`` scores; written last."""
        return self.path / "metrics.json"

    @property
    def schedule(self) -> Path:
        """A row for each phase that was entered."""
        return self.path / "schedule.csv"

    @property
    def splits(self) -> Path:
        """Which picture is in which split; ``data.split_file`` takes it."""
        return self.path / "splits.csv"

    @property
    def failure(self) -> Path:
        """What went wrong, where something did."""
        return self.path / "failure.json"

    def predictions(self, split: str) -> Path:
        """A row for each picture of ``split``."""
        return self.path / "predictions" / f"{split}.parquet"

    def evaluation(self, split: str) -> Path:
        """What the predictions of ``split`` say: scores with intervals, classes, confusion, calibration."""
        return self.path / "evaluation" / f"{split}.json"

    @property
    def speed(self) -> Path:
        """How fast the model is, and where that was measured."""
        return self.path / "evaluation" / "speed.json"

    @property
    def calibration(self) -> Path:
        """The temperature of the model, fitted on validation."""
        return self.path / "calibration.json"

    @property
    def report(self) -> Path:
        """The run as one page."""
        return self.path / "report.html"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.metrics.is_file()

    def read_metrics(self) -> dict[str, float]:
        """The flat ``split/metric`` scores; empty while the run is not finished."""
        return dict(json.loads(self.metrics.read_text(encoding="utf-8"))) if self.finished else {}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the kernel lets go when this process dies.

        Raises:
            StorageError: another process trains in it, or the folder cannot be written.
        """
        with held(self._lock, what=str(self.path)):
            yield

    @property
    def locked(self) -> bool:
        """Whether a process trains in this folder right now."""
        return is_held(self._lock)

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    def refuse_links_out(self) -> None:
        """Refuse a run, of someone else perhaps, with a link to a file outside: a file written here would be that one.

        Raises:
            ConfigError: naming the first.
        """
        here = self.path.resolve()
        for path in sorted(self.path.rglob("*")):
            if path.is_symlink() and not path.is_dir() and not path.resolve().is_relative_to(here):
                raise ConfigError(f"{path} is a link to a file outside of the run", mend="Remove it, or copy the file.")

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """The folder of a finished run.

        Raises:
            ConfigError: there is none at ``path``.
        """
        folder = cls(Path(path).expanduser().absolute())
        if not folder.config.is_file():
            mend = "Name the folder that `frostline train` printed on its last line."
            raise ConfigError(f"run={path} is not a run: it has no config.yaml", mend=mend)
        if not folder.finished:
            raise ConfigError(f"run={path} did not finish: it has no metrics.json", mend="Train it again.")
        folder.refuse_links_out()
        return folder


def make_folder(parent: Path, label: str) -> Path:
    """A new folder ``<parent>/<date_time>-<label>``; two calls at the same moment get two folders.

    Raises:
        StorageError: the folder cannot be made.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1000):
            path = parent / (f"{stamp}-{label}" if attempt == 0 else f"{stamp}-{label}.{attempt}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        mend = "Choose another folder: output=FOLDER."
        raise StorageError(f"{parent} cannot hold a run: {error.strerror or error}", mend=mend) from error
    raise StorageError(f"{parent} holds 1000 runs of this second", mend="Try again.")


def overrides_hash(overrides: Sequence[str]) -> str:
    """Eight hexadecimal digits that tell runs of different overrides apart."""
    return hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON such that a file that is there is whole, and outlives a crash of the machine."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
