"""Differences between the training split and those that it is judged by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from frostline.auditing.features import Vectors
from frostline.auditing.findings import HARM, Finding, Kind
from frostline.data.splits import Labels

Values = npt.NDArray[np.float64]

# the chance of any drift being reported where the splits are drawn at random
_LEVEL = 0.01
_FEWEST = 20  # pictures of a split, below which a difference is chance or cannot be told from it
# a difference must be this large to matter, however sure it is
_SHARES, _DISTANCE, _AUC = 0.1, 0.2, 0.65
_MOST = 4000  # pictures of a split whose features are compared
_COMPONENTS = 32  # principal components of the features, so that few pictures suffice
_FOLDS = 5
_MEND = "Divide the pictures anew, or report results for what the {split} split is: another kind of pictures."


@dataclass(frozen=True)
class _Difference:
    """A difference between two splits; ``size`` is 0..1, ``chance`` that of one so large among random splits."""

    what: str
    size: float
    least: float
    chance: float
    said: str
    detail: dict[str, Any]


def find_drift(
    classes: Sequence[str],
    labels: Mapping[str, Labels],
    properties: Mapping[str, Mapping[str, Values]],
    vectors: Mapping[str, Vectors] | None = None,
    *,
    seed: int = 0,
) -> list[Finding]:
    """Compares each split with ``train``: class shares, properties of the pictures, features.

    A difference is reported where it is both large enough to matter and too large to be chance, as all comparisons
    are counted (Bonferroni): total variation of class shares with a chi-squared test, the Kolmogorov-Smirnov distance
    of a property, and the area under the ROC curve of a linear classifier that tells the splits apart by features,
    cross-validated.

    Args:
        classes: class names.
        labels: split to ``[N]`` class indices.
        properties: name to split to ``[N]`` values, in which NaN is left out.
        vectors: split to ``[N, D]`` features.
        seed: of the choice of pictures and folds.
    """
    if "train" not in labels:
        return []
    found: dict[str, list[_Difference]] = {}
    for split in labels:
        if split != "train":
            found[split] = list(_differences(classes, labels, properties, vectors, split, seed))
    level = _LEVEL / max(1, sum(len(differences) for differences in found.values()))
    return [
        _finding(split, difference)
        for split, differences in found.items()
        for difference in differences
        if difference.size >= difference.least and difference.chance <= level
    ]


def _differences(
    classes: Sequence[str],
    labels: Mapping[str, Labels],
    properties: Mapping[str, Mapping[str, Values]],
    vectors: Mapping[str, Vectors] | None,
    split: str,
    seed: int,
) -> Iterator[_Difference]:
    if min(len(labels["train"]), len(labels[split])) >= _FEWEST:
        yield _of_shares(classes, labels["train"], labels[split], split)
    for name, values in properties.items():
        both = [values[one][np.isfinite(values[one])] for one in ("train", split)]
        if min(map(len, both)) >= _FEWEST and np.ptp(np.concatenate(both)) > 0:
            yield _of_property(name, both[0], both[1], split)
    if vectors is not None and min(len(vectors["train"]), len(vectors[split])) >= 2 * _FEWEST:
        yield _of_features(vectors["train"], vectors[split], split, seed)


def _of_shares(classes: Sequence[str], train: Labels, other: Labels, split: str) -> _Difference:
    from scipy.stats import chi2_contingency

    counts = np.stack([np.bincount(one, minlength=len(classes)) for one in (train, other)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    size = float(np.abs(shares[0] - shares[1]).sum() / 2)
    chance = float(chi2_contingency(counts[:, counts.sum(axis=0) > 0]).pvalue)
    most = int(np.abs(shares[0] - shares[1]).argmax())
    said = (
        f"{size:.0%} of the pictures would need another label for equal class shares: '{classes[most]}' makes up "
        f"{shares[1, most]:.1%} of {split} and {shares[0, most]:.1%} of train"
    )
    detail = {"train_share": float(shares[0, most]), "split_share": float(shares[1, most]), "class": classes[most]}
    return _Difference("class shares", size, _SHARES, chance, said, detail)


def _of_property(name: str, train: Values, other: Values, split: str) -> _Difference:
    from scipy.stats import ks_2samp

    result = ks_2samp(train, other, method="asymp")
    middle = float(np.median(train)), float(np.median(other))
    where = f"its median is {middle[1]:.4g} in {split} and {middle[0]:.4g} in train"
    if middle[0] == middle[1]:
        spread = np.percentile(train, [10, 90]), np.percentile(other, [10, 90])
        where = (
            f"from 10 % to 90 % it goes from {spread[1][0]:.4g} to {spread[1][1]:.4g} in {split} and from "
            f"{spread[0][0]:.4g} to {spread[0][1]:.4g} in train"
        )
    said = f"the {name} is distributed otherwise, by {float(result.statistic):.2f} (Kolmogorov-Smirnov): {where}"
    detail = {"train_median": middle[0], "split_median": middle[1]}
    return _Difference(name, float(result.statistic), _DISTANCE, float(result.pvalue), said, detail)


def _of_features(train: Vectors, other: Vectors, split: str, seed: int) -> _Difference:
    from scipy.stats import norm

    auc, counts = _separability(train, other, seed)
    # the variance of the area under the curve where there is nothing to tell apart (Mann and Whitney 1947)
    deviation = float(np.sqrt((counts[0] + counts[1] + 1) / (12 * counts[0] * counts[1])))
    chance = float(norm.sf((auc - 0.5) / deviation))
    said = f"a linear classifier tells its pictures from those of train by their features, at an AUC of {auc:.2f}"
    return _Difference("features", auc, _AUC, chance, said, {})


def _separability(train: Vectors, other: Vectors, seed: int) -> tuple[float, tuple[int, int]]:
    """The cross-validated area under the ROC curve of telling two sets apart (0.5: not at all), and their counts."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    generator = np.random.default_rng(seed)
    both = [one[np.sort(generator.permutation(len(one))[:_MOST])] for one in (train, other)]
    vectors = np.concatenate(both).astype(np.float64)
    which = np.repeat([0, 1], [len(one) for one in both])
    vectors = (vectors - vectors.mean(axis=0)) / np.maximum(vectors.std(axis=0), 1e-6)
    components = min(_COMPONENTS, vectors.shape[1], len(vectors) // 10)
    # without a look at which is which, so that held-out pictures stay held out
    vectors = PCA(components, whiten=True, random_state=seed).fit_transform(vectors)
    scores = np.zeros(len(which))
    for seen, held in StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(vectors, which):
        probe = LogisticRegression(C=0.1, class_weight="balanced", max_iter=200).fit(vectors[seen], which[seen])
        scores[held] = probe.decision_function(vectors[held])
    return float(roc_auc_score(which, scores)), (len(both[0]), len(both[1]))


def _finding(split: str, found: _Difference) -> Finding:
    return Finding(
        Kind.DRIFT,
        HARM[Kind.DRIFT],
        (),
        f"The {split} split differs from train: {found.said}.",
        _MEND.format(split=split),
        found.size,
        {"split": split, "property": found.what, "chance": found.chance, **found.detail},
    )
