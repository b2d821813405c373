"""``frostline evaluate run=RUN split=test``: score a split of a finished run again."""

from __future__ import annotations

import time
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from frostline.config import build, check_targets, load_config, spec_of, trusted_targets
from frostline.data import FILE_LIMIT, PIXEL_LIMIT, ImageData
from frostline.data.division import by_file, in_order, key_texts, keys_in
from frostline.data.fingerprint import split_fingerprint
from frostline.errors import ConfigError, DataError, suggestion
from frostline.runs.announcing import show_findings
from frostline.runs.folder import RunFolder
from frostline.runs.identity import recorded_splits
from frostline.runs.ledger import look
from frostline.runs.parts import SUPPLIED, make_loss, make_metrics, rank_count, takes_channels_last
from frostline.runs.saved import load_saved
from frostline.runs.scoring import Findings, read_temperature, speed_of, write_speed
from frostline.runs.trainers import scoring_trainer
from frostline.specs import SpeedSpec
from frostline.tasks import ScoringTask


def evaluate(config: DictConfig) -> dict[str, float]:
    """The scores of a split, from the run's ``model/`` and its data; predictions go to the run folder.

    Raises:
        ConfigError: there is no such run or split, or the run's config names a target that is not trusted.
        DataError: the classes of the data are not those of the model, or its pictures not those of the run.
    """
    if rank_count(config.trainer) != 1:
        raise ConfigError("evaluate runs on one device", mend="Use trainer=auto, cpu or gpu.")
    folder = RunFolder.existing(config.run)
    run = load_config(folder.config)
    check_targets(run, allowed=trusted_targets(config.config_dirs), trust=config.trust, supplied=SUPPLIED)
    started = time.perf_counter()
    saved = load_saved(folder, trust=config.trust, config_dirs=config.config_dirs)
    data = run_data(run, division=folder.splits, root=config.root, batch_size=config.batch_size)
    if config.split not in data.splits:
        raise ConfigError(
            f"split={config.split}: this data set has none",
            mend=suggestion(config.split, data.splits, known_as="splits"),
        )
    require_classes(data, saved.labels)
    same = require_pictures(data, config.split, folder, moved=config.root is not None)
    # a split may have transforms of its own, which belong to its scores
    augmentation = build(run.augment, "augment")
    data.prepare(saved.preprocessing, augmentation, seed=run.seed)
    for note in augmentation.notes([config.split]):
        print(f"note: {note}")
    task = scoring_task(run, data, saved.model, test_as=config.split)
    trainer = scoring_trainer(config.trainer)
    scores = trainer.test(task, dataloaders=data.loader(config.split), verbose=False)[0]
    found = Findings({name: float(value) for name, value in scores.items()}, temperature=read_temperature(folder))
    if config.split == "val" and same and found.temperature is None:
        found.calibrate(task, folder)
    pictures = data.splits[config.split]
    if config.split == "test":
        split = split_fingerprint(pictures)
        output = str(run.output) if "output" in run else None
        found.looks = look(folder, split, pictures=len(pictures), command="evaluate", output=output)
    shown_as = config.split if same else f"{config.split}-{split_fingerprint(pictures)[:8]}"
    found.describe(task, config.split, pictures, data.classes, folder, written_as=shown_as)
    found.speed = speed_of(
        trainer, saved.model, size=saved.preprocessing.size, batch_size=data.batch_size, last=task.channels_last
    )
    write_speed(folder, found.speed)
    show_findings(found)
    if found.looks is not None and found.looks.count > 1:
        print("note        this is a later look at the test split: report the first, and choose nothing by this one")
    seconds = time.perf_counter() - started
    print(f"{len(pictures)} pictures in {seconds:.1f} s; details: {folder.evaluation(shown_as)}")
    return {**found.flat(), "seconds": seconds}


def scoring_task(run: DictConfig, data: ImageData, model: nn.Module, *, test_as: str = "test") -> ScoringTask:
    """What scores a model by the loss and the metrics of a run.

    Args:
        run: its config.
        data: its data, loaded.
        model: takes ``[B, C, H, W]``.
        test_as: the name of the split that ``trainer.test`` scores.
    """
    return ScoringTask(
        model,
        make_loss(run, data.class_counts("train")),
        make_metrics(run.metrics, len(data.classes)),
        channels_last=takes_channels_last(spec_of(run.speed, SpeedSpec), model),
        test_as=test_as,
    )


# of a run's division nothing is derived again: its ``splits.csv`` says what was where
_UNDIVIDED = {
    "exclude": None,
    "split_file": None,
    "folds": None,
    "fold": None,
    "labels_per_class": None,
    "fraction": 1.0,
    "val_fraction": 0.0,
    "test_fraction": 0.0,
}


def run_data(
    run: DictConfig, *, division: Path | None = None, root: str | None = None, batch_size: int | None = None
) -> ImageData:
    """The data of a run, read again and divided as it was.

    Args:
        run: its config.
        division: its ``splits.csv``. Pictures that it lists are where it says; a split of which none is there is
            that of the data, where the data has one. Without such a file, the splits are derived again.
        root: where the pictures lie now.
        batch_size: None keeps the run's.

    Raises:
        ConfigError: ``root`` is given for data that lies in no folder.
        DataError: the data cannot be read.
    """
    node: DictConfig = run.data.copy()
    # a config that came with a run does not lift the limits
    for key, most in (("pixel_limit", PIXEL_LIMIT), ("file_limit", FILE_LIMIT)):
        if isinstance(node.get(key), int | float):
            node[key] = min(node[key], most)
    node.workers = "auto"
    if root is not None:
        if "root" not in node:
            raise ConfigError("root= is set, but the data of this run lies in no folder", mend="Leave root= out.")
        node.root = root
    if batch_size is not None:
        node.batch_size = batch_size
    known = division is not None and division.is_file()
    if known:
        node.update({key: value for key, value in _UNDIVIDED.items() if key in node})
    data: ImageData = build(node, "data")
    data.load()
    if known and division is not None:
        divided, _ = by_file(data.splits, data.classes, division, partly=True)
        data.splits = in_order({**data.splits, **divided})
    return data


def require_classes(data: ImageData, labels: tuple[str, ...]) -> None:
    """Raise where the data's classes are not the model's, in order."""
    if tuple(data.classes) != tuple(labels):
        different = sorted(set(data.classes) ^ set(labels)) or ["their order"]
        raise ConfigError(
            f"the data's classes are not the model's; they differ in {', '.join(different[:5])}",
            mend="Point root=FOLDER at pictures of the classes that the run was trained on.",
        )


def require_pictures(data: ImageData, split: str, folder: RunFolder, *, moved: bool) -> bool:
    """Whether a split has the pictures and labels that the run had.

    Args:
        data: loaded.
        split: which is to be scored.
        folder: of the run, whose ``provenance.json`` has the fingerprint of each split.
        moved: whether the person named other pictures on purpose.

    Raises:
        DataError: it has others, and was not ``moved``.
    """
    known = recorded_splits(folder).get(split)
    if known is None or known == split_fingerprint(data.splits[split]):
        return True
    said = f"the pictures or labels of the {split} split are not those that the run had"
    if not moved:
        raise DataError(
            f"split={split}: {said}.",
            mend="Put them back, or name the pictures that you want to score all the same: root=FOLDER.",
        )
    print(f"note: {said}")
    trained = keys_in(folder.splits, "train") if split != "train" else set()
    if seen := sum(key in trained for key in key_texts(data.splits[split])):
        print(f"note: {seen} of them were trained on, so that the scores say too much")
    return False
