"""Which runs are averaged, and what has to be the same in them for an average to mean something."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from frostline.averaging import best_first, shapes_of
from frostline.backbones import SavedFacts, read_saved_facts
from frostline.config import load_config, spec_of
from frostline.errors import ConfigError
from frostline.runs.compare import larger_is_better
from frostline.runs.compare_runs import Found
from frostline.runs.folder import RunFolder, read_json
from frostline.runs.identity import recorded_overrides, recorded_splits
from frostline.runs.ledger import model_hash
from frostline.specs import Mode, MonitorSpec, SoupKind, SoupSpec

COMMANDS = ("train", "soup")
"""Whose runs have a classifier that was fine-tuned from weights that are known."""

_SHOWN = 12  # digits of a hash in a message


@dataclass(frozen=True, eq=False)
class Ingredient:
    """A finished run whose weights are taken.

    Attributes:
        folder: its files.
        config: its own.
        facts: of its model.
        model: SHA-256 over its weights, as 64 hexadecimal digits.
        provenance: what the run says of itself.
        overrides: what was typed for it, as far as that is known.
    """

    folder: RunFolder
    config: DictConfig
    facts: SavedFacts
    model: str
    provenance: Mapping[str, Any]
    overrides: tuple[str, ...]

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return self.folder.model / "model.safetensors"

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of its tensors, by name."""
        return shapes_of(self.weights)

    @property
    def start(self) -> Mapping[str, Any]:
        """The weights that it began with: ``source``, ``sha256``, ``loaded``."""
        found = self.provenance.get("weights")
        return found if isinstance(found, dict) else {}

    @property
    def splits(self) -> dict[str, str]:
        """The fingerprint of each split of its data."""
        return recorded_splits(self.folder)


@dataclass(frozen=True)
class Chooser:
    """By which score of validation is chosen, and which way it is better."""

    metric: str
    larger: bool


def read_ingredients(found: Found, spec: SoupSpec) -> tuple[list[Ingredient], Chooser]:
    """The runs whose weights are averaged, the best by their own records first, whatever the order of their names.

    A run that did not finish has been left out in ``found``; one with the same weights as another is added to that.

    Raises:
        ConfigError: with all reasons why an average of them would mean nothing.
        StorageError: a model is missing or damaged.
    """
    runs = _without_copies([_read(folder) for folder in found.folders], found)
    wise = spec.soup.kind is SoupKind.wise
    if faults := [*_number_faults(runs, found, wise=wise), *_start_faults(runs)]:
        raise ConfigError.of(faults)
    if faults := list(_differences(runs)):
        raise ConfigError.of(faults)
    chooser = chooser_of(runs, spec)
    scores = [float(run.folder.read_metrics().get(chooser.metric, math.nan)) for run in runs]
    order = best_first(scores, [run.model for run in runs], larger=chooser.larger)
    return [runs[place] for place in order], chooser


def chooser_of(runs: Sequence[Ingredient], spec: SoupSpec) -> Chooser:
    """The metric that was asked for, or the monitor that the runs share.

    Raises:
        ConfigError: it is none of validation, or the runs were selected by several.
    """
    specs = [spec_of(run.config.monitor, MonitorSpec) for run in runs]
    monitors = list(dict.fromkeys((monitor.metric, monitor.mode) for monitor in specs))
    metric = spec.metric
    if metric is None and len(monitors) > 1:
        named = ", ".join(f"{name} ({mode.name})" for name, mode in monitors)
        raise ConfigError(
            f"the runs were selected by several metrics: {named}", mend="Choose one: metric=val/accuracy."
        )
    if metric is None:
        ((metric, own),) = monitors
        return Chooser(metric, larger=(spec.mode or own) is Mode.max)
    if not metric.startswith("val/"):
        raise ConfigError(
            f"metric={metric}: weights are chosen on validation alone", mend="Name one of it: metric=val/accuracy."
        )
    return Chooser(metric, larger_is_better(metric, spec.mode or dict(monitors).get(metric)))


def _read(folder: RunFolder) -> Ingredient:
    folder.refuse_links_out()
    provenance = read_json(folder.provenance)
    command = provenance.get("command")
    if command not in COMMANDS:
        what = f"a run of `{command}`" if command else "no run that says what it is of, in provenance.json"
        raise ConfigError(f"{folder.path} is {what}", mend=f"Weights are averaged of runs of {' and '.join(COMMANDS)}.")
    return Ingredient(
        folder,
        load_config(folder.config),
        read_saved_facts(folder.model),
        model_hash(folder),
        provenance,
        recorded_overrides(folder),
    )


def _without_copies(runs: Sequence[Ingredient], found: Found) -> list[Ingredient]:
    kept: dict[str, Ingredient] = {}
    for run in runs:
        if run.model in kept:
            same = kept[run.model].folder.path
            found.left_out.append((str(run.folder.path), f"has the same weights as {same}"))
        else:
            kept[run.model] = run
    return list(kept.values())


def _number_faults(runs: Sequence[Ingredient], found: Found, *, wise: bool) -> Iterator[ConfigError]:
    left_out = "".join(f"\n  left out: {name}: {why}" for name, why in found.left_out)
    if wise and len(runs) != 1:
        yield ConfigError(
            f"soup.kind=wise goes from the start to the end of one run, and runs= names {len(runs)}{left_out}",
            mend="Name one: runs=RUN; or take the mean of several: soup.kind=greedy.",
        )
    if not wise and len(runs) < 2:
        which = "one finished run" if runs else "no finished run"
        yield ConfigError(
            f"runs= names {which}, and a mean takes two or more{left_out}",
            mend="Name a sweep or a list: runs='[RUN,RUN]'; between the start and the end of one run: soup.kind=wise.",
        )


def _start_faults(runs: Sequence[Ingredient]) -> Iterator[ConfigError]:
    """Runs that began at random weights, or at such that are not known by their hash."""
    for run in runs:
        if run.start.get("source") == "none":
            yield ConfigError(
                f"{run.folder.path} began at random weights (backbone.weights=none): there are no pre-trained ones",
                mend="Average runs that began at the same pre-trained weights.",
            )
        elif run.start.get("sha256") is None:
            source = run.start.get("source", "weights that it does not name")
            yield ConfigError(
                f"{run.folder.path} began at {source}, and has no hash of them to know them by",
                mend="Train it from a file: backbone.weights=FILE.",
            )


def _differences(runs: Sequence[Ingredient]) -> Iterator[ConfigError]:
    first = runs[0]
    facts: Sequence[tuple[str, Callable[[Ingredient], object], str]] = (
        ("the architecture", lambda run: run.facts.architecture, "Models of one architecture have an average."),
        ("the labels", lambda run: run.facts.labels, "Average runs on the same classes, in the same order."),
        ("the start", lambda run: str(run.start["sha256"])[:_SHOWN], "Weights average where they began at the same."),
        *(
            (f"the input's {name}", _input_value(name), "Average runs of one input.")
            for name in sorted(first.facts.input)
        ),
    )
    for run in runs[1:]:
        known = [(what, of(run), of(first), mend) for what, of, mend in facts]
        different = [(what, own, other, mend) for what, own, other, mend in known if own != other]
        for what, own, other, mend in different:
            yield ConfigError(
                f"{what} of {run.folder.path} is {_short(own)}, and that of {first.folder.path} {_short(other)}",
                mend=mend,
            )
        if not different and run.shapes != first.shapes:
            names = run.shapes.items() ^ first.shapes.items()
            yield ConfigError(
                f"{run.folder.path} and {first.folder.path} have other tensors: {min(name for name, _ in names)}",
                mend="Models of one architecture have an average.",
            )
        yield from _data_faults(run, first)


def _input_value(name: str) -> Callable[[Ingredient], object]:
    return lambda run: run.facts.input.get(name)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _data_faults(run: Ingredient, first: Ingredient) -> Iterator[ConfigError]:
    """The split of one run may hold what another was trained on, so that its scores would say too much."""
    own, other = run.splits, first.splits
    unknown = next((one.folder.path for one in (run, first) if not {"train", "val"} <= one.splits.keys()), None)
    if unknown is not None:
        yield ConfigError(f"{unknown} does not say what was in its train and val splits", mend="Train it again.")
        return
    splits = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
    if splits:
        yield ConfigError(
            f"{run.folder.path} and {first.folder.path} have other pictures or labels in {', '.join(splits)}: what one "
            "is validated on, the other may have learned",
            mend="Average runs on the same data and division: the same data.split_seed, data.fold, data.fraction.",
        )
