"""What may be selected on validation: heads and references side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from frostline.errors import NumericsError
from frostline.probing.heads import Linear, Scores, TrainedHead
from frostline.probing.references import Neighbors, Regression
from frostline.specs import FeatureChoice

HEAD, LOGISTIC, NEIGHBORS = "head", "logistic", "knn"


class Classifier(Protocol):
    """Whatever says something of features."""

    def logits(self, features: Tensor) -> Tensor:
        """``[N, K]`` of ``[N, D]``, on the CPU."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A classifier with what it reaches on validation.

    Attributes:
        kind: ``head``, ``logistic`` or ``knn``.
        features: what it takes.
        settings: what makes it another than those of its kind, by the name of the setting.
        val: its scores.
        classifier: of features as the backbone gives them.
        best_epoch: the epoch, from 0, whose weights it has; None for what has no epochs.
        epochs: how many it was trained.
        note: what a person should know of it.
    """

    kind: str
    features: FeatureChoice
    settings: dict[str, float | int | str]
    val: Scores
    classifier: Classifier
    best_epoch: int | None = None
    epochs: int | None = None
    note: str = ""

    def words(self) -> str:
        """``last, lr 0.001, weight_decay 0, seed 0``."""
        return ", ".join((self.features.value, *(f"{name} {as_text(value)}" for name, value in self.settings.items())))


def as_text(value: float | int | str) -> str:
    """A setting as it is typed: ``0.001``, ``10``, ``plain``."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def of_head(trained: TrainedHead, linear: Linear) -> Candidate:
    """A head as a candidate; ``linear`` is that of features as the backbone gives them."""
    head = trained.head
    return Candidate(
        HEAD,
        head.features,
        {"lr": head.lr, "weight_decay": head.weight_decay, "seed": head.seed},
        trained.val,
        linear,
        best_epoch=trained.best_epoch,
        epochs=trained.epochs,
        note="diverged" if trained.diverged else "",
    )


def of_regression(regression: Regression, features: FeatureChoice, val: Scores, linear: Linear) -> Candidate:
    """A logistic regression as a candidate; ``linear`` as for `of_head`."""
    note = "" if regression.converged else "not converged"
    return Candidate(LOGISTIC, features, {"C": regression.c}, val, linear, note=note)


def of_neighbors(neighbors: Neighbors, features: FeatureChoice, val: Scores) -> Candidate:
    """Nearest neighbors as a candidate."""
    kind = "plain" if neighbors.temperature is None else "weighted"
    return Candidate(NEIGHBORS, features, {"k": neighbors.k, "votes": kind}, val, neighbors)


def ranked(candidates: Sequence[Candidate], *, by_loss: bool) -> list[Candidate]:
    """The best on validation first: by the monitor, of equal ones by the lower loss, then as they were given.

    Raises:
        NumericsError: none has a loss that is a number.
    """
    usable = [one for one in candidates if math.isfinite(one.val.loss)]
    if not usable:
        raise NumericsError(
            "no head has a loss that is a number", mend="Lower probe.lr, or set probe.standardize=true."
        )

    def rank(one: Candidate) -> tuple[float, float]:
        return (0.0 if by_loss else -one.val.accuracy, one.val.loss)

    return sorted(usable, key=rank)
