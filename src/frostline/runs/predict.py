"""``frostline predict run=RUN images=FOLDER output=FILE``: label pictures with a finished run."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from frostline.errors import ConfigError, StorageError
from frostline.evaluation import Labeller, PredictionParts, prediction_columns
from frostline.evaluation.tables import require_known_suffix
from frostline.runs.folder import RunFolder
from frostline.runs.labelling import labeller_of
from frostline.runs.locking import held
from frostline.runs.predict_inputs import InputSpec, named_pictures
from frostline.runs.predict_table import PART, PredictedTable
from frostline.runs.saved import load_saved
from frostline.runs.scoring import read_temperature
from frostline.specs import OnError


def predict(config: DictConfig) -> None:
    """Write a table with a label and class probabilities for each picture.

    What is done is kept in parts beside the output until the table is whole, so that the same command goes on where it
    was stopped, however it was.

    Raises:
        ConfigError: there is no such run, no such device, the output is there already or neither ``.csv`` nor
            ``.parquet``, another value is out of its range, or the run is of a module that is not trusted.
        DataError: there is no picture, or one cannot be read.
        Interrupted: a signal came.
        StorageError: something cannot be written.
    """
    output = _free_output(config)
    folder = RunFolder.existing(config.run)
    saved = load_saved(folder, trust=config.trust, config_dirs=config.config_dirs)
    labeller = labeller_of(
        folder,
        saved,
        device=device_of(config.device),
        batch_size=config.batch_size,
        calibrated=config.calibrated,
        precision=config.precision,
    )
    _check(config, labeller)
    pictures = named_pictures(_input_spec(config))
    print(f"{len(pictures.split):,} pictures; {_calibration(folder, labeller, wanted=config.calibrated)}")
    place = output.with_name(output.name + ".parts")
    parts = PredictionParts(place)
    with held(place / ".lock", what=str(place)):
        if changed := parts.begin(_settings(config, folder, labeller)):
            print(f"note: all are labelled anew, since what {place} has was made otherwise: {'; '.join(changed)}")
        table = PredictedTable(
            labeller,
            pictures,
            parts,
            top_k=config.top_k,
            skips=config.on_error == OnError.skip,
            workers=config.workers,
        )
        try:
            table.write(output)
            parts.clear()
        finally:
            (place / ".lock").unlink(missing_ok=True)
            parts.close()


def _free_output(config: DictConfig) -> Path:
    output = Path(config.output).expanduser().absolute()
    require_known_suffix(output)
    if output.exists() and not config.overwrite:
        raise ConfigError(f"output={config.output} is there already", mend="Name another file, or overwrite=true.")
    return output


def _check(config: DictConfig, labeller: Labeller) -> None:
    classes = len(labeller.labels)
    if config.top_k is not None and not 1 <= config.top_k <= classes:
        raise ConfigError(f"top_k is {config.top_k}.", mend=f"Give a number from 1 to {classes}, the classes, or null.")
    if config.workers != "auto" and not (type(config.workers) is int and config.workers >= 0):
        raise ConfigError(f"workers is {config.workers!r}.", mend="Give a whole number from 0, or auto.")
    for name in ("pixel_limit", "file_limit"):
        if config[name] < 1:
            raise ConfigError(f"{name} is {config[name]}.", mend="Give a whole number of at least 1.")
    names = [*prediction_columns(labeller.labels, top_k=config.top_k), *config.keep_columns]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        mend = "Rename it in the table, or leave it out."
        raise ConfigError(f"keep_columns: the output would have two columns '{twice[0]}'", mend=mend)


def _input_spec(config: DictConfig) -> InputSpec:
    return InputSpec(
        config.images,
        image_column=config.image_column,
        keep_columns=tuple(config.keep_columns),
        image_key=config.image_key,
        all_there=config.on_error == OnError.stop,
        pixel_limit=config.pixel_limit,
        file_limit=config.file_limit,
    )


def _calibration(folder: RunFolder, labeller: Labeller, *, wanted: bool) -> str:
    if not wanted:
        return "probabilities are not calibrated (calibrated=false)"
    if read_temperature(folder) is None:
        return "probabilities are not calibrated: the run has no calibration.json, as without a val split"
    return f"probabilities are calibrated (temperature {labeller.temperature:.4g})"


def _settings(config: DictConfig, folder: RunFolder, labeller: Labeller) -> dict[str, Any]:
    """All that a part depends on beside its rows, as plain JSON types."""
    return {
        "model": _model_hash(folder),
        "temperature": labeller.temperature,
        "decode": "exact" if labeller.exact else "fast",
        "channels_last": labeller.channels_last,
        "batch_size": labeller.batch_size,
        "part": PART,
        "device": labeller.device.type,
        "precision": config.precision,
        "top_k": config.top_k,
        "keep_columns": list(config.keep_columns),
        "pixel_limit": config.pixel_limit,
        "file_limit": config.file_limit,
    }


def _model_hash(folder: RunFolder) -> str:
    """SHA-256 of the weights, the labels and the preprocessing; not of the model card, which export writes anew."""
    found = hashlib.sha256()
    try:
        for path in sorted(folder.model.iterdir()):
            if path.is_file() and path.suffix != ".md":
                with path.open("rb") as file:
                    found.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    except OSError as error:
        raise StorageError(f"{folder.model} cannot be read: {error.strerror}") from error
    return found.hexdigest()


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
