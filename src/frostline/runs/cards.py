"""The model card of a run: ``README.md`` in its ``model/``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from frostline.backbones import holds_module
from frostline.config import load_config
from frostline.exporting import Card, Facts
from frostline.runs.folder import RunFolder, read_json
from frostline.runs.identity import recorded_splits
from frostline.runs.ledger import counted
from frostline.writing import write_text


def architecture(folder: RunFolder) -> str:
    """The name of a run's model: timm's, or that of the class of a module."""
    saved = read_json(folder.model / "config.json").get("architecture")
    if saved is not None:
        return str(saved)
    return str(OmegaConf.select(load_config(folder.config), "backbone.module._target_"))


def write_card(
    folder: RunFolder, facts: Facts, scores: Mapping[str, float], files: Sequence[tuple[str, str]] = ()
) -> Path:
    """Write the card from what the run folder says.

    Args:
        folder: of a run with its ``model/`` and evaluations.
        facts: of its model.
        scores: the flat ``split/metric`` scores.
        files: folder of each other format that there is, and what to say of it.

    Returns:
        Where it is.

    Raises:
        OSError: it cannot be written.
    """
    config, provenance = load_config(folder.config), read_json(folder.provenance)
    splits = provenance.get("data", {}).get("splits", {})
    card = Card(
        title=f"{facts.architecture}, fine-tuned",
        facts=facts,
        counts={name: _count(split) for name, split in splits.items() if _count(split)},
        training=_training(config, provenance),
        # a split that training left alone may have been scored by `evaluate` since
        scores={**_evaluated(folder), **scores},
        intervals={f"{split}/{name}": ends for split in ("val", "test") for name, ends in _intervals(folder, split)},
        test_looks=_looks(folder, config),
        fingerprint=str(provenance.get("data_fingerprint", "")),
        files=files,
        of_timm=not holds_module(folder.model),
    )
    path = folder.model / "README.md"
    write_text(path, card.text())
    return path


def _looks(folder: RunFolder, config: DictConfig) -> int | None:
    """How often the test split has been scored by now, by other runs too; None where this run has not."""
    known = read_json(folder.evaluation("test")).get("looks", {}).get("count")
    split = recorded_splits(folder).get("test")
    if known is None:
        return None
    later = counted(folder, split, output=OmegaConf.select(config, "output")).count if split is not None else 0
    return max(int(known), later)


def _evaluated(folder: RunFolder) -> dict[str, float]:
    splits = {split: read_json(folder.evaluation(split)).get("scores", {}) for split in ("val", "test")}
    return {f"{split}/{name}": found["value"] for split, scores in splits.items() for name, found in scores.items()}


def _intervals(folder: RunFolder, split: str) -> Iterator[tuple[str, tuple[float, float]]]:
    for name, score in read_json(folder.evaluation(split)).get("scores", {}).items():
        if score["low"] is not None and score["high"] is not None:
            yield name, (score["low"], score["high"])


def _count(split: Any) -> int:
    return int(split["pictures"]) if isinstance(split, dict) and "pictures" in split else 0


def _training(config: DictConfig, provenance: dict[str, Any]) -> dict[str, str]:
    def value(key: str) -> str:
        found = OmegaConf.select(config, key)
        return "" if found is None else str(found)

    phases = OmegaConf.select(config, "freeze.phases") or {}
    weights = provenance.get("weights", {})
    averaged, several = _averaged(provenance.get("soup", {}))
    found = {
        "averaged weights": averaged,
        "starting weights": _without_folders(str(weights.get("source", ""))),
        "SHA-256 of them": str(weights.get("sha256") or ""),
        "freeze schedule": ", then ".join(str(name) for name in phases),
        "optimizer": value("optimizer._target_").rpartition(".")[2],
        "base learning rate": value("optimizer.lr"),
        "most epochs": value("trainer.max_epochs"),
        "batch size": value("data.batch_size"),
        "seed": "" if several else value("seed"),
        "code": str(provenance.get("code") or ""),
        "started": str(provenance.get("started", "")),
    }
    return {name: shown for name, shown in found.items() if shown}


def _averaged(soup: Mapping[str, Any]) -> tuple[str, bool]:
    """How weights were averaged, in words; and whether of several runs, for which one seed cannot speak."""
    runs = soup.get("runs", [])
    if "alpha" in soup:
        share = f"{soup['alpha']:g} of the fine-tuned and {1 - soup['alpha']:g} of the pre-trained backbone"
        return f"{share} (WiSE-FT), chosen by {soup['metric']}", False
    kept = sum(run["kept"] for run in runs)
    words = f"{soup['kind']} soup of {kept} of {len(runs)} runs, by {soup['metric']}" if runs else ""
    return words, len(runs) > 1


def _without_folders(source: str) -> str:
    """The last part of a path: where the folders of this machine lie is nobody's business."""
    place = source.removeprefix("local-dir:")
    return Path(place).name if place != source or os.path.isabs(place) else source
