"""What is found out and written down once a model is selected: scores with intervals, calibration, speed."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor, nn

from frostline.data import ImageData
from frostline.data.fingerprint import split_fingerprint
from frostline.data.splits import ImageSplit, SplitView
from frostline.data.stratify import share_of, subset
from frostline.errors import DataError, StorageError
from frostline.evaluation import (
    Estimate,
    Evaluation,
    Speed,
    Temperature,
    evaluate_predictions,
    fit_temperature,
    gap,
    measure_speed,
    prediction_table,
    write_predictions,
)
from frostline.features import in_eval
from frostline.runs.folder import RunFolder, write_json
from frostline.runs.ledger import Looks, look
from frostline.tasks import ScoringTask
from frostline.writing import write_text

SAMPLE = "train_sample"
"""The name of the training pictures that are scored as validation is."""

_SAMPLE_LEAST, _SAMPLE_MOST = 100, 1000


@dataclass
class Findings:
    """What is known of a selected model; filled in as its splits are scored.

    Attributes:
        scores: flat ``split/name``, as in ``metrics.json``.
        evaluations: of each split, on the first process alone.
        temperature: fitted on validation, where there is one.
        gap: how much better the model does on training pictures than on validation.
        looks: how often the test split was scored.
        speed: of the model.
    """

    scores: dict[str, float] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    temperature: Temperature | None = None
    gap: dict[str, Estimate] = field(default_factory=dict)
    looks: Looks | None = None
    speed: Speed | None = None

    def calibrate(self, task: ScoringTask, folder: RunFolder) -> None:
        """Fit the temperature to the predictions of validation, which were just made, and keep it in the run."""
        found = task.predictions
        assert found is not None
        self.temperature = fit_temperature(found.labels.numpy(), found.probabilities.numpy())
        write_temperature(folder, self.temperature)

    def describe(
        self,
        task: ScoringTask,
        split: str,
        pictures: ImageSplit,
        classes: tuple[str, ...],
        folder: RunFolder,
        *,
        written_as: str | None = None,
    ) -> None:
        """Write what the predictions that were just made say, and the predictions themselves.

        Args:
            task: has them.
            split: its name.
            pictures: of the split.
            classes: their names.
            folder: of the run.
            written_as: the name of the files; None takes that of the split.
        """
        found = task.predictions
        assert found is not None
        names = [pictures.name(index) for index in found.indices.tolist()]
        table = prediction_table(names, found.probabilities, classes, found.labels.tolist())
        name = written_as or split
        write_predictions(table, folder.predictions(name))
        evaluation = evaluate_predictions(split, found.labels, found.probabilities, classes, self.temperature)
        self.evaluations[split] = evaluation
        looks = {} if self.looks is None else {"looks": self.looks.record()}
        write_evaluation(folder, name, {**evaluation.record(), **looks})

    def compare(self, folder: RunFolder, of: int) -> None:
        """Set the sample of the training pictures against validation.

        Args:
            folder: of the run.
            of: how many training pictures there are.
        """
        self.gap = gap(self.evaluations[SAMPLE], self.evaluations["val"])
        self.scores |= {f"gap/{name}": found.value for name, found in self.gap.items()}
        record = self.evaluations[SAMPLE].record()
        more = {"sample_of": of, "gap_to_val": {name: found.record() for name, found in self.gap.items()}}
        write_evaluation(folder, SAMPLE, {**record, **more})

    def flat(self) -> dict[str, float]:
        """What ``metrics.json`` holds: the scores, and of validation and test those that no metric has given.

        A score that is not defined is not there.
        """
        own = {name: value for split in self.evaluations.values() for name, value in split.flat().items()}
        found = {name: value for name, value in own.items() if not name.startswith(SAMPLE)} | self.scores
        return {name: value for name, value in found.items() if not math.isnan(value)}


def validate(trainer: Trainer, task: ScoringTask, data: ImageData, split: str) -> dict[str, float]:
    """The scores of a split outside of training, as those of validation; their names begin with that of the split."""
    task.val_scores.split = split
    try:
        found = trainer.validate(task, dataloaders=data.loader(split), verbose=False)[0]
    finally:
        task.val_scores.split = "val"
    return {name: float(value) for name, value in found.items()}


def score_test(
    trainer: Trainer,
    task: ScoringTask,
    data: ImageData,
    folder: RunFolder,
    found: Findings,
    *,
    command: str,
    output: str,
) -> None:
    """Score the test split, write the look down in the ledger, and what the predictions say in the run.

    Args:
        trainer: which scores.
        task: with the model that was selected, which is in ``model/`` already.
        data: with a test split.
        folder: of the run.
        found: what is known of the model; grows.
        command: whose look it is.
        output: the output folder that the run's config names.
    """
    pictures = data.splits["test"]
    scores = trainer.test(task, dataloaders=data.loader("test"), verbose=False)[0]
    found.scores |= {name: float(value) for name, value in scores.items()}
    if trainer.is_global_zero:
        found.looks = look(folder, split_fingerprint(pictures), pictures=len(pictures), command=command, output=output)
        found.describe(task, "test", pictures, data.classes, folder)


def with_sample(data: ImageData) -> ImageData:
    """The same data with a split `SAMPLE`: training pictures without augmentation, as many as validation has.

    They are at least 100 and at most 1000, as far as there are so many, stratified by class, and chosen by what they
    contain: the same in every run on these data. With ``on_error=skip`` they are read beforehand, and one that cannot
    be is left out, on every process alike.
    """
    train, held_out = data.splits["train"], data.splits["val"]
    wanted = min(max(len(held_out), _SAMPLE_LEAST), _SAMPLE_MOST, len(train))
    sampled = copy.copy(data)
    sample = subset(train, share_of(wanted / len(train)), seed=0)
    sampled.splits = {**data.splits, SAMPLE: _readable(sample) if data.on_error == "skip" else sample}
    # features of the training pictures are those of their augmented views
    sampled.feeding = None
    return sampled


def _readable(pictures: ImageSplit) -> ImageSplit:
    def is_read(index: int) -> bool:
        try:
            pictures.image(index)
        except DataError:
            return False
        return True

    return SplitView(pictures, np.array([index for index in range(len(pictures)) if is_read(index)], np.int64))


def speed_of(trainer: Trainer, model: nn.Module, *, size: tuple[int, int, int], batch_size: int, last: bool) -> Speed:
    """How fast a model is on the trainer's device and in its precision, uncompiled.

    Args:
        trainer: which has scored it.
        model: takes ``[B, C, H, W]``.
        size: C, H, W.
        batch_size: of the throughput.
        last: whether it takes channels_last.
    """
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    before = next(model.parameters()).device

    def forward(images: Tensor) -> Any:
        if last:
            images = images.contiguous(memory_format=torch.channels_last)
        with precision.forward_context():
            # forward itself: a compiled model would be compiled anew for each batch size
            return model.forward(precision.convert_input(images))

    with in_eval(model), placed_on(model, device, before):
        return measure_speed(forward, size, batch_size=batch_size, device=device)


@contextlib.contextmanager
def placed_on(model: nn.Module, device: torch.device, before: torch.device) -> Iterator[None]:
    """A model on a device while this holds, and ``before`` and after on another."""
    model.to(device)
    try:
        yield
    finally:
        model.to(before)


def write_temperature(folder: RunFolder, found: Temperature) -> None:
    """Write ``calibration.json``."""
    record = {
        "temperature": found.value,
        "fitted_on": "val",
        "pictures": found.pictures,
        "reason": found.reason or None,
    }
    write_json(folder.calibration, record)


def read_temperature(folder: RunFolder) -> Temperature | None:
    """The temperature of a run; None where it has none, as before there were any.

    Raises:
        StorageError: ``calibration.json`` is damaged.
    """
    if not folder.calibration.is_file():
        return None
    try:
        record = json.loads(folder.calibration.read_text(encoding="utf-8"))
        found = Temperature(float(record["temperature"]), int(record["pictures"]), str(record["reason"] or ""))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{folder.calibration} cannot be read: {error}", mend="Remove it.") from error
    if not (math.isfinite(found.value) and found.value > 0):
        raise StorageError(f"{folder.calibration}: a temperature of {found.value}", mend="Remove it.")
    return found


def temperature_of(folder: RunFolder) -> float:
    """What the logits of a run are divided by for calibrated probabilities; 1 where nothing was fitted.

    Raises:
        StorageError: ``calibration.json`` is damaged.
    """
    found = read_temperature(folder)
    return 1.0 if found is None else found.value


def forget_scores(folder: RunFolder) -> None:
    """Remove predictions and evaluations, which are of a model that was selected before a run went on."""
    for path in (*folder.path.glob("predictions/*.parquet"), *folder.path.glob("evaluation/*.json")):
        path.unlink()


def write_evaluation(folder: RunFolder, split: str, record: dict[str, Any]) -> None:
    """Write ``evaluation/SPLIT.json``: a line for each score, each class and each row of the confusion."""
    write_text(folder.evaluation(split), _as_lines(record))


def _as_lines(record: dict[str, Any]) -> str:
    entries = (f"  {_compact(key)}: {_rows(value)}" for key, value in record.items())
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _rows(value: Any) -> str:
    if isinstance(value, dict) and value:
        rows = [f"    {_compact(key)}: {_compact(item)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n  }"
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"    {_compact(item)}" for item in value) + "\n  ]"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def write_speed(folder: RunFolder, found: Speed) -> None:
    """Write ``evaluation/speed.json``."""
    write_json(folder.speed, found.record())
