"""What a soup leaves behind beside what every run has: its config, where its weights come from, and what was tried."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from frostline.config import flat
from frostline.reports import WisePlot, wise_plot
from frostline.runs.compare_settings import printable
from frostline.runs.folder import RunFolder, overrides_hash
from frostline.runs.identity import LEFT_OUT
from frostline.runs.provenance import provenance
from frostline.runs.soup_choosing import Selected, Tried
from frostline.runs.soup_runs import Chooser, Ingredient
from frostline.runs.sweep import write_csv
from frostline.specs import SoupKind, SoupNode, SoupSpec

# of the run whose data, loss and metrics score all; what else differs between runs, none of them can speak for
_OF_THE_FIRST = (
    "backbone",
    "data",
    "augment",
    "loss",
    "class_weights",
    "class_weights_beta",
    "metrics",
    "monitor",
    "speed",
    "seed",
)
_NOT_OF_A_SOUP = ("paper", "logger")


def digest_of(runs: Sequence[Ingredient]) -> str:
    """Eight hexadecimal digits that tell soups of different runs apart, whatever their order."""
    return overrides_hash([run.model for run in runs])


def config_of(runs: Sequence[Ingredient], spec: SoupSpec, folder: RunFolder) -> DictConfig:
    """The config of the result: that of the first run, null where the runs differ, with a node ``soup``.

    So ``evaluate`` finds the data and the loss, and ``compare`` does not take the soup for a run with the settings of
    one of its ingredients. A part in which the runs differ by more than values is left out.
    """
    config = copy.deepcopy(runs[0].config)
    OmegaConf.set_struct(config, False)
    contents = [flat(run.config) for run in runs]
    for key in dict.fromkeys(key for content in contents for key in content):
        top = key.partition(".")[0]
        values = {repr(content.get(key, ...)) for content in contents}
        if len(values) == 1 or top in (*_OF_THE_FIRST, *LEFT_OUT) or top not in config:
            continue
        everywhere = all(key in content for content in contents)
        if everywhere and not key.endswith("._target_"):
            OmegaConf.update(config, key, None)
        else:
            config.pop(top)
    for key in _NOT_OF_A_SOUP:
        config.pop(key, None)
    config.name, config.output, config.folder = spec.name, spec.output, str(folder.path)
    config.test, config.debug = spec.test, spec.debug
    if spec.root is not None:
        config.data.root = spec.root
    number = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    config.soup = {"kind": spec.soup.kind.name, "of": f"{number}, {digest_of(runs)}", **_settings(spec.soup)}
    return config


def _settings(node: SoupNode) -> dict[str, Any]:
    """What decides the weights and is not as it is by default."""
    usual, own = SoupNode(), {}
    if node.kind is SoupKind.wise and node.alphas != usual.alphas:
        own["alphas"] = list(node.alphas)
    for key in ("update_bn", "bn_pictures"):
        if getattr(node, key) != getattr(usual, key):
            own[key] = getattr(node, key)
    return own


def provenance_of(
    runs: Sequence[Ingredient], selected: Selected, chooser: Chooser, spec: SoupSpec, renewed: Sequence[str]
) -> dict[str, Any]:
    """What ``provenance.json`` says: data and start of the runs, and which they are."""
    first = runs[0]
    record = provenance(
        command="soup",
        seed=first.config.seed,
        data=first.provenance["data"],
        weights=dict(first.start),
    )
    kept = {id(one.run) for one in selected.kept}
    made = {
        "kind": spec.soup.kind.name,
        "metric": chooser.metric,
        "mode": "max" if chooser.larger else "min",
        "update_bn": spec.soup.update_bn,
        "bn_pictures": spec.soup.bn_pictures,
        "renewed": list(renewed),
        "runs": [
            {
                "run": str(run.folder.path),
                "model": run.model,
                "code": run.provenance.get("code"),
                "seed": run.config.seed,
                "kept": id(run) in kept,
            }
            for run in runs
        ],
    }
    if spec.soup.kind is SoupKind.wise:
        made |= {"alphas": [one.alpha for one in selected.tried], "alpha": selected.kept[0].alpha}
    return {**record, "soup": made}


def write_tried(folder: Path, tried: Sequence[Tried], chooser: Chooser, name: str) -> None:
    """Write ``soup.csv``, or ``wise.csv`` with a plot.

    Raises:
        OSError: a file cannot be written.
    """
    metrics = list(tried[0].scores)
    if tried[0].alpha is None:
        rows = [
            [str(one.run.folder.path), one.run.model, *_figures(one, metrics), int(one.kept), _figure(one.soup)]
            for one in tried
        ]
        write_csv(folder / "soup.csv", ["run", "model", *metrics, "kept", f"soup {chooser.metric}"], rows)
        return
    rows = [[_figure(one.alpha), *_figures(one, metrics), int(one.kept)] for one in tried]
    write_csv(folder / "wise.csv", ["alpha", *metrics, "selected"], rows)
    selected = next(place for place, one in enumerate(tried) if one.kept)
    plot = WisePlot(
        [one.alpha or 0.0 for one in tried],
        [one.scores[chooser.metric] for one in tried],
        selected,
        chooser.metric.partition("/")[2],
        f"WiSE-FT of {name.partition('(')[0]}",
        "the head is the fine-tuned one everywhere",
    )
    wise_plot(folder / "wise.png", folder / "wise.svg", plot)


def _figures(one: Tried, metrics: Sequence[str]) -> list[str]:
    return [_figure(one.scores[name]) for name in metrics]


def _figure(value: float | None) -> str:
    return "" if value is None else repr(value)


def table_of(tried: Sequence[Tried], chooser: Chooser) -> tuple[list[str], list[list[str]]]:
    """Header and rows for the screen."""
    if tried[0].alpha is not None:
        metrics = list(dict.fromkeys([chooser.metric, "val/loss"]))
        rows = [
            [f"{one.alpha:g}", *(f"{one.scores[name]:.4f}" for name in metrics), "selected" if one.kept else ""]
            for one in tried
        ]
        return ["alpha", *metrics, ""], rows
    names = _names([one.run for one in tried])
    rows = [
        [
            name,
            f"{one.scores[chooser.metric]:.4f}",
            "kept" if one.kept else "",
            "" if one.soup is None else f"{one.soup:.4f}",
        ]
        for name, one in zip(names, tried, strict=True)
    ]
    return ["run", chooser.metric, "", "soup"], rows


def _names(runs: Sequence[Ingredient]) -> list[str]:
    """What was typed for each run and not for all of them, and its folder."""
    shared = set.intersection(*(set(run.overrides) for run in runs))
    above = os.path.commonpath([run.folder.path.parent for run in runs])
    typed = [" ".join(item for item in run.overrides if item not in shared) for run in runs]
    places = [os.path.relpath(run.folder.path, above) for run in runs]
    return [printable(f"{place} {own}".strip()) for place, own in zip(places, typed, strict=True)]
