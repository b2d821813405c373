"""From the files of a finished run to its page."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from omegaconf import DictConfig, OmegaConf

from frostline.config import flat, load_config
from frostline.evaluation.picture_scores import Predictions, read_predictions
from frostline.reports import MATRIX_CLASSES, Confusion, Line, PageTable, RunPage, line_chart, reliability_chart
from frostline.runs.cards import architecture
from frostline.runs.compare_settings import printable, text_of
from frostline.runs.folder import RunFolder, read_json
from frostline.runs.identity import recorded_overrides, recorded_splits
from frostline.runs.ledger import Looks, counted
from frostline.runs.report_pictures import Gallery
from frostline.runs.scoring import SAMPLE

CLASSES = 200
"""Rows of a table of classes, above which it is cut."""

_SPLITS = ("val", "test", SAMPLE)
_PLOT_BYTES = 300_000
_GROUPS = ("adapter", "optimizer", "lr", "augment", "loss", "regularizer")
_OF_CALIBRATION = {"ece": "ECE", "brier": "Brier", "nll": "NLL"}


@dataclass(frozen=True)
class Recorded:
    """What a run has written of itself.

    Attributes:
        folder: of the run.
        config: of the run.
        provenance: see `frostline.runs.provenance`.
        scores: of ``metrics.json``.
        evaluations: split to ``evaluation/SPLIT.json``, as far as there are any.
    """

    folder: RunFolder
    config: DictConfig
    provenance: dict[str, Any]
    scores: dict[str, float]
    evaluations: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, folder: RunFolder) -> Recorded:
        """Read a run."""
        found = {split: read_json(folder.evaluation(split)) for split in _SPLITS}
        return cls(
            folder,
            load_config(folder.config),
            read_json(folder.provenance),
            folder.read_metrics(),
            {split: record for split, record in found.items() if record.get("scores")},
        )

    @property
    def split(self) -> str:
        """What the classes and the pictures of the page are of: the test split where it was scored."""
        return "test" if "test" in self.evaluations else "val"

    @property
    def shown(self) -> dict[str, Any]:
        """The evaluation of that split; empty where there is none."""
        return self.evaluations.get(self.split, {})

    def predictions(self) -> Predictions | None:
        """Those of that split, where they can be read."""
        return read_predictions(self.folder.predictions(self.split))

    def value(self, key: str) -> str:
        """A leaf of the config as a text, what comes from the environment as its name; empty where there is none."""
        found = self._leaves.get(key)
        return "" if found is None else text_of(found)

    @cached_property
    def _leaves(self) -> dict[str, Any]:
        return flat(self.config)


def page_of(run: Recorded, pictures: Gallery) -> RunPage:
    """The page of a run.

    Args:
        run: what it has written.
        pictures: of the split that ``run`` shows.
    """
    charts = [*_curves(run)]
    looks = _looks(run)
    notes = [note for record in run.evaluations.values() for note in record.get("notes", [])]
    return RunPage(
        title=f"{_backbone(run)} on {_data_name(run)}",
        facts=[*_facts(run, looks)],
        notes=notes,
        what=[*_what(run)],
        overrides=[printable(item) for item in recorded_overrides(run.folder)],
        thaw=_thaw(run.folder),
        curves=charts,
        phases=_phases(run),
        scores=_scores(run),
        gap=_gap(run),
        split=run.split,
        classes=_classes(run),
        confusion=_confusion(run, pictures),
        worst=pictures.worst,
        uncertain=pictures.uncertain,
        pictures_note=pictures.note,
        reliability=_reliability(run),
        calibration=_calibration(run),
        calibration_note=_temperature(run),
        data=[*_data(run, pictures)],
        cost=[*_cost(run)],
        provenance=[*_provenance(run)],
        footer=f"Made by Frostline from the files of {run.folder.path.name}; all is in metrics.json and evaluation/.",
    )


def _backbone(run: Recorded) -> str:
    try:
        return printable(architecture(run.folder))
    except (OSError, ValueError):
        return run.value("backbone.name")


def _data_name(run: Recorded) -> str:
    root = run.value("data.root") or run.value("data.table") or run.value("data.name")
    return Path(root).name if root else run.value("data._target_").rpartition(".")[2].removesuffix("Data").lower()


def _facts(run: Recorded, looks: Looks | None) -> Iterator[tuple[str, str]]:
    for split in ("test", "val"):
        if split in run.evaluations:
            yield f"{split} accuracy", _estimate(run.evaluations[split]["scores"]["accuracy"], percent=True)
    if "test" not in run.evaluations:
        yield "test split", "not scored"
    elif looks is not None:
        yield "looks", looks.sentence
    if names := _phase_names(run):
        yield "schedule", ", then ".join(names)
    yield "pictures", ", ".join(f"{name} {count:,}" for name, count in _counts(run).items())
    yield "classes", f"{len(run.shown['classes']):,}" if run.shown else ""
    if "epochs" in run.scores:  # a soup has none
        yield "training", f"{_time(run.scores['seconds'])}, {run.scores['epochs']:g} epochs"


def _looks(run: Recorded) -> Looks | None:
    """The looks at the test split until now; those that the run has written down where the ledger is gone."""
    split = recorded_splits(run.folder).get("test")
    output = run.value("output") or None
    now = None if split is None else counted(run.folder, split, output=output)
    if now is not None and now.count:
        return now
    record = run.evaluations.get("test", {}).get("looks")
    if not isinstance(record, dict) or "count" not in record:
        return now if now is not None and now.count else None
    return Looks(int(record["count"]), int(record.get("other_runs", 0)), Path(str(record.get("ledger", ""))))


def _phase_names(run: Recorded) -> list[str]:
    return [printable(str(name)) for name in OmegaConf.select(run.config, "freeze.phases", default=None) or {}]


def _counts(run: Recorded) -> dict[str, int]:
    splits = run.provenance.get("data", {}).get("splits", {})
    return {name: int(split["pictures"]) for name, split in splits.items() if isinstance(split, dict)}


def _what(run: Recorded) -> Iterator[tuple[str, str]]:
    weights = run.provenance.get("weights", {})
    yield "backbone", run.value("backbone.name")
    yield "weights", printable(str(weights.get("source") or "none"))
    size = run.value("data.size")
    yield from [("size", size)] if size else []
    yield "data", printable(run.value("data.root") or run.value("data.table") or run.value("data._target_"))
    for key in _GROUPS:
        target = run.value(f"{key}._target_") or run.value(f"{key}.curve")
        name = target.rpartition(".")[2]
        if name and name not in ("NoAdapter", "NoRegularizer"):
            yield key, name
    for name, key in (
        ("base learning rate", "optimizer.lr"),
        ("weight decay", "optimizer.weight_decay"),
        ("batch size", "data.batch_size"),
        ("most epochs", "trainer.max_epochs"),
        ("class weights", "class_weights"),
        ("monitor", "monitor.metric"),
        ("seed", "seed"),
    ):
        if value := run.value(key):
            yield name, value
    if (rate := run.scores.get("lr_find/lr")) is not None:
        yield "measured learning rate", f"{rate:.3g}"


def _thaw(folder: RunFolder) -> tuple[bytes, str] | None:
    """The thaw plot: drawn where that is small, else its pixels; None where it is too large or not there."""
    for name, kind in (("thaw.svg", "image/svg+xml"), ("thaw.png", "image/png")):
        path = folder.path / name
        if path.is_file() and path.stat().st_size <= _PLOT_BYTES:
            return path.read_bytes(), kind
    return None


def _curves(run: Recorded) -> Iterator[Markup]:
    rows = _read_csv(run.folder.path / "metrics.csv")
    marks = []
    for row in _read_csv(run.folder.schedule):
        marks.append((float(row["step"]), printable(row["phase"]) if row.get("stage") == "0" else ""))
    monitor = run.value("monitor.metric")
    panels = [("loss", ["train/loss", "val/loss"])]
    if monitor not in ("val/loss", ""):
        name = monitor.partition("/")[2]
        panels.append((name, [f"train/{name}", f"val/{name}"]))
    steps = max((float(row["step"]) for row in rows if row.get("step")), default=0.0)
    for title, names in panels:
        lines = [Line(name, _points(rows, name)) for name in names]
        label = "optimizer step; a dot is the end of an epoch"
        chart = line_chart(title, lines, label=label, marks=marks, last=steps)
        if chart is not None:
            yield chart


def _points(rows: Sequence[Mapping[str, str]], name: str) -> list[tuple[float, float]]:
    """Step to value; the last row of a step stands, but what was scored after training is no part of the curve."""
    found: dict[float, float] = {}
    for row in rows:
        if row.get(name) and row.get("step"):
            found.setdefault(float(row["step"]), float(row[name]))
    last = max((step for step in found), default=0.0)
    ends = max((float(row["step"]) for row in rows if row.get("train/loss") and row.get("step")), default=last)
    return sorted((step, value) for step, value in found.items() if step <= ends)


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, csv.Error, UnicodeDecodeError):
        return []


def _phases(run: Recorded) -> PageTable | None:
    entered = _read_csv(run.folder.schedule)
    if not entered:
        return None
    cached = run.provenance.get("cache", {})
    header = ["phase", "features computed once", "from step", "epoch", "stages", "parameters that learned"]
    rows = []
    for name in dict.fromkeys(row["phase"] for row in entered):
        stages = [row for row in entered if row["phase"] == name]
        counts = [int(row["trainable_parameters"]) for row in stages]
        learned = f"{counts[0]:,}" if len(set(counts)) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        said = printable(str(cached.get(name, "")))
        first = stages[0]
        rows.append([printable(name), said, first["step"], first["epoch"], str(len(stages)), learned])
    if not any(row[1] for row in rows):
        return PageTable("", [header[0], *header[2:]], [[row[0], *row[2:]] for row in rows])
    return PageTable("", header, rows, texts=2)


def _scores(run: Recorded) -> PageTable | None:
    if not run.evaluations:
        return None
    splits = list(run.evaluations)
    own = [name for record in run.evaluations.values() for name in record["scores"]]
    named = [name.partition("/") for name in run.scores]
    other = [name for split, _, name in named if split in splits and name != "count"]
    rows = [
        [name.replace("_calibrated", ", calibrated").replace("_", " "), *(_score(run, split, name) for split in splits)]
        for name in dict.fromkeys([*own, *other])
    ]
    titles = ["training sample" if split == SAMPLE else split for split in splits]
    counts = ["pictures", *(f"{run.evaluations[split]['pictures']:,}" for split in splits)]
    note = "With 95 % intervals over pictures: what another set of that size from the same source would show."
    return PageTable("Scores", ["", *titles], [*rows, counts], note)


def _score(run: Recorded, split: str, name: str) -> str:
    known = run.evaluations[split]["scores"].get(name)
    if known is not None:
        return _estimate(known)
    value = run.scores.get(f"{split}/{name}")
    return "" if value is None else f"{value:.4f}"


def _estimate(score: Mapping[str, Any] | None, *, percent: bool = False, signed: bool = False) -> str:
    """A score and its interval."""
    if score is None:
        return "-"

    def text(value: float) -> str:
        if percent:
            return f"{100 * value:.1f}"
        return f"{value:+.3f}" if signed else f"{value:.3f}"

    unit = " %" if percent else ""
    if score.get("low") is None or score.get("high") is None:
        return text(score["value"]) + unit
    return f"{text(score['value'])}{unit} [{text(score['low'])}, {text(score['high'])}]"


def _gap(run: Recorded) -> str:
    record = run.evaluations.get(SAMPLE, {})
    gap = record.get("gap_to_val", {}).get("accuracy")
    if gap is None:
        return ""
    return (
        f"Overfitting: accuracy on {record['pictures']:,} training pictures without augmentation less that on val is "
        f"{_estimate(gap, signed=True)}."
    )


def _classes(run: Recorded) -> PageTable | None:
    found = run.shown.get("classes")
    if not found:
        return None
    worst = sorted(found, key=lambda one: (one["recall"] or {"value": math.inf})["value"])
    rows = [
        [
            printable(one["class"]),
            f"{one['support']:,}",
            f"{one['predicted']:,}",
            *(_estimate(one[kind]) for kind in ("precision", "recall", "f1")),
        ]
        for one in worst[:CLASSES]
    ]
    note = "The lowest recall first."
    if len(found) > CLASSES:
        note += f" {CLASSES} of {len(found):,} classes; all are in evaluation/{run.split}.json."
    header = ["class", "pictures", "taken for it", "precision", "recall", "F1"]
    return PageTable(f"Classes, in {run.split}", header, rows, note)


def _confusion(run: Recorded, pictures: Gallery) -> Confusion | None:
    counts = run.shown.get("confusion")
    if not counts:
        return None
    names = [printable(one["class"]) for one in run.shown["classes"]]
    if len(names) > MATRIX_CLASSES:
        note = f"The pairs that are confused most, of {len(names):,} classes."
    else:
        note = "A row for each class, a column for what its pictures are taken for."
    if pictures.cells:
        note += " A number leads to pictures."
    return Confusion(names, counts, pictures.cells, note)


def _reliability(run: Recorded) -> Markup | None:
    known = run.shown.get("calibration", {})
    if not known.get("reliability"):
        return None
    return reliability_chart(known["reliability"], known.get("reliability_calibrated", []))


def _calibration(run: Recorded) -> PageTable | None:
    scores, known = run.shown.get("scores", {}), run.shown.get("calibration", {})
    if not all(name in scores for name in _OF_CALIBRATION):
        return None
    columns = ["", "_calibrated"] if "ece_calibrated" in scores else [""]
    rows = [
        [title, *(_estimate(scores.get(name + column)) for column in columns)]
        for name, title in _OF_CALIBRATION.items()
    ]
    chances = [known.get(f"ece_by_chance{column}", math.nan) for column in columns]
    rows.append(["ECE by chance alone", *(f"{chance:.3f}" for chance in chances)])
    return PageTable("", ["", "as it is", "at the temperature"][: 1 + len(columns)], rows)


def _temperature(run: Recorded) -> str:
    record = read_json(run.folder.calibration)
    if "temperature" not in record:
        return ""
    if record.get("reason"):
        return f"No temperature was fitted: {record['reason']}."
    return (
        f"Temperature {record['temperature']:.3f}, fitted on {record['pictures']:,} pictures of val. Points below the "
        "diagonal are of a model that is too sure of itself."
    )


def _data(run: Recorded, pictures: Gallery) -> Iterator[PageTable]:
    counts: dict[str, Counter[str]] = {}
    for row in _read_csv(run.folder.splits):
        counts.setdefault(row["split"], Counter())[row["label"]] += 1
    splits = list(counts) or list(_counts(run))
    names = list(dict.fromkeys(name for one in counts.values() for name in sorted(one)))
    totals = [f"{sum(counts[split].values()) if counts else _counts(run)[split]:,}" for split in splits]
    rows = [[printable(name), *(f"{counts[split][name]:,}" for split in splits)] for name in names[:CLASSES]]
    notes = [f"{CLASSES} of {len(names):,} classes; all pictures are in splits.csv."] if len(names) > CLASSES else []
    if skipped := len(_read_csv(run.folder.path / "skipped.csv")):
        notes.append(f"{skipped:,} training pictures could not be read and were left out; they are in skipped.csv.")
    if pictures.sizes:
        width, height = np.median(np.array(pictures.sizes), axis=0)
        low, high = min(pictures.sizes, key=math.prod), max(pictures.sizes, key=math.prod)
        spread = f", from {low[0]} x {low[1]} to {high[0]} x {high[1]}" if low != high else ""
        notes.append(f"The {len(pictures.sizes)} that this page shows are {width:.0f} x {height:.0f} pixels{spread}.")
    if splits:
        yield PageTable("Data", ["pictures", *splits], [["all", *totals], *rows], " ".join(notes), bold=(0,))


def _cost(run: Recorded) -> Iterator[tuple[str, str]]:
    scores, speed = run.scores, read_json(run.folder.speed)
    if "epochs" in scores:
        yield "training", _time(scores["seconds"])
        yield "epochs", f"{scores['epochs']:g}"
        yield "while training", f"{scores['images_per_second']:,.3g} pictures a second"
    if speed:
        threads = f", {speed['threads']} threads" if speed["device"] == "cpu" else ""
        yield "the model alone", f"{speed['images_per_second']:,.3g} pictures a second at batch {speed['batch_size']}"
        yield "one picture", f"{speed['latency_ms']:.3g} ms, 95 % within {speed['latency_p95_ms']:.3g} ms"
        yield "measured on", f"{speed['device']}{threads}"
    for name, title in (("skipped_steps", "steps left out"), ("skipped_pictures", "pictures left out")):
        if name in scores:
            yield title, f"{scores[name]:.0f}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _provenance(run: Recorded) -> Iterator[tuple[str, str]]:
    found = run.provenance
    weights, hardware = found.get("weights", {}), found.get("hardware", {})
    plain: dict[str, Any] = {
        "folder": run.folder.path,
        "started": found.get("started"),
        "seed": found.get("seed"),
        "code": found.get("code"),
        "data fingerprint": found.get("data_fingerprint"),
        **{f"fingerprint of {name}": print_ for name, print_ in recorded_splits(run.folder).items()},
        "weights": weights.get("source"),
        "SHA-256 of the weights": weights.get("sha256"),
        "python": found.get("python"),
        **found.get("packages", {}),
        "system": hardware.get("system"),
        "cores": hardware.get("cores"),
        "GPUs": ", ".join(hardware.get("gpus", [])),
        "resumed": ", ".join(f"from step {one.get('from_step')}" for one in found.get("resumed", [])),
    }
    for name, value in plain.items():
        if value not in (None, ""):
            yield name, printable(str(value))
