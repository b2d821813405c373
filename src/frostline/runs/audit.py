"""``frostline audit``: what is wrong with a data set."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from omegaconf import DictConfig

from frostline.auditing import (
    AuditThresholds,
    Features,
    Finding,
    Kind,
    LabelErrors,
    Place,
    Scan,
    features,
    find,
    find_drift,
    find_label_errors,
    joined_groups,
    ordered,
    require_cleanlab,
    scan,
)
from frostline.backbones import Backbone, create_backbone
from frostline.config import build, check_targets, save_config, spec_of
from frostline.data import ImageData
from frostline.data.geometry import resized
from frostline.data.loading import worker_count
from frostline.data.progress import Progress
from frostline.errors import ConfigError, DataError
from frostline.reports import AuditPage, audit_page
from frostline.runs.audit_files import DUPLICATES, excluded, optional_kinds, write_audit, write_exclude, write_findings
from frostline.runs.audit_report import Thumbnails, by_kind, looks, printable, sections, summary
from frostline.runs.folder import make_folder
from frostline.runs.predict import device_of
from frostline.runs.provenance import provenance
from frostline.runs.tables import print_table
from frostline.specs import AuditNode, BackboneSpec

# with data.strict=true these end the command with exit code 3
HARMFUL = (
    Kind.UNREADABLE,
    Kind.TRUNCATED,
    Kind.EXACT_DUPLICATE_ACROSS_SPLITS,
    Kind.NEAR_DUPLICATE_ACROSS_SPLITS,
    Kind.GROUP_ACROSS_SPLITS,
    Kind.CONFLICTING_LABELS,
)
PACKAGES = ("cleanlab", "scikit-learn", "scipy")


@dataclass
class Audit:
    """What an audit has come to know.

    Attributes:
        findings: the largest harm first.
        judged: of the labels; None where they were not looked at.
        notes: sentences for the person who reads the findings.
        seconds: what each part took.
    """

    findings: list[Finding]
    judged: LabelErrors | None
    notes: list[str]
    seconds: dict[str, float] = field(default_factory=dict)


def audit(config: DictConfig) -> None:
    """Look at every picture, say what is wrong, and write it to ``output/audit/<date_time>-<name>``.

    The folder: ``config.yaml``, ``audit.html`` for people, ``findings.csv`` and ``audit.json`` for programs, and
    ``exclude.txt``, which ``data.exclude`` takes.

    Raises:
        ConfigError: a key has no meaning, or a package is missing.
        DataError: the data cannot be loaded; with ``data.strict=true``, what would spoil a result was found.
        StorageError: a file cannot be written.
    """
    node = spec_of(config.audit, AuditNode)
    kinds = optional_kinds(node.exclude_kinds)
    _check(config, node)
    thresholds: AuditThresholds = build(config.audit.thresholds, "audit.thresholds")
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    data = _load(config)
    # before the long look: a wrong name is said at once
    backbone = _backbone(config, data) if node.labels else None
    folder = make_folder(Path(config.output) / "audit", str(config.name))
    config.folder = str(folder)
    save_config(config, folder / "config.yaml")
    found, seen = _look(config, node, data, thresholds, backbone)
    listed = excluded(found.findings, kinds)
    for path in (folder / "exclude.txt", *([Path(node.exclude)] if node.exclude else [])):
        write_exclude(path, listed)
    write_findings(folder / "findings.csv", found.findings)
    audit_page(folder / "audit.html", _page(config, node, data, found, seen, backbone))
    write_audit(folder / "audit.json", _about(config, data, found, thresholds, backbone), found.findings)
    _show(found, data, folder, node, len(listed))
    if data.strict:
        _refuse(found.findings, folder)


def _check(config: DictConfig, node: AuditNode) -> None:
    check_targets(config)
    if node.folds < 2:
        raise ConfigError(f"audit.folds={node.folds}", mend="Labels are judged in 2 folds or more; 5 is usual.")
    if node.shown < 1:
        raise ConfigError(f"audit.shown={node.shown}", mend="Give a whole number of at least 1.")
    if node.exclude and Path(node.exclude).is_dir():
        raise ConfigError(f"audit.exclude={node.exclude} is a folder", mend="Name a file, such as bad.txt.")
    if node.labels:
        require_cleanlab()


def _load(config: DictConfig) -> ImageData:
    data: ImageData = build(config.data, "data")
    data.load()
    if not data.labelled:
        raise ConfigError(f"{config.data._target_} has no labels to audit", mend="Class folders are data=folder.")
    counts = ", ".join(f"{name} {len(split)}" for name, split in data.splits.items())
    print(f"data      {len(data.classes)} classes; {counts}")
    for note in data.notes:
        print(f"          note: {printable(note)}")
    return data


def _backbone(config: DictConfig, data: ImageData) -> Backbone:
    backbone = create_backbone(spec_of(config.backbone, BackboneSpec), num_classes=0, size=data.size)
    backbone.preprocessing = resized(backbone.preprocessing, data.resize)
    channels, height, width = backbone.preprocessing.size
    print(f"backbone  {config.backbone.name} at {height}x{width}x{channels}; {backbone.report.sentence()}", flush=True)
    return backbone


def _look(
    config: DictConfig, node: AuditNode, data: ImageData, thresholds: AuditThresholds, backbone: Backbone | None
) -> tuple[Audit, Scan]:
    """Everything that takes time."""
    seconds: dict[str, float] = {}
    workers = worker_count(data.workers, in_memory=False)
    with _timed(seconds, "scan"), _shown("reading pictures") as progress:
        seen = scan(data.classes, data.splits, workers=workers, progress=progress)
    with _timed(seconds, "find"):
        findings = find(seen, thresholds)
    vectors, judged, notes = None, None, []
    if backbone is not None:
        notes += [] if backbone.report.loaded else [_UNTRAINED]
        with _timed(seconds, "features"), _shown("computing features") as progress:
            vectors = _features(config, data, seen, backbone, progress)
        with _timed(seconds, "labels"), _shown("judging labels") as progress:
            judged = _judge(data, vectors, findings, node.folds, int(config.seed), progress)
        findings += judged.findings
        notes += judged.notes
    with _timed(seconds, "drift"):
        findings += _drift(data, seen, vectors, int(config.seed))
    return Audit(ordered(findings), judged, notes, seconds), seen


_UNTRAINED = "The backbone has no trained weights: what is said of labels and of features means little."


@contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[what] = round(time.perf_counter() - started, 3)


@contextmanager
def _shown(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress line, as a function of how many are done, of how many."""
    line: Progress | None = None

    def at(done: int, total: int) -> None:
        nonlocal line
        line = line or Progress(what, total)
        line.at(done)

    try:
        yield at
    finally:
        if line is not None:
            line.end()


def _features(
    config: DictConfig, data: ImageData, seen: Scan, backbone: Backbone, progress: Callable[[int, int], None]
) -> dict[str, Features]:
    return features(
        backbone.model,
        data.splits,
        backbone.preprocessing,
        readable={name: part.readable for name, part in seen.splits.items()},
        batch_size=data.batch_size,
        workers=worker_count(data.workers, in_memory=data.in_memory),
        device=device_of(config.device),
        progress=progress,
    )


def _judge(
    data: ImageData,
    vectors: Mapping[str, Features],
    findings: Sequence[Finding],
    folds: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> LabelErrors:
    """Label errors among the pictures of all splits; copies and groups stay together in the folds."""
    where = [(split, int(index)) for split, some in vectors.items() for index in some.positions]
    at = {place: number for number, place in enumerate(where)}
    copies = [
        [at[place.split, place.index] for place in finding.places if (place.split, place.index) in at]
        for finding in findings
        if finding.kind in (*DUPLICATES, Kind.CONFLICTING_LABELS)
    ]
    known = [data.splits[split].groups for split in vectors]
    given = [groups[some.positions] for groups, some in zip(known, vectors.values(), strict=True) if groups is not None]
    groups = joined_groups(len(where), copies, np.concatenate(given) if len(given) == len(known) else None)

    def place(number: int) -> Place:
        split, index = where[number]
        pictures = data.splits[split]
        return Place(split, index, pictures.name(index), data.classes[int(pictures.labels[index])])

    some = [one.vectors for one in vectors.values() if len(one.vectors)]
    return find_label_errors(
        np.concatenate(some) if some else np.zeros((0, 0), np.float32),
        np.concatenate([data.splits[split].labels[one.positions] for split, one in vectors.items()]),
        place,
        data.classes,
        groups=groups,
        folds=folds,
        seed=seed,
        progress=progress,
    )


def _drift(data: ImageData, seen: Scan, vectors: Mapping[str, Features] | None, seed: int) -> list[Finding]:
    by_split = {name: part.properties() for name, part in seen.splits.items()}
    properties = {name: {split: own[name] for split, own in by_split.items()} for name in by_split["train"]}
    labels = {name: split.labels for name, split in data.splits.items()}
    known = None if vectors is None else {name: some.vectors for name, some in vectors.items()}
    return find_drift(data.classes, labels, properties, known, seed=seed)


def _page(
    config: DictConfig, node: AuditNode, data: ImageData, found: Audit, seen: Scan, backbone: Backbone | None
) -> AuditPage:
    total = sum(map(len, data.splits.values()))
    facts = [
        ("data", str(config.data.get("root") or config.data._target_)),
        ("pictures", f"{total:,}"),
        ("classes", f"{len(data.classes):,}"),
        ("findings", f"{len(found.findings):,}"),
        ("read in", _speed(total, found.seconds["scan"])),
    ]
    if backbone is not None:
        facts.append(("backbone", str(config.backbone.name)))
    if found.judged is not None and found.judged.accuracy is not None:
        facts.append(("linear probe agrees with", f"{found.judged.accuracy:.1%} of the labels"))
    return AuditPage(
        title=f"Audit: {config.name}" if config.name != "audit" else "Audit",
        facts=facts,
        notes=[*data.notes, *found.notes],
        sections=list(sections(found.findings, Thumbnails(data.splits), shown=node.shown)),
        classes=data.classes,
        counts={name: data.class_counts(name) for name in data.splits},
        tables=looks(seen),
        footer="All findings are in findings.csv and audit.json beside this page; exclude.txt is for data.exclude.",
    )


def _about(
    config: DictConfig, data: ImageData, found: Audit, thresholds: AuditThresholds, backbone: Backbone | None
) -> dict[str, Any]:
    """What ``audit.json`` says beside the findings."""
    record: dict[str, Any] = {"fingerprint": None}
    with suppress(DataError):  # of a picture that is gone there is no content to take it of
        record = data.record()
    total = sum(map(len, data.splits.values()))
    weights = {} if backbone is None else {"name": str(config.backbone.name), "loaded": backbone.report.sentence()}
    about = provenance(command="audit", seed=int(config.seed), data=record, weights=weights)
    about["packages"] |= _versions()
    return about | {
        "classes": list(data.classes),
        "pictures": {name: len(split) for name, split in data.splits.items()},
        "class_counts": {name: data.class_counts(name) for name in data.splits},
        "thresholds": asdict(thresholds),
        "labels": None
        if found.judged is None
        else {"accuracy": found.judged.accuracy, "folds": found.judged.folds, "judged": found.judged.judged},
        "seconds": found.seconds,
        "pictures_per_second": round(total / max(found.seconds["scan"], 1e-9), 1),
        "notes": [*data.notes, *found.notes],
        "counts": {kind.value: len(some) for kind, some in by_kind(found.findings).items()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _show(found: Audit, data: ImageData, folder: Path, node: AuditNode, listed: int) -> None:
    print()
    if found.findings:
        print_table(["finding", "count", "pictures", "the worst"], summary(found.findings))
    else:
        print("Nothing found.")
    for note in found.notes:
        print(f"note: {printable(note)}")
    total = sum(map(len, data.splits.values()))
    rest = sum(found.seconds.values()) - found.seconds["scan"]
    print(f"\n{total} pictures in {_speed(total, found.seconds['scan'])}; the rest took {rest:.1f} s")
    pictures = "1 picture" if listed == 1 else f"{listed} pictures"
    print(f"to leave out: {pictures}: data.exclude={node.exclude or folder / 'exclude.txt'}")
    print(f"page: {folder / 'audit.html'}")
    print(f"written: {folder}", flush=True)


def _speed(total: int, seconds: float) -> str:
    return f"{seconds:.1f} s ({total / max(seconds, 1e-9):,.0f} a second)"


def _refuse(findings: Sequence[Finding], folder: Path) -> None:
    harmful = [finding for finding in findings if finding.kind in HARMFUL]
    if harmful:
        counts = ", ".join(f"{len(some)} {kind.value}" for kind, some in by_kind(harmful).items())
        raise DataError(
            f"data.strict=true: the data has {counts}. The first: {harmful[0].problem}",
            mend=f"Look at {folder / 'audit.html'}; data.exclude={folder / 'exclude.txt'} leaves most of them out.",
        )
