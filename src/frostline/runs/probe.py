"""``frostline probe``: many heads at once on a frozen backbone, the best by validation, tested once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from frostline.config import save_config
from frostline.data import ImageData, write_division
from frostline.data.fingerprint import split_fingerprint
from frostline.data.progress import Progress
from frostline.errors import ConfigError
from frostline.evaluation import prediction_table, write_predictions
from frostline.metrics import SplitScores
from frostline.probing import Head, Linear, Scale, grid
from frostline.probing.references import Neighbors, logistic_regressions, nearest, votes
from frostline.probing.selecting import HEAD, Candidate, of_head, of_neighbors, of_regression, ranked
from frostline.probing.training import LabelledFeatures, scores_of, train_heads
from frostline.reports import probe_plot
from frostline.runs.announcing import input_line
from frostline.runs.folder import RunFolder, make_folder, overrides_hash, write_json
from frostline.runs.identity import config_hash
from frostline.runs.ledger import look
from frostline.runs.parts import class_weights, make_loss, make_metrics
from frostline.runs.probe_files import best_record, plot_of, table_rows, write_head, write_heads, write_model
from frostline.runs.probe_parts import ProbeParts, build_probe, check_probe, settings_of
from frostline.runs.provenance import provenance
from frostline.runs.tables import print_table
from frostline.specs import FeatureChoice, ProbeNode, Reference


def probe(config: DictConfig) -> dict[str, float]:
    """Compute the features once, train all heads, fit the references, select on validation, test once, write.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        FrostlineError: a part cannot be built, a picture not read, a file not written; no head has a finite loss.
    """
    started = time.perf_counter()
    node = check_probe(config)
    parts = build_probe(config, node)
    folder = _folder(config, parts)
    _announce(config, parts, node)
    probing = _Probing(config, node, parts)
    train = parts.train(node.features)
    val = parts.evaluated("val", node.features)
    candidates = [one for choice in node.features for one in probing.candidates(choice, train[choice], val[choice])]
    order = ranked(candidates, by_loss=config.monitor.metric == "val/loss")
    best = order[0]
    scores = probing.scores(best, "val", val[best.features])
    write_heads(folder.path / "heads.csv", candidates, best)
    probe_plot(folder.path / "probe.png", plot_of(candidates, best, config))
    model = _write_best(parts, folder, best, val[best.features])
    if config.test and "test" in parts.data.splits:
        scores |= probing.test(best, folder)
    scores |= {
        "candidates": float(len(candidates)),
        "seconds": time.perf_counter() - started,
        "seconds_features": parts.seconds,
        "seconds_heads": probing.seconds,
    }
    write_json(folder.metrics, scores)
    _show(order, scores, folder, node, (*_notes(order, node), model))
    return scores


class _Probing:
    """Heads and references of a probe, and what they reach.

    Attributes:
        seconds: that heads have taken.
    """

    def __init__(self, config: DictConfig, node: ProbeNode, parts: ProbeParts) -> None:
        counts = parts.data.class_counts("train")
        self._node, self._parts = node, parts
        self._classes = len(parts.data.classes)
        self._loss: nn.Module = make_loss(config, counts)
        self._class_weights = class_weights(config, counts)
        self._metrics = make_metrics(config.metrics, self._classes)
        self._settings = settings_of(config, node, parts.data)
        self._output = str(config.output)
        self.seconds = 0.0

    def candidates(self, choice: FeatureChoice, train: LabelledFeatures, val: LabelledFeatures) -> list[Candidate]:
        """All that learn on one choice of features."""
        plain = self._parts.plain(train)
        scale = Scale.of(plain.features) if self._node.standardize else None
        scaled_train, scaled_val = (_scaled(one, scale) for one in (train, val))
        heads = [head for head in grid(self._node) if head.features is choice]
        found = self._heads(heads, scaled_train, scaled_val, scale)
        if Reference.logistic in self._node.references:
            found += self._regressions(choice, self._parts.plain(scaled_train), scaled_val, scale)
        if Reference.knn in self._node.references:
            found += self._neighbors(choice, plain, val)
        return found

    def _heads(
        self, heads: Sequence[Head], train: LabelledFeatures, val: LabelledFeatures, scale: Scale | None
    ) -> list[Candidate]:
        started = time.perf_counter()
        progress = Progress(f"training {len(heads)} heads, epochs", self._node.epochs)
        trained = train_heads(
            heads,
            self._there(train),
            self._there(val),
            num_classes=self._classes,
            batches=self._parts.batches(),
            loss=self._loss,
            settings=self._settings,
            progress=progress.at,
        )
        progress.end()
        self._loss.cpu()
        self.seconds += time.perf_counter() - started
        return [of_head(one, _unscaled(one.linear, scale)) for one in trained]

    def _regressions(
        self, choice: FeatureChoice, train: LabelledFeatures, val: LabelledFeatures, scale: Scale | None
    ) -> list[Candidate]:
        node, found = self._node, []
        progress = Progress("logistic regression", len(node.logistic_c))
        for regression in logistic_regressions(
            train, node.logistic_c, iterations=node.logistic_iterations, class_weights=self._class_weights
        ):
            scores = scores_of(regression.linear.logits(val.features), val.labels, self._loss)
            found.append(of_regression(regression, choice, scores, _unscaled(regression.linear, scale)))
            progress.at(len(found))
        progress.end()
        return found

    def _neighbors(self, choice: FeatureChoice, train: LabelledFeatures, val: LabelledFeatures) -> list[Candidate]:
        known, found = self._there(train), []
        ks = [k for k in dict.fromkeys(self._node.knn_k) if k <= len(train.labels)]
        if not ks:
            return []
        similarity, labels = nearest(known, val.features, max(ks))
        for k in ks:
            for temperature in (self._node.knn_temperature, None):
                logits = votes(similarity, labels, self._classes, k, temperature)
                neighbors = Neighbors(known, self._classes, k, temperature)
                found.append(of_neighbors(neighbors, choice, scores_of(logits, val.labels, self._loss)))
        return found

    def scores(self, best: Candidate, split: str, known: LabelledFeatures) -> dict[str, float]:
        """The scores of a split by all metrics, as ``train`` has them."""
        logits = best.classifier.logits(known.features)
        scores = SplitScores(self._metrics, split)
        scores.update(logits.softmax(dim=1), known.labels, self._loss(logits, known.labels))
        return {name: float(value) for name, value in scores.compute().items()}

    def test(self, best: Candidate, folder: RunFolder) -> dict[str, float]:
        """Score the test split, which nothing has looked at before, and write the predictions."""
        data = self._parts.data
        known = self._parts.evaluated("test", [best.features])[best.features]
        probabilities = best.classifier.logits(known.features).softmax(dim=1)
        names = [data.splits["test"].name(index) for index in range(len(known.labels))]
        table = prediction_table(names, probabilities, data.classes, known.labels.tolist())
        write_predictions(table, folder.predictions("test"))
        fingerprint = split_fingerprint(data.splits["test"])
        print(look(folder, fingerprint, pictures=len(names), command="probe", output=self._output).sentence)
        return self.scores(best, "test", known)

    def _there(self, known: LabelledFeatures) -> LabelledFeatures:
        device = self._parts.device
        return LabelledFeatures(known.features.to(device), known.labels.to(device))


def _scaled(known: LabelledFeatures, scale: Scale | None) -> LabelledFeatures:
    return known if scale is None else LabelledFeatures(scale(known.features), known.labels)


def _unscaled(linear: Linear, scale: Scale | None) -> Linear:
    return linear if scale is None else linear.after(scale)


def _folder(config: DictConfig, parts: ProbeParts) -> RunFolder:
    digest = overrides_hash([config_hash(config)])
    folder = RunFolder(make_folder(Path(config.output) / str(config.name), digest))
    config.folder = str(folder.path)
    save_config(config, folder.config)
    report = parts.backbone.report
    weights = {"source": report.source, "sha256": report.sha256, "loaded": report.loaded}
    write_json(
        folder.provenance,
        provenance(command="probe", seed=config.seed, data=parts.data.record(), weights=weights),
    )
    write_division(folder.splits, parts.data.classes, parts.data.splits)
    return folder


def _announce(config: DictConfig, parts: ProbeParts, node: ProbeNode) -> None:
    data: ImageData = parts.data
    counts = ", ".join(f"{split} {len(pictures)}" for split, pictures in data.splits.items())
    print(f"data      {len(data.classes)} classes; {counts}")
    for note in data.notes:
        print(f"          note: {note}")
    channels, height, width = parts.backbone.preprocessing.size
    print(f"backbone  {config.backbone.name} at {height}x{width}x{channels}; {parts.backbone.report.sentence()}")
    print(f"input     {input_line(data, parts.backbone.preprocessing)}")
    lists: dict[str, list[Any]] = {
        "features": node.features,
        "lr": node.lr,
        "weight decay": node.weight_decay,
        "seeds": node.seeds,
    }
    product = " x ".join(f"{len(dict.fromkeys(values))} {name}" for name, values in lists.items())
    print(f"heads     {len(grid(node))}: {product}; up to {node.epochs} epochs", flush=True)
    if not parts.backbone.report.loaded:
        print("note      the backbone has no trained weights: what is learned on it says little")


def _write_best(parts: ProbeParts, folder: RunFolder, best: Candidate, val: LabelledFeatures) -> str:
    """Write what was selected as far as it can be used elsewhere; a line on that."""
    if not isinstance(best.classifier, Linear):
        return "no model: nearest neighbors are no layer of the network; 'probe.references=[logistic]' leaves them out"
    write_head(folder.path / "head.safetensors", best.classifier)
    if best.features is not FeatureChoice.last:
        return (
            f"no model: the classifier of {type(parts.backbone.model).__name__} takes 'last', and the selected head "
            f"takes {best.features.value!r}; its weights are in head.safetensors"
        )
    try:
        write_model(parts, folder, best.classifier)
    except ConfigError as reason:
        return f"no model: {reason.problem}; its weights are in head.safetensors"
    return f"model: {folder.model}"


def _notes(order: Sequence[Candidate], node: ProbeNode) -> list[str]:
    """What a person should know of the grid."""
    notes = []
    head = next((one for one in order if one.kind == HEAD), None)
    if head is not None and len(set(node.lr)) > 1 and head.settings["lr"] in (min(node.lr), max(node.lr)):
        end = "smallest" if head.settings["lr"] == min(node.lr) else "largest"
        notes.append(
            f"note: the best head has the {end} learning rate of the grid; a wider probe.lr may find a better one"
        )
    if head is not None and head.best_epoch == node.epochs - 1:
        notes.append(
            "note: the best head still improved at its last epoch; a larger probe.epochs may find a better one"
        )
    return notes


def _show(
    order: Sequence[Candidate], scores: dict[str, float], folder: RunFolder, node: ProbeNode, lines: Sequence[str]
) -> None:
    write_json(folder.path / "best.json", best_record(order))
    print()
    print_table(["", "features", "", "val/accuracy", "val/loss", "epoch", ""], table_rows(order[: node.shown]))
    if len(order) > node.shown:
        print(f"and {len(order) - node.shown} more in heads.csv")
    print()
    print_table(*_score_table(scores, [split for split in ("val", "test") if f"{split}/loss" in scores]))
    for line in lines:
        print(line)
    print(f"run: {folder.path}", flush=True)


def _score_table(scores: dict[str, float], splits: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a metric of each split."""
    metrics = dict.fromkeys(name.partition("/")[2] for name in scores if name.partition("/")[0] in splits)

    def cell(metric: str, split: str) -> str:
        value = scores.get(f"{split}/{metric}")
        if value is None:
            return ""
        return f"{value:.0f}" if metric == "count" else f"{value:.4f}"

    return ["", *splits], [[metric, *(cell(metric, split) for split in splits)] for metric in metrics]
