"""What the heads of a probe are compared with: logistic regression by L-BFGS, and the nearest neighbors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import normalize

from frostline.probing.heads import Linear
from frostline.probing.training import LabelledFeatures

_SIMILARITIES = 1 << 24  # at once
_LEAST = 1e-12  # a class without a vote has this share of them, so that a loss is a number


@dataclass(frozen=True)
class Regression:
    """A logistic regression.

    Attributes:
        c: the inverse strength of its penalty.
        linear: its weights.
        iterations: of L-BFGS.
        converged: whether they were enough.
    """

    c: float
    linear: Linear
    iterations: int
    converged: bool


def logistic_regressions(
    train: LabelledFeatures,
    cs: Sequence[float],
    *,
    iterations: int,
    class_weights: Tensor | None = None,
) -> Iterator[Regression]:
    """Multinomial logistic regression with a penalty ``|W|^2 / 2C`` on the sum of the losses, by scikit-learn.

    Args:
        train: every class occurs.
        cs: values of C; from the smallest on, each begins where the one before ended.
        iterations: of L-BFGS, at most.
        class_weights: ``[K]`` weights of the classes in the loss.
    """
    weights = None if class_weights is None else dict(enumerate(class_weights.tolist()))
    features, labels = train.features.cpu().numpy().astype(np.float64), train.labels.cpu().numpy()
    model = LogisticRegression(max_iter=iterations, warm_start=True, class_weight=weights)
    for c in sorted(set(cs)):
        model.set_params(C=c)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features, labels)
        weight, bias = torch.from_numpy(model.coef_).float(), torch.from_numpy(model.intercept_).float()
        if len(weight) == 1:  # of two classes, scikit-learn has the log odds of the second
            weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
        done = int(model.n_iter_.max())
        yield Regression(c, Linear(weight, bias), done, converged=done < iterations)


@dataclass(frozen=True)
class Neighbors:
    """The classifier of the nearest training pictures by cosine similarity.

    With ``temperature``, a neighbor of similarity s has the weight ``exp(s / temperature)`` (Wu et al. 2018,
    arXiv:1805.01978, section 3.4; DINO, arXiv:2104.14294, takes 0.07 and k = 20); without it, all weigh the same.

    Attributes:
        train: the training pictures.
        num_classes: K.
        k: how many of them vote.
        temperature: None for plain votes.
    """

    train: LabelledFeatures
    num_classes: int
    k: int
    temperature: float | None

    def logits(self, features: Tensor) -> Tensor:
        """``[N, K]`` logarithms of the shares of the votes, for ``[N, D]``; on the CPU."""
        similarity, labels = nearest(self.train, features, self.k)
        return votes(similarity, labels, self.num_classes, self.k, self.temperature)


def nearest(train: LabelledFeatures, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarity, falling, and label of the k nearest training pictures: each ``[N, k]``, on the CPU."""
    known = normalize(train.features, dim=1)
    parts = []
    for some in torch.split(normalize(features.to(known.device), dim=1), max(1, _SIMILARITIES // len(known))):
        similarity, at = (some @ known.T).topk(k, dim=1)
        parts.append((similarity.cpu(), train.labels[at].cpu()))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def votes(similarity: Tensor, labels: Tensor, num_classes: int, k: int, temperature: float | None) -> Tensor:
    """``[N, K]`` logarithms of the shares of the votes of the first k neighbors; see `nearest`."""
    similarity, labels = similarity[:, :k], labels[:, :k]
    if temperature is None:
        weights = torch.ones_like(similarity)
    else:
        # the largest weight is 1: a factor does not change the shares
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
    sums = weights.new_zeros(len(labels), num_classes).scatter_add_(1, labels, weights)
    return (sums / sums.sum(dim=1, keepdim=True)).clamp_min(_LEAST).log()
