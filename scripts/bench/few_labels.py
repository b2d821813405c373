"""What the pre-trained default backbone is worth where labels are few, against the same net from scratch.

    python scripts/bench/few_labels.py [--labels 1 2 5] [--seeds 5] > table.md

Both get the same search over the training recipe, on validation, and the same budget: learning rate x augmentation,
then weight decay, from the best. A recipe is judged by its mean validation accuracy
over the tuning seeds. The chosen one is trained with each seed (which also picks the labelled pictures), and scored on
the test split: only then, and once. Prints a Markdown table; progress goes to standard error. Takes about half an
hour on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence

import torch

import frostline

Recipe = dict[str, str]

STARTS = {
    "from scratch": ["backbone=small_efficientnet"],
    "pre-trained": ["backbone=digits_efficientnet"],
}
FIRST = {"optimizer.lr": ["1e-3", "3e-3", "1e-2"], "augment": ["none", "light"]}
THEN = {"optimizer.weight_decay": ["0.5"]}
COMMON = {"steps": "200", "optimizer.weight_decay": "0.05", "lr": "cosine"}
TUNING_SEEDS = (100, 101)
CLASSES = 10
BATCH = 32


def train(start: Sequence[str], labels: int, recipe: Recipe, seed: int, split: str) -> float:
    """The accuracy of one run on ``val`` or ``test``, of the weights that validation selected."""
    steps_per_epoch = math.ceil(labels * CLASSES / BATCH)
    epochs = math.ceil(int(recipe["steps"]) / steps_per_epoch)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = frostline.train(
            [
                *start,
                *[f"{key}={value}" for key, value in recipe.items() if key != "steps"],
                "data=digits",
                f"data.labels_per_class={labels}",
                f"data.subset_seed={seed}",
                f"data.batch_size={BATCH}",
                f"seed={seed}",
                f"test={str(split == 'test').lower()}",
                "trainer=cpu",
                f"trainer.max_epochs={epochs}",
                f"trainer.check_val_every_n_epoch={max(1, epochs // 10)}",
                "callbacks=no_early_stopping",
                "logger=csv",
                f"output='{folder}'",
            ]
        )
        return run.metrics[f"{split}/accuracy"]


def judge(start: Sequence[str], labels: int, recipe: Recipe) -> float:
    """Mean validation accuracy over the tuning seeds."""
    score = statistics.mean(train(start, labels, recipe, seed, "val") for seed in TUNING_SEEDS)
    print(f"{labels} labels, {start[0]}, {recipe}: {score:.3f}", file=sys.stderr, flush=True)
    return score


def tune(start: Sequence[str], labels: int) -> Recipe:
    """The best recipe of the search; the same search for every start."""
    grid = [{**COMMON, **dict(zip(FIRST, values, strict=True))} for values in itertools.product(*FIRST.values())]
    scores = [judge(start, labels, recipe) for recipe in grid]
    best, score = max(zip(grid, scores, strict=True), key=lambda pair: pair[1])
    for key, values in THEN.items():
        for value in values:
            changed = {**best, key: value}
            if (other := judge(start, labels, changed)) > score:
                best, score = changed, other
    return best


def cell(accuracies: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds, in percent."""
    return f"{100 * statistics.mean(accuracies):.1f} ± {100 * statistics.stdev(accuracies):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 2, 5], help="labelled pictures per class")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds the chosen recipe is trained with")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| labels per class | " + " | ".join(STARTS) + " | gain, same seeds |")
    print("|---|" + "---|" * (len(STARTS) + 1), flush=True)
    for labels in options.labels:
        scores = {}
        for name, start in STARTS.items():
            recipe = tune(start, labels)
            scores[name] = [train(start, labels, recipe, seed, "test") for seed in range(options.seeds)]
            print(f"{labels} labels, {name}: {recipe}, test {scores[name]}", file=sys.stderr, flush=True)
        scratch, pretrained = scores.values()
        gains = [after - before for before, after in zip(scratch, pretrained, strict=True)]
        print(f"| {labels} | " + " | ".join(map(cell, scores.values())) + f" | {cell(gains)} |", flush=True)


if __name__ == "__main__":
    main()
