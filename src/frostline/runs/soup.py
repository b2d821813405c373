"""``frostline soup runs=SWEEP``: a run whose weights are averaged from those of finished runs, or of start and end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from frostline.averaging import put
from frostline.config import save_config
from frostline.data import write_division
from frostline.exporting import Facts
from frostline.runs.announcing import show_findings
from frostline.runs.cards import architecture, write_card
from frostline.runs.compare_runs import Found, find_runs
from frostline.runs.compare_settings import printable
from frostline.runs.folder import RunFolder, make_folder, write_json
from frostline.runs.saved import save_model
from frostline.runs.scoring import Findings, score_test, speed_of, temperature_of, validate, write_speed
from frostline.runs.soup_choosing import Selected, along_the_way, mean_of_runs
from frostline.runs.soup_files import config_of, digest_of, provenance_of, table_of, write_tried
from frostline.runs.soup_parts import SoupParts, Start, build_soup, check_soup, check_trust, start_of
from frostline.runs.soup_runs import Chooser, Ingredient, read_ingredients
from frostline.runs.tables import print_table
from frostline.specs import SoupKind, SoupSpec


def soup(config: DictConfig) -> dict[str, float]:
    """Read the runs, choose weights on validation, score them, look at the test split once, write a run folder.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        ConfigError: a name is no run, or the runs have no average that means something.
        DataError: the pictures are not those of the runs.
        StorageError: a model is damaged, or a file cannot be written.
        NumericsError: no weights have a score that is a number.
    """
    started = time.perf_counter()
    spec = check_soup(config)
    named = find_runs(spec.runs)
    runs, chooser = read_ingredients(named, spec)
    check_trust(config, runs[0])
    start = start_of(runs[0]) if spec.soup.kind is SoupKind.wise else None
    parts = build_soup(config, spec, runs, chooser, start)
    folder = RunFolder(make_folder(Path(spec.output).absolute() / spec.name, digest_of(runs)))
    own = config_of(runs, spec, folder)
    save_config(own, folder.config)
    write_division(folder.splits, parts.data.classes, parts.data.splits)
    _announce(parts, runs, named, chooser, spec)
    selected = _select(parts, runs, chooser, spec, start)
    print_table(*table_of(selected.tried, chooser))
    for note in selected.notes:
        print(f"note: {note}")
    write_tried(folder.path, selected.tried, chooser, runs[0].facts.architecture)
    write_json(folder.provenance, provenance_of(runs, selected, chooser, spec, parts.renewed))
    put(parts.saved.model, iter(selected.weights.items()))
    found = Findings()
    found.scores |= validate(parts.trainer, parts.task, parts.data, "val")
    _write(parts, folder, found, runs[0].facts.head)
    if spec.test and "test" in parts.data.splits:
        score_test(parts.trainer, parts.task, parts.data, folder, found, command="soup", output=str(own.output))
    found.scores |= _own_scores(selected) | {"seconds": time.perf_counter() - started}
    _finish(parts, folder, found)
    return found.flat()


def _select(
    parts: SoupParts, runs: Sequence[Ingredient], chooser: Chooser, spec: SoupSpec, start: Start | None
) -> Selected:
    if start is None:
        return mean_of_runs(parts, runs, chooser, spec.soup.kind)
    return along_the_way(parts, runs[0], start, spec.soup.alphas, chooser)


def _own_scores(selected: Selected) -> dict[str, float]:
    alpha = selected.kept[0].alpha
    if alpha is not None:
        return {"soup/alpha": alpha}
    return {"soup/runs": float(len(selected.tried)), "soup/kept": float(len(selected.kept))}


def _announce(parts: SoupParts, runs: Sequence[Ingredient], named: Found, chooser: Chooser, spec: SoupSpec) -> None:
    counts = ", ".join(f"{split} {len(pictures)}" for split, pictures in parts.data.splits.items())
    print(f"data      {len(parts.data.classes)} classes; {counts}")
    print(f"runs      {len(runs)} of {runs[0].facts.architecture}, begun at {printable(str(runs[0].start['source']))}")
    for name, why in named.left_out:
        print(f"          left out: {name}: {why}")
    print(f"soup      {spec.soup.kind.name}, by {chooser.metric} ({'higher' if chooser.larger else 'lower'} is better)")
    if parts.renewed:
        most = len(parts.data.splits["train"]) if parts.pictures is None else parts.pictures
        pictures = min(len(parts.data.splits["train"]), most)
        print(f"          statistics of {len(parts.renewed)} batch norms computed anew on {pictures} training pictures")
    if len({repr((run.config.loss, run.config.metrics)) for run in runs}) > 1:
        print(f"note: loss and metrics differ between the runs; all are scored by those of {runs[0].folder.path.name}")


def _write(parts: SoupParts, folder: RunFolder, found: Findings, head: str | None) -> None:
    """Write ``model/`` and what the predictions of validation say, which were just made."""
    saved, data = parts.saved, parts.data
    save_model(saved.model, folder, labels=saved.labels, preprocessing=saved.preprocessing, head=head)
    found.calibrate(parts.task, folder)
    found.describe(parts.task, "val", data.splits["val"], data.classes, folder)


def _finish(parts: SoupParts, folder: RunFolder, found: Findings) -> None:
    """Time the model, write its card and ``metrics.json``, which makes the folder whole, and show it all."""
    saved = parts.saved
    found.speed = speed_of(
        parts.trainer,
        saved.model,
        size=saved.preprocessing.size,
        batch_size=parts.data.batch_size,
        last=parts.task.channels_last,
    )
    write_speed(folder, found.speed)
    facts = Facts(saved.labels, saved.preprocessing, architecture(folder), temperature_of(folder))
    write_card(folder, facts, found.flat())
    write_json(folder.metrics, found.flat())
    show_findings(found)
    print(f"run: {folder.path}", flush=True)
