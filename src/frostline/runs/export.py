"""``frostline export run=RUN format=onnx``: a finished model in another format, shown to be that model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from frostline.backbones import SavedModel, holds_module, load_timm_folder
from frostline.config import check_targets, load_config, trusted_targets
from frostline.errors import ConfigError, FrostlineError, StorageError, suggestion
from frostline.exporting import (
    FORMATS,
    Facts,
    Parity,
    PictureClassifier,
    Run,
    Timing,
    compare,
    eager,
    labels_text,
    onnx_session,
    push,
    quantize,
    require_agreement,
    require_package,
    require_parity,
    size_of,
    time_side_by_side,
)
from frostline.runs.cards import architecture, write_card
from frostline.runs.evaluate import run_data
from frostline.runs.exported_input import as_input
from frostline.runs.folder import RunFolder, write_json
from frostline.runs.parts import SUPPLIED
from frostline.runs.predict_inputs import InputSpec, named_pictures
from frostline.runs.saved import load_saved
from frostline.runs.scoring import temperature_of
from frostline.runs.sizes import readable_size
from frostline.runs.sweep import markdown
from frostline.runs.tables import print_table
from frostline.types import Preprocessing
from frostline.writing import write_text

CHOICES = (*FORMATS, "timm")
QUANTISED = ("onnx", "openvino")
BATCH = 32


@dataclass(frozen=True)
class Exported:
    """A format that was written: what it is called, its folder, how it compares, and the file run."""

    name: str
    folder: Path
    parity: Parity
    run: Run

    def sentence(self) -> str:
        """What a card says of it."""
        same = f"the same label for {self.parity.agreement:.1%} of {self.parity.pictures} pictures"
        return f"{self.name}: {same}, logits within {self.parity.difference:.1g} of the model's"


def export(config: DictConfig) -> None:
    """Write the model in each format that is asked for, compare it on real pictures, and say what it weighs.

    Raises:
        ConfigError: there is no such run or format, or a package is missing.
        ExportError: what was written is not the model.
        StorageError: a file cannot be written.
    """
    folder = RunFolder.existing(config.run)
    formats = _formats(config)
    saved = load_saved(folder, trust=config.trust, config_dirs=config.config_dirs)
    calibrated = Facts(saved.labels, saved.preprocessing, architecture(folder), temperature_of(folder))
    facts = calibrated if config.calibrated else replace(calibrated, temperature=1.0)
    model = PictureClassifier(saved.model, saved.preprocessing, facts.temperature)
    shown, calibration = _pictures(config, folder, saved)
    target = Path(config.output).expanduser().absolute() if config.output else folder.path / "export"
    exported = [_export(name, model, facts, saved, folder, target, shown) for name in formats]
    if config.int8:
        exported += [
            _export_int8(name, model, facts, target, shown, calibration, config.agreement)
            for name in formats
            if name in QUANTISED
        ]
    timings = time_side_by_side(
        [eager(model), *(one.run for one in exported)],
        torch.cat(shown)[:BATCH],
        [size_of(folder.model), *(size_of(one.folder) for one in exported)],
    )
    _tell(exported, timings, target)
    files = [(one.folder.name, one.sentence()) for one in exported]
    card = write_card(folder, calibrated, folder.read_metrics(), files)
    if "timm" in formats:
        shutil.copy2(card, target / "timm" / card.name)
    print(f"card: {card}")
    if config.push:
        address = push(folder.model, config.push, private=config.private)
        print(f"pushed: {address}")


def _formats(config: DictConfig) -> list[str]:
    """The formats that ``format`` names, one or a list; each can be written here."""
    names = [config.format] if isinstance(config.format, str) else [str(name) for name in config.format or []]
    if not names:
        raise ConfigError("format= names none", mend=f"Choose of {', '.join(CHOICES)}.")
    if config.pictures < 1:
        raise ConfigError(f"pictures={config.pictures}: parity takes a picture", mend="Give 1 or more; 128 is usual.")
    for name in names:
        if name not in CHOICES:
            raise ConfigError(f"format={name} is none", mend=suggestion(name, CHOICES, known_as="formats"))
    if config.int8 and not set(names) & set(QUANTISED):
        raise ConfigError("int8=true is for onnx and openvino", mend="Add format=onnx, or leave int8 out.")
    for name in names:
        if name in FORMATS:
            FORMATS[name]().require()
    if config.int8:
        require_package("onnxruntime", "int8=true")
    return list(dict.fromkeys(names))


def _pictures(config: DictConfig, folder: RunFolder, saved: SavedModel) -> tuple[list[Tensor], list[Tensor]]:
    """Real pictures to compare on, and training pictures by which to quantise; each as batches of uint8.

    The labels are not looked at, so that the test split keeps its seal.
    """
    if config.images is not None:
        given = named_pictures(InputSpec(config.images)).split
        opened = _batches([given.image(at) for at in _spread(len(given), config.pictures)], saved.preprocessing)
        return opened, opened
    run = load_config(folder.config)
    check_targets(run, allowed=trusted_targets(config.config_dirs), trust=config.trust, supplied=SUPPLIED)
    try:
        data = run_data(run, division=folder.splits, root=config.root)
    except FrostlineError as error:
        mend = "Say where the pictures are now, root=FOLDER, or name others: images=FOLDER."
        raise type(error)(f"The pictures of the run cannot be read: {error.problem}", mend=mend) from error
    if config.split not in data.splits:
        mend = suggestion(config.split, data.splits, known_as="splits")
        raise ConfigError(f"split={config.split}: this data set has none", mend=mend)

    def some(split: str) -> list[Tensor]:
        pictures = data.splits[split]
        chosen = [pictures.image(at) for at in _spread(len(pictures), config.pictures)]
        return _batches(chosen, saved.preprocessing)

    return some(config.split), some("train") if config.int8 else []


def _spread(length: int, most: int) -> list[int]:
    """Up to ``most`` positions, evenly over a split, so that all classes are among them."""
    return sorted({round(at) for at in np.linspace(0, length - 1, min(length, most)).tolist()})


def _batches(pictures: Sequence[Any], preprocessing: Preprocessing) -> list[Tensor]:
    """``[B, C, H, W]`` uint8; the first batch is of one picture, the last as it comes."""
    prepare = as_input(preprocessing)
    whole = torch.stack([prepare(picture) for picture in pictures])
    return [whole[:1], *(whole[start : start + BATCH] for start in range(1, len(whole), BATCH))]


def _export(
    name: str,
    model: PictureClassifier,
    facts: Facts,
    saved: SavedModel,
    folder: RunFolder,
    target: Path,
    shown: Sequence[Tensor],
) -> Exported:
    print(f"export    {name} ...", flush=True)
    with _made(target / name) as partial:
        if name == "timm":
            run = _write_timm(folder, saved, partial)
        else:
            writer = FORMATS[name]()
            writer.write(model, facts, partial)
            run = writer.load(partial)
        parity = compare(eager(model), run, shown)
        require_parity(parity, name)
        write_text(partial / "labels.json", labels_text(facts.labels))
        write_json(partial / "facts.json", facts.metadata())
    return Exported(name, target / name, parity, run)


def _export_int8(
    name: str,
    model: PictureClassifier,
    facts: Facts,
    target: Path,
    shown: Sequence[Tensor],
    calibration: Sequence[Tensor],
    least: float,
) -> Exported:
    print(f"export    {name} int8, by {sum(map(len, calibration))} pictures ...", flush=True)
    with _made(target / f"{name}_int8") as partial:
        onnx, whole = FORMATS["onnx"](), partial / "whole"
        whole.mkdir()
        onnx.write(model, facts, whole)
        quantize(whole / onnx.file, partial / onnx.file, calibration)
        shutil.rmtree(whole)
        writer = FORMATS[name]()
        run = onnx_session(partial / onnx.file)
        if name == "openvino":
            writer.convert(partial / onnx.file, facts, partial)  # type: ignore[attr-defined]  # openvino's own
            (partial / onnx.file).unlink()
            run = writer.load(partial)
        parity = compare(eager(model), run, shown)
        require_agreement(parity, least, name)
        write_text(partial / "labels.json", labels_text(facts.labels))
        write_json(partial / "facts.json", facts.metadata())
    return Exported(f"{name} int8", target / f"{name}_int8", parity, run)


def _write_timm(folder: RunFolder, saved: SavedModel, partial: Path) -> Run:
    """Copy ``model/``, and load the copy."""
    if holds_module(folder.model):
        problem = "format=timm: the backbone of this run is a module that is not timm's"
        raise ConfigError(problem, mend=f"Its weights are in {folder.model}; another format needs no timm.")
    for file in sorted(folder.model.iterdir()):
        shutil.copy2(file, partial / file.name)
    copied = load_timm_folder(partial)
    return eager(PictureClassifier(copied.model, saved.preprocessing))


@contextmanager
def _made(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of an earlier export once it is whole.

    Raises:
        StorageError: something else is there, or it cannot be written.
    """
    if target.exists() and not (target / "facts.json").is_file():
        raise StorageError(f"{target} exists and is no export.", mend="Choose another place: output=FOLDER.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as partial:
            made = Path(partial) / target.name
            made.mkdir()
            yield made
            if target.exists():
                shutil.rmtree(target)
            made.rename(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror or error}") from error


def _tell(exported: Sequence[Exported], timings: Sequence[Timing], target: Path) -> None:
    """The table of sizes and times, on the screen and as ``export.md``."""
    header = ["format", "size", "one picture", "pictures a second", "largest difference", "same label"]
    rows = [["model (torch)", *_times(timings[0]), "", ""]]
    for one, timing in zip(exported, timings[1:], strict=True):
        same = f"{one.parity.pictures - len(one.parity.changed)} of {one.parity.pictures}"
        rows.append([one.name, *_times(timing), f"{one.parity.difference:.1g}", same])
    print_table(header, rows)
    print(f"on the CPU, {torch.get_num_threads()} threads; batches of up to {BATCH}, medians")
    write_text(target / "export.md", markdown(header, rows))
    for one in exported:
        print(f"{one.name}: {one.folder}")


def _times(timing: Timing) -> list[str]:
    return [readable_size(timing.size), f"{timing.latency * 1000:.1f} ms", f"{timing.throughput:.0f}"]
