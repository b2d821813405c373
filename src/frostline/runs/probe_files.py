"""What a probe leaves behind: the table of all candidates, the selected one, its weights, and the picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import save
from torch import nn

from frostline.errors import ConfigError
from frostline.features import Boundary
from frostline.probing import Linear
from frostline.probing.selecting import HEAD, Candidate, as_text
from frostline.reports import ProbePanel, ProbePlot
from frostline.runs.folder import RunFolder
from frostline.runs.probe_parts import ProbeParts
from frostline.runs.saved import save_model
from frostline.writing import write_text

SETTINGS = ("lr", "weight_decay", "seed", "C", "k", "votes")
COLUMNS = ("kind", "features", *SETTINGS, "val/accuracy", "val/loss", "best_epoch", "epochs", "note", "selected")


def write_heads(path: Path, candidates: Sequence[Candidate], best: Candidate) -> None:
    """Write a CSV file with a row for each head and each reference, in the order of the grid."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    for one in candidates:
        row: dict[str, Any] = {
            "kind": one.kind,
            "features": one.features.value,
            "note": one.note,
            "selected": int(one is best),
        }
        row |= {name: repr(value) if isinstance(value, float) else value for name, value in one.settings.items()}
        row |= {"val/accuracy": one.val.accuracy, "val/loss": one.val.loss}
        row |= {} if one.epochs is None else {"best_epoch": one.best_epoch, "epochs": one.epochs}
        writer.writerow(row)
    write_text(path, text.getvalue())


def best_record(order: Sequence[Candidate]) -> dict[str, Any]:
    """What ``best.json`` says of the selected candidate.

    Args:
        order: the best on validation first.
    """
    best = order[0]
    return {
        "kind": best.kind,
        "features": best.features.value,
        **best.settings,
        "val/accuracy": best.val.accuracy,
        "val/loss": best.val.loss,
        "best_epoch": best.best_epoch,
        "of": len(order),
        "ties": "equal ones by the lower loss on validation, then as they stand in heads.csv",
    }


def table_rows(candidates: Sequence[Candidate]) -> list[list[str]]:
    """Rows for the screen."""
    return [
        [
            one.kind,
            one.features.value,
            ", ".join(f"{name} {as_text(value)}" for name, value in one.settings.items()),
            f"{one.val.accuracy:.4f}",
            f"{one.val.loss:.4f}",
            "" if one.epochs is None or one.best_epoch is None else f"{one.best_epoch + 1} of {one.epochs}",
            one.note,
        ]
        for one in candidates
    ]


def plot_of(candidates: Sequence[Candidate], best: Candidate, config: DictConfig) -> ProbePlot:
    """The accuracy of all candidates on validation."""
    panels = []
    for choice in dict.fromkeys(one.features for one in candidates):
        lines: dict[float, dict[float, list[float]]] = {}
        references: dict[str, float] = {}
        for one in candidates:
            if one.features is not choice:
                continue
            if one.kind == HEAD:
                by_rate = lines.setdefault(float(one.settings["weight_decay"]), {})
                by_rate.setdefault(float(one.settings["lr"]), []).append(one.val.accuracy)
            else:
                name = f"best {one.kind}"
                references[name] = max(one.val.accuracy, references.get(name, 0.0))
        is_here = best.features is choice and best.kind == HEAD
        at = (float(best.settings["lr"]), best.val.accuracy) if is_here else None
        panels.append(ProbePanel(choice.value, lines, references, at))
    note = f"{len(candidates)} candidates; selected: {best.kind}, {best.words()}"
    return ProbePlot(panels, "accuracy", f"Probe of {config.backbone.name}", note)


def write_head(path: Path, linear: Linear) -> None:
    """Write ``weight [K, D]`` and ``bias [K]`` of features as the backbone gives them."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(save({"weight": linear.weight.contiguous(), "bias": linear.bias.contiguous()}))
    part.replace(path)


def write_model(parts: ProbeParts, folder: RunFolder, linear: Linear) -> None:
    """Write ``model/`` as ``train`` does, with the selected head as its classifier.

    Raises:
        ConfigError: the classifier of the backbone is another kind of layer.
        StorageError: the folder cannot be written.
    """
    model, boundary = parts.backbone.model, parts.extractor.boundary
    assert isinstance(boundary, Boundary)
    put_head(boundary.classifier(model), linear)
    model.requires_grad_(True)
    backbone = parts.backbone
    save_model(model, folder, labels=parts.data.classes, preprocessing=backbone.preprocessing, head=backbone.head)


def put_head(classifier: nn.Module, linear: Linear) -> None:
    """Give a classifier, a linear layer or a 1x1 convolution, the weights of a head, in place.

    Raises:
        ConfigError: it is something else, or has no bias.
    """
    right = type(classifier).forward in (nn.Linear.forward, nn.Conv2d.forward)
    weight, bias = getattr(classifier, "weight", None), getattr(classifier, "bias", None)
    if not (right and isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter)):
        raise ConfigError(f"its classifier is a {type(classifier).__name__} that cannot take the weights of a head")
    if weight.numel() != linear.weight.numel() or bias.shape != linear.bias.shape:
        raise ConfigError(
            f"its classifier has weights of {list(weight.shape)}, the head of {list(linear.weight.shape)}"
        )
    with torch.no_grad():
        weight.copy_(linear.weight.view_as(weight))
        bias.copy_(linear.bias)
