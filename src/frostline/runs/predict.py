"""``frostline predict run=RUN images=FOLDER output=FILE``: label pictures with a finished run."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import torch
from omegaconf import DictConfig

from frostline.data import evaluation_transform, find_pictures, open_picture
from frostline.errors import ConfigError, DataError
from frostline.evaluation import label_pictures, prediction_table, write_predictions
from frostline.runs.folder import RunFolder
from frostline.runs.saved import load_saved


def predict(config: DictConfig) -> None:
    """Write a table with a label and class probabilities for each picture.

    Raises:
        ConfigError: there is no such run, no such device, the output is neither ``.csv`` nor ``.parquet``, or the run
            is of a module that is not trusted.
        DataError: there is no picture, or one cannot be read.
    """
    folder = RunFolder.existing(config.run)
    output = Path(config.output).expanduser().absolute()
    if output.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"output={config.output}: predictions are .csv or .parquet", mend="Choose one of the two.")
    paths = named_pictures(Path(config.images).expanduser())
    saved = load_saved(folder, trust=config.get("trust", []), config_dirs=config.get("config_dirs", []))
    started = time.perf_counter()
    probabilities = label_pictures(
        saved.model,
        [functools.partial(open_picture, path) for path in paths],
        evaluation_transform(saved.preprocessing),
        batch_size=config.batch_size,
        device=device_of(config.device),
        progress=_progress(len(paths)),
    )
    write_predictions(prediction_table([str(path) for path in paths], probabilities, saved.labels), output)
    seconds = time.perf_counter() - started
    counts = torch.bincount(probabilities.argmax(dim=1), minlength=len(saved.labels))
    for name, count in zip(saved.labels, counts.tolist(), strict=True):
        print(f"  {name if name.isprintable() else repr(name)}: {count}")
    print(f"{len(paths)} pictures in {seconds:.1f} s ({len(paths) / seconds:.0f} a second)")
    print(f"predictions: {output}")


def named_pictures(source: Path) -> list[Path]:
    """The pictures that ``images=`` names: a file, a folder searched in depth, or a ``.txt`` list of paths.

    Raises:
        DataError: there is none.
    """
    if source.is_dir():
        found = [source / name for name in find_pictures(source)[0]]
    elif source.suffix == ".txt" and source.is_file():
        lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines()]
        found = [_beside(source, line) for line in lines if line]
    elif source.is_file():
        found = [source]
    else:
        mend = "Name a picture, a folder or a .txt list."
        raise DataError(f"images={source}: there is no such file or folder", mend=mend)
    if not found:
        raise DataError(f"images={source} holds no picture", mend="Name a folder with .jpg, .png or other pictures.")
    return found


def _beside(source: Path, line: str) -> Path:
    path = Path(line).expanduser()
    return path if path.is_absolute() else source.parent / path


def device_of(name: str) -> torch.device:
    """``auto``: CUDA where there is a card, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name} is not a device", mend="auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: this machine has no CUDA device", mend="device=cpu")
    return device


def _progress(total: int):  # type: ignore[no-untyped-def]  # a closure over a terminal
    import sys

    if not sys.stdout.isatty():
        return None

    def show(done: int) -> None:
        end = "\n" if done == total else "\r"
        print(f"{done}/{total} pictures", end=end, flush=True)

    return show
