from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from frostline.auditing.findings import Place
from frostline.auditing.label_errors import LabelErrors, find_label_errors, grouped_folds, joined_groups

# The rule was chosen on seeds below 200, the share of errors that must be found on 200 to 204 (0.89, less 0.1); the
# seeds from 400 on were looked at once, when both stood.


def clusters(seed: int, counts: tuple[int, ...] = (60, 60, 60), apart: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of classes that a line tells apart, and their labels."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centers = generator.normal(size=(len(counts), 16))
    centers *= apart / np.linalg.norm(centers, axis=1, keepdims=True)
    return (centers[labels] + generator.normal(size=(len(labels), 16))).astype(np.float32), labels


def flipped(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, set[int]]:
    generator = np.random.default_rng(seed)
    at = generator.choice(len(labels), round(share * len(labels)), replace=False)
    changed, count = labels.copy(), int(labels.max()) + 1
    changed[at] = (labels[at] + generator.integers(1, count, len(at))) % count
    return changed, set(at.tolist())


def judge(vectors: np.ndarray, labels: np.ndarray, **settings: object) -> LabelErrors:
    names = [str(index) for index in range(10)]
    return find_label_errors(
        vectors, labels, lambda at: Place("train", at, str(at), names[labels[at]]), names, **settings
    )


def positions(found: LabelErrors) -> set[int]:
    return {finding.places[0].index for finding in found.findings}


@pytest.mark.slow
def test_planted_errors_are_found_with_the_right_label() -> None:
    found_count, planted_count, false_count = 0, 0, 0
    for seed in range(400, 410):
        vectors, labels = clusters(seed)
        wrong, planted = flipped(labels, 0.05, seed)
        found = judge(vectors, wrong)
        found_count, planted_count = found_count + len(positions(found) & planted), planted_count + len(planted)
        false_count += len(positions(found) - planted)
        for finding in found.findings:
            at = finding.places[0].index
            if at in planted:
                assert (finding.detail["suggested"], finding.detail["given"]) == (str(labels[at]), str(wrong[at]))
        scores = [finding.score for finding in found.findings]
        assert scores == sorted(scores, reverse=True)
    # not each error of a set as small as this is found: as few as 4 of 9 with seed 408
    assert found_count >= 0.79 * planted_count
    assert false_count <= 0.02 * 10 * len(labels)


def test_planted_errors_among_handwritten_digits_are_found() -> None:
    digits = load_digits()
    wrong, planted = flipped(digits.target, 0.05, 205)
    found = positions(judge(digits.data.astype(np.float32), wrong))
    assert len(found & planted) >= 0.7 * len(planted)
    assert len(found - planted) <= 0.01 * len(wrong)


@pytest.mark.parametrize("seed", [210, 211, 212])
def test_clean_labels_are_not_doubted(seed: int) -> None:
    vectors, labels = clusters(seed, apart=4.0)
    assert len(judge(vectors, labels).findings) <= 0.02 * len(labels)


def test_the_same_data_gives_the_same_findings() -> None:
    vectors, labels = clusters(3)
    wrong, _ = flipped(labels, 0.05, 3)
    assert judge(vectors, wrong, seed=1) == judge(vectors, wrong, seed=1)


def test_a_copy_does_not_vouch_for_a_wrong_label() -> None:
    vectors, labels = clusters(5, counts=(60, 60, 60), apart=8.0)
    wrong = labels.copy()
    wrong[0] = 1
    # the wrong picture has copies with the same wrong label
    vectors, wrong = np.concatenate([vectors, np.repeat(vectors[:1], 20, axis=0)]), np.concatenate([wrong, [1] * 20])
    groups = joined_groups(len(wrong), [[0, *range(180, 200)]])
    assert positions(judge(vectors, wrong, groups=groups)) >= {0}
    assert positions(judge(vectors, wrong)) == set()


def test_a_probe_that_knows_nothing_is_not_listened_to() -> None:
    generator = np.random.default_rng(0)
    found = judge(generator.normal(size=(120, 8)).astype(np.float32), np.repeat([0, 1, 2], 40))
    assert found.findings == []
    assert any("not looked for" in note for note in found.notes)


def test_a_poor_probe_is_said_and_its_findings_weigh_less() -> None:
    vectors, labels = clusters(7, counts=(150, 150, 150), apart=1.2)
    wrong, _ = flipped(labels, 0.1, 7)
    found = judge(vectors, wrong)
    assert any("less sure" in note for note in found.notes)
    assert all(finding.harm < 0.5 for finding in found.findings)


def test_small_classes_get_fewer_folds_or_are_left_out() -> None:
    vectors, labels = clusters(9, counts=(40, 40, 3))
    found = judge(vectors, labels)
    assert (found.folds, found.judged) == (3, 83)
    vectors, labels = clusters(9, counts=(40, 40, 2))
    found = judge(vectors, labels)
    assert (found.folds, found.judged) == (5, 80)
    assert any("'2'" in note for note in found.notes)
    vectors, labels = clusters(9, counts=(40, 2))
    found = judge(vectors, labels)
    assert (found.folds, found.accuracy, found.findings) == (0, None, [])


def test_folds_keep_groups_together_and_classes_even() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 400)
    groups = np.where(np.arange(400) < 60, labels * 100 + np.arange(400) % 3, 1000 + np.arange(400))
    folds = grouped_folds(labels, groups, 5, seed=2)
    assert all(len(set(folds[groups == group])) == 1 for group in np.unique(groups))
    for label in range(4):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 5
    assert (folds != grouped_folds(labels, groups, 5, seed=3)).any()


def test_groups_join_through_each_other() -> None:
    assert joined_groups(6, [[0, 1], [1, 2]]).tolist() == [0, 0, 0, 1, 2, 3]
    given = np.array([7, 8, 9, 9, 7, 5])
    assert joined_groups(6, [[1, 2]], given).tolist() == [0, 1, 1, 1, 0, 2]
