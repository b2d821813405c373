"""``frostline evaluate run=RUN split=test``: score a split of a finished run again."""

from __future__ import annotations

import time

from lightning import Trainer
from omegaconf import DictConfig

from frostline.config import build, check_targets, load_config, spec_of, trusted_targets
from frostline.data import FILE_LIMIT, PIXEL_LIMIT, Augmentation, ImageData
from frostline.errors import ConfigError, suggestion
from frostline.evaluation import prediction_table, write_predictions
from frostline.runs.announcing import show_scores
from frostline.runs.folder import RunFolder
from frostline.runs.parts import SUPPLIED, make_loss, make_metrics, rank_count
from frostline.runs.saved import load_saved
from frostline.specs import SpeedSpec
from frostline.tasks import ScoringTask


def evaluate(config: DictConfig) -> dict[str, float]:
    """The scores of a split, from the run's ``model/`` and its data; predictions go to the run folder.

    Raises:
        ConfigError: there is no such run or split, or the run's config names a target that is not trusted.
        DataError: the classes of the data are not those of the model.
    """
    if rank_count(config.trainer) != 1:
        raise ConfigError("evaluate runs on one device", mend="Use trainer=auto, cpu or gpu.")
    folder = RunFolder.existing(config.run)
    run = load_config(folder.config)
    check_targets(run, allowed=trusted_targets(config.config_dirs), trust=config.trust, supplied=SUPPLIED)
    started = time.perf_counter()
    saved = load_saved(folder, trust=config.trust, config_dirs=config.config_dirs)
    data = run_data(run, root=config.root, batch_size=config.batch_size)
    if config.split not in data.splits:
        raise ConfigError(
            f"split={config.split}: this data set has none",
            mend=suggestion(config.split, data.splits, known_as="splits"),
        )
    require_classes(data, saved.labels)
    data.prepare(saved.preprocessing, Augmentation(), seed=run.seed)
    task = ScoringTask(
        saved.model,
        make_loss(run, data.class_counts("train")),
        make_metrics(run.metrics, len(data.classes)),
        channels_last=spec_of(run.speed, SpeedSpec).channels_last,
        test_as=config.split,
    )
    scores = score(task, config, data)
    pictures = scores[f"{config.split}/count"]
    scores |= {"seconds": time.perf_counter() - started}
    write_evaluation(task, data, config.split, folder)
    show_scores(scores, [config.split])
    print(f"{pictures:.0f} pictures in {scores['seconds']:.1f} s; predictions: {folder.predictions(config.split)}")
    return scores


def run_data(run: DictConfig, *, root: str | None = None, batch_size: int | None = None) -> ImageData:
    """The data of a run, read again."""
    node: DictConfig = run.data.copy()
    # a config that came with a run does not lift the limits
    for key, most in (("pixel_limit", PIXEL_LIMIT), ("file_limit", FILE_LIMIT)):
        if isinstance(node.get(key), int | float):
            node[key] = min(node[key], most)
    node.workers = "auto"
    if root is not None:
        node.root = root
    if batch_size is not None:
        node.batch_size = batch_size
    data: ImageData = build(node, "data")
    data.load()
    return data


def require_classes(data: ImageData, labels: tuple[str, ...]) -> None:
    """Raise where the data's classes are not the model's, in order."""
    if tuple(data.classes) != tuple(labels):
        different = sorted(set(data.classes) ^ set(labels)) or ["their order"]
        raise ConfigError(
            f"the data's classes are not the model's; they differ in {', '.join(different[:5])}",
            mend="Point root=FOLDER at pictures of the classes that the run was trained on.",
        )


def score(task: ScoringTask, config: DictConfig, data: ImageData) -> dict[str, float]:
    """Score the split with Lightning's loop, on the device that ``trainer`` names."""
    trainer: Trainer = build(
        config.trainer,
        "trainer",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    scores = trainer.test(task, dataloaders=data.loader(config.split), verbose=False)[0]
    return {name: float(value) for name, value in scores.items()}


def write_evaluation(task: ScoringTask, data: ImageData, split: str, folder: RunFolder) -> None:
    """Write the predictions of the split that was just scored."""
    found = task.predictions
    assert found is not None
    names = [data.splits[split].name(index) for index in found.indices.tolist()]
    table = prediction_table(names, found.probabilities, data.classes, found.labels.tolist())
    write_predictions(table, folder.predictions(split))
