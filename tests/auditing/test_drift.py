from __future__ import annotations

import numpy as np
import pytest

from frostline.auditing.drift import find_drift
from frostline.auditing.findings import Finding, Kind

CLASSES = ("a", "b", "c")
SIZES = {"train": 400, "val": 90, "test": 90}


def drawn(seed: int) -> tuple[dict, dict, dict]:
    """Splits that are drawn from one source: labels, properties and features."""
    generator = np.random.default_rng(seed)
    labels = {name: generator.integers(0, 3, count) for name, count in SIZES.items()}
    properties = {
        what: {name: generator.normal(scale, 20, len(own)) + 5 * own for name, own in labels.items()}
        for what, scale in (("brightness", 120), ("contrast", 40), ("sharpness", 3))
    }
    properties["size in pixels"] = {name: np.full(len(own), 4096.0) for name, own in labels.items()}
    vectors = {
        name: (generator.normal(size=(len(own), 64)) + np.eye(64)[own] * 3).astype(np.float32)
        for name, own in labels.items()
    }
    return labels, properties, vectors


def named(found: list[Finding]) -> set[tuple[str, str]]:
    return {(finding.detail["split"], finding.detail["property"]) for finding in found}


def test_random_splits_do_not_drift() -> None:
    false = [find_drift(CLASSES, *drawn(seed), seed=seed) for seed in range(100, 120)]
    assert sum(map(bool, false)) <= 1


def test_a_brighter_split_is_named_with_its_amount() -> None:
    labels, properties, vectors = drawn(100)
    properties["brightness"]["val"] += 30
    found = find_drift(CLASSES, labels, properties, vectors)
    assert named(found) == {("val", "brightness")}
    assert found[0].kind is Kind.DRIFT
    assert found[0].score is not None
    assert 0.3 < found[0].score < 0.9
    assert "brightness" in found[0].problem
    assert "val" in found[0].problem
    assert found[0].detail["split_median"] - found[0].detail["train_median"] == pytest.approx(30, abs=10)


def test_other_class_shares_are_named() -> None:
    labels, properties, _ = drawn(101)
    labels["test"] = np.where(np.arange(90) < 60, 2, labels["test"])
    found = find_drift(CLASSES, labels, {"size in pixels": properties["size in pixels"]})
    assert named(found) == {("test", "class shares")}
    assert "'c'" in found[0].problem


def test_other_features_are_named() -> None:
    labels, properties, vectors = drawn(102)
    vectors["val"][:, 10:20] += 0.7
    assert named(find_drift(CLASSES, labels, properties, vectors)) == {("val", "features")}


def test_a_certain_but_small_difference_is_none() -> None:
    generator = np.random.default_rng(0)
    labels = {"train": np.tile([0, 1], 10_000), "val": np.tile([0, 1], 10_000)}
    values = {"brightness": {"train": generator.normal(0, 1, 20_000), "val": generator.normal(0.1, 1, 20_000)}}
    assert find_drift(("a", "b"), labels, values) == []


def test_few_or_unknown_values_are_no_drift() -> None:
    labels = {"train": np.zeros(100, np.int64), "val": np.zeros(10, np.int64)}
    values = {"brightness": {"train": np.zeros(100), "val": np.ones(10)}}
    values["contrast"] = {"train": np.full(100, np.nan), "val": np.ones(10)}
    assert find_drift(("a", "b"), labels, values, {"train": np.zeros((100, 4)), "val": np.ones((10, 4))}) == []
    assert find_drift(("a", "b"), {"val": np.zeros(30, np.int64)}, {}) == []
