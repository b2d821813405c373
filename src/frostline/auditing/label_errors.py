"""Pictures that are probably labelled wrongly, by confident learning on a linear probe."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from frostline.auditing.features import Vectors
from frostline.auditing.findings import HARM, Finding, Kind, Place
from frostline.data.splits import Labels
from frostline.errors import ConfigError

Probabilities = npt.NDArray[np.float64]

# the inverse strength of the probe's weight decay: chosen by its log-loss on held-out pictures, as errors among the
# labels ask for more decay
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_REPEATS = 3  # divisions into folds whose predictions are averaged
_LARGE = 20_000  # pictures above which a probe is fitted to as many, and once
_FEW = 5_000  # pictures up to which a probe is fitted on one thread
_LEAST = 3  # pictures of a class that can be judged
# below this a given label has next to no support
_UNSUPPORTED = 0.05
# a probe that disagrees with so few of the other labels is believed where it gives one less than this
_CLEAN, _WEAKLY_SUPPORTED = 0.02, 0.2
# the share of the way from chance to perfect that a probe must have come: to be listened to, and to be trusted
_USABLE_SKILL, _SURE_SKILL = 0.2, 0.6


@dataclass(frozen=True)
class LabelErrors:
    """What was found among the labels.

    Attributes:
        findings: the most certain first.
        accuracy: the share of held-out pictures that the probe labels as they are labelled; None where there was none.
        folds: of the cross-validation; 0 where there was none.
        judged: how many pictures were looked at.
        notes: sentences on what could not be judged, and on how sure the findings are.
    """

    findings: list[Finding] = field(default_factory=list)
    accuracy: float | None = None
    folds: int = 0
    judged: int = 0
    notes: list[str] = field(default_factory=list)


def find_label_errors(
    vectors: Vectors,
    labels: Labels,
    place: Callable[[int], Place],
    classes: Sequence[str],
    *,
    groups: Labels | None = None,
    folds: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> LabelErrors:
    """Judges each label by a linear probe that has not seen the picture, nor one that belongs with it.

    The probe is a logistic regression on standardized features; its predictions are averaged over divisions into
    folds. A label is doubted where cleanlab doubts it, by confident learning (Northcutt et al. 2021, "Confident
    Learning: Estimating Uncertainty in Dataset Labels", arXiv:1911.00068), and the probe gives it next to no
    probability. The probe is then fitted again without the doubtful labels, and judges all of them anew.

    Args:
        vectors: ``[N, D]`` float32 features.
        labels: ``[N]`` class indices.
        place: from a position to its picture.
        classes: class names.
        groups: ``[N]`` numbers, equal for pictures that must be in one fold, such as duplicates.
        folds: of the cross-validation; fewer are made where a class has fewer pictures.
        seed: of the folds.
        progress: called with the number of probes that are fitted, of how many at most.

    Raises:
        ConfigError: cleanlab is not installed.
    """
    require_cleanlab()
    own = np.arange(len(labels)) if groups is None else groups
    counts = _independent(labels, own, len(classes))
    usable = np.flatnonzero(counts >= _LEAST)
    notes = _too_few(counts, classes)
    kept = np.flatnonzero(np.isin(labels, usable))
    if len(usable) < 2 or vectors.shape[1] == 0:
        return LabelErrors(notes=[*notes, "Label errors are not looked for: there are too few pictures."])
    number = min(folds, int(counts[usable].min()))
    if number < folds:
        notes.append(f"Label errors: {number} folds in place of {folds}, since a class has {number} pictures.")
    given = np.searchsorted(usable, labels[kept])
    probe = _Probe(vectors[kept], given, own[kept], number, seed, progress)
    probabilities = probe.held_out()
    accuracy = float((probabilities.argmax(axis=1) == given).mean())
    skill = _skill(accuracy, given)
    if skill < _SURE_SKILL:
        notes.append(_unsure(accuracy, given, listened=skill >= _USABLE_SKILL))
    doubted = np.zeros(0, np.int64)
    if skill >= _USABLE_SKILL:
        probabilities, doubted = _doubted_twice(probe, given, probabilities)
    harm = HARM[Kind.LABEL_ERROR] * (1.0 if skill >= _SURE_SKILL else 0.5)
    names = [classes[int(index)] for index in usable]
    findings = [_finding(place(int(kept[at])), given[at], probabilities[at], names, harm) for at in doubted]
    return LabelErrors(findings, accuracy, number, len(kept), notes)


def joined_groups(count: int, sets: Iterable[Sequence[int]], given: Labels | None = None) -> Labels:
    """``[count]`` numbers, equal for positions that a set or ``given`` joins, directly or through others.

    Args:
        count: of positions.
        sets: positions that belong together.
        given: ``[count]`` numbers that are equal for positions that belong together.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs = [(first, other) for first, *others in sets for other in others]
    edges = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    if given is not None:
        first_of = np.unique(given, return_index=True, return_inverse=True)
        edges = np.concatenate([edges, np.stack([first_of[1][first_of[2]], np.arange(count)], axis=1)])
    graph = coo_matrix((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(count, count))
    joined: Labels = connected_components(graph, directed=False)[1].astype(np.int64)
    return joined


def grouped_folds(labels: Labels, groups: Labels, folds: int, *, seed: int) -> Labels:
    """``[N]`` fold numbers: each class is spread evenly, and a group is in one fold.

    Args:
        labels: ``[N]`` class indices.
        groups: ``[N]`` numbers.
        folds: how many.
        seed: of the order in which groups are distributed.
    """
    _, first, number, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    # a large group that came late would leave the folds uneven
    order = order[np.argsort(-sizes[order], kind="stable")]
    home = labels[first]
    filled = np.zeros((int(labels.max()) + 1, folds), dtype=np.int64).tolist()
    fold_of = np.empty(len(sizes), dtype=np.int64)
    for group in order.tolist():
        row = filled[home[group]]
        # of equally full ones the next, so that classes of few pictures do not all lie in the first
        fold_of[group] = least = min(range(folds), key=lambda fold: (row[fold], (fold - home[group]) % folds))
        row[least] += int(sizes[group])
    result: Labels = fold_of[number]
    return result


def _independent(labels: Labels, groups: Labels, classes: int) -> Labels:
    """Of each class, how many groups have pictures in it."""
    pairs = np.unique(np.stack([labels, groups], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=classes)


def _too_few(counts: Labels, classes: Sequence[str]) -> list[str]:
    few = [f"'{classes[index]}'" for index in np.flatnonzero(counts < _LEAST).tolist()]
    if not few:
        return []
    named = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
    return [f"Labels of {named} are not judged: fewer than {_LEAST} independent pictures."]


@dataclass
class _Probe:
    """A linear probe on some pictures, and what it says of those that it was not fitted to.

    Attributes:
        vectors, labels, groups: of the pictures.
        folds: of the cross-validation.
        seed: of the folds.
        progress: called with the number of fits, of how many at most.
    """

    vectors: Vectors
    labels: Labels
    groups: Labels
    folds: int
    seed: int
    progress: Callable[[int, int], None] | None
    _done: int = 0

    def held_out(self, trusted: npt.NDArray[np.bool_] | None = None) -> Probabilities:
        """``[N, K]`` probabilities of the classes, each from a probe that was fitted without the picture's group.

        Args:
            trusted: ``[N]`` bool: the pictures that a probe may be fitted to; None for all.
        """
        known = np.ones(len(self.labels), dtype=np.bool_) if trusted is None else trusted
        _, number, counts = np.unique(self.groups, return_inverse=True, return_counts=True)
        sizes = counts[number]
        best, strength, least = self._once(_STRENGTHS[0], self.seed, known), _STRENGTHS[0], np.inf
        for tried in _STRENGTHS:
            found = best if tried == _STRENGTHS[0] else self._once(tried, self.seed, known)
            given = found[np.arange(len(self.labels)), self.labels]
            # copies of a picture count as one
            loss = float(-np.average(np.log(np.maximum(given, 1e-12)), weights=known / sizes))
            if loss >= least:
                break  # the loss falls and then rises
            best, strength, least = found, tried, loss
        repeats = _REPEATS if len(self.labels) <= _LARGE else 1
        others = [self._once(strength, self.seed + repeat, known) for repeat in range(1, repeats)]
        mean: Probabilities = np.mean([best, *others], axis=0)
        return mean

    def _once(self, strength: float, seed: int, known: npt.NDArray[np.bool_]) -> Probabilities:
        division = grouped_folds(self.labels, self.groups, self.folds, seed=seed)
        return _cross_validated(self.vectors, self.labels, division, known, strength, seed, self._tick)

    def _tick(self) -> None:
        self._done += 1
        most = 2 * self.folds * (len(_STRENGTHS) + _REPEATS - 1)
        if self.progress is not None:
            self.progress(min(self._done, most), most)


def _cross_validated(
    vectors: Vectors,
    labels: Labels,
    division: Labels,
    known: npt.NDArray[np.bool_],
    strength: float,
    seed: int,
    tick: Callable[[], None],
) -> Probabilities:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

    found = np.zeros((len(labels), int(labels.max()) + 1))
    for fold in range(int(division.max()) + 1):
        seen, held = np.flatnonzero((division != fold) & known), np.flatnonzero(division == fold)
        if len(seen) > _LARGE:
            seen = np.sort(np.random.default_rng(seed).choice(seen, _LARGE, replace=False))
        scale = StandardScaler().fit(vectors[seen])
        probe = LogisticRegression(C=strength, max_iter=200, tol=1e-3)
        # for few pictures threads cost more than they bring, and much more where others use the cores
        threads = threadpool_limits(1 if len(seen) <= _FEW else None)
        with threads, warnings.catch_warnings():
            # a probe that has not quite come to its optimum ranks labels as well as one that has
            warnings.simplefilter("ignore")
            probe.fit(scale.transform(vectors[seen]), labels[seen])
        for start in range(0, len(held), _LARGE):
            some = held[start : start + _LARGE]
            found[np.ix_(some, probe.classes_)] = probe.predict_proba(scale.transform(vectors[some]))
        tick()
    return found


def _skill(accuracy: float, labels: Labels) -> float:
    chance = float(np.bincount(labels).max()) / len(labels)
    return (accuracy - chance) / (1.0 - chance) if chance < 1.0 else 0.0


def _unsure(accuracy: float, labels: Labels, *, listened: bool) -> str:
    chance = float(np.bincount(labels).max()) / len(labels)
    then = "label errors are less sure" if listened else "label errors are not looked for"
    return (
        f"The linear probe labels {accuracy:.0%} of the pictures as they are labelled, where the largest class alone "
        f"would give {chance:.0%}: {then}. A backbone that knows such pictures sees more: backbone=timm "
        "backbone.name=NAME."
    )


def _doubted_twice(probe: _Probe, labels: Labels, probabilities: Probabilities) -> tuple[Probabilities, Labels]:
    """Doubts labels, then fits the probe anew without those: errors among what it learns from hide others.

    Returns:
        The probabilities after that, and the positions of doubtful labels, the most certain first.
    """
    first = _doubted(labels, probabilities, _UNSUPPORTED)
    if not first.any():
        return probabilities, np.zeros(0, np.int64)
    again = probe.held_out(~first)
    otherwise = again.argmax(axis=1) != labels
    second = _doubted(labels, again, _UNSUPPORTED)
    if (otherwise & ~second).mean() <= _CLEAN:
        # a probe that is all but always right is believed where it is less sure
        second |= otherwise & (again[np.arange(len(labels)), labels] < _WEAKLY_SUPPORTED)
    # what was doubted at first and is no more has been cleared
    margin = again.max(axis=1) - again[np.arange(len(labels)), labels]
    at = np.flatnonzero(second)
    found: Labels = at[np.argsort(-margin[at], kind="stable")]
    return again, found


def _doubted(labels: Labels, probabilities: Probabilities, least: float) -> npt.NDArray[np.bool_]:
    """``[N]`` bool: the labels that cleanlab doubts and that the probe gives less than ``least``."""
    from cleanlab.filter import find_label_issues

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        confident = find_label_issues(labels, probabilities, filter_by="low_self_confidence", n_jobs=1)
    # where the probe itself is often wrong, cleanlab counts its errors as errors of labels; few of them are as sure
    given = probabilities[np.arange(len(labels)), labels]
    doubted: npt.NDArray[np.bool_] = np.asarray(confident) & (given < least) & (probabilities.argmax(axis=1) != labels)
    return doubted


def _finding(place: Place, label: np.int64, probabilities: Probabilities, names: Sequence[str], harm: float) -> Finding:
    best = int(probabilities.argmax())
    given, suggested = float(probabilities[label]), float(probabilities[best])
    detail: dict[str, Any] = {"given": place.label, "suggested": names[best]}
    detail |= {"p_given": round(given, 4), "p_suggested": round(suggested, 4)}
    return Finding(
        Kind.LABEL_ERROR,
        harm,
        (place,),
        f"{place.name} ({place.split}) is labelled '{place.label}', but the probe sees '{names[best]}' "
        f"({suggested:.0%}, against {given:.0%}).",
        "Look at it, and correct its label where it is wrong.",
        suggested - given,
        detail,
    )


def require_cleanlab() -> None:
    """Raise where cleanlab is missing.

    Raises:
        ConfigError: it is, naming the extra that has it.
    """
    try:
        import cleanlab.filter  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"Label errors are found with cleanlab, which cannot be imported: {error}.",
            mend="pip install 'frostline[audit]', or audit.labels=false.",
        ) from error
