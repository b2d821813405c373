from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from frostline.errors import NumericsError
from frostline.evaluation import Estimate, Evaluation, Temperature, evaluate_predictions, gap


def predicted(pictures: int, classes: int, *, knows: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (pictures,), generator=generator)
    logits = torch.randn(pictures, classes, generator=generator) + knows * torch.eye(classes)[labels]
    return labels, logits.softmax(dim=1)


def evaluated(pictures: int, classes: int, *, knows: float = 2.0, seed: int = 0, split: str = "test") -> Evaluation:
    names = [f"class {index}" for index in range(classes)]
    return evaluate_predictions(
        split, *predicted(pictures, classes, knows=knows, seed=seed), names, Temperature(2.0, 9)
    )


def test_every_score_has_an_interval_around_it() -> None:
    found = evaluated(300, 7)
    assert set(found.scores) == {
        *("accuracy", "balanced_accuracy", "macro_f1", "top3_accuracy", "top5_accuracy", "auroc"),
        *("ece", "brier", "nll", "ece_calibrated", "brier_calibrated", "nll_calibrated"),
    }
    for name, score in found.scores.items():
        assert score.low is not None, name
        assert score.high is not None, name
        assert score.low <= score.value <= score.high, name
        assert score.high - score.low < 0.5, name
    assert found.flat()["test/accuracy"] == found.scores["accuracy"].value
    assert found.scores["nll_calibrated"].value != found.scores["nll"].value


def test_classes_and_confusion_count_every_picture_once() -> None:
    found = evaluated(300, 4)
    labels, shares = predicted(300, 4)
    assert found.confusion.sum() == 300
    assert [item.support for item in found.classes] == found.confusion.sum(axis=1).tolist()
    assert [item.predicted for item in found.classes] == found.confusion.sum(axis=0).tolist()
    assert found.confusion[1, 2] == int(((labels == 1) & (shares.argmax(dim=1) == 2)).sum())
    recalls = [item.scores["recall"].value for item in found.classes]
    assert recalls == pytest.approx((found.confusion.diagonal() / found.confusion.sum(axis=1)).tolist())


@pytest.mark.parametrize(("pictures", "classes"), [(1, 2), (1, 30), (2, 2), (5, 12), (40, 2), (30, 6)])
def test_small_splits_have_plain_numbers_or_nothing(pictures: int, classes: int) -> None:
    found = evaluated(pictures, classes)
    text = json.dumps(found.record(), allow_nan=False)
    again = json.loads(text)
    assert again["scores"]["accuracy"]["value"] == pytest.approx(found.scores["accuracy"].value)
    assert 0 <= again["scores"]["accuracy"]["low"] <= again["scores"]["accuracy"]["high"] <= 1
    assert ("top3_accuracy" in found.scores) == (classes > 3)
    if pictures == 1:
        assert "auroc" not in found.scores
        assert found.scores["accuracy"].method == "exact"
        assert found.scores["nll"].low is None
    assert f"test has {pictures} pictures" in found.notes[0]


def test_a_class_without_pictures_is_said_and_left_out() -> None:
    labels, shares = predicted(200, 3)
    labels[labels == 1] = 0
    found = evaluate_predictions("val", labels, shares, ["a", "b", "c"])
    assert "val has no pictures of 'b': balanced accuracy and AUROC are those of the others." in found.notes
    assert "recall" not in found.classes[1].scores
    assert found.classes[1].record()["recall"] is None
    recalls = [found.classes[index].scores["recall"].value for index in (0, 2)]
    assert found.scores["balanced_accuracy"].value == pytest.approx(np.mean(recalls))
    assert "ece_calibrated" not in found.scores


def test_where_nothing_is_wrong_averages_have_no_interval() -> None:
    labels = torch.arange(120) % 3
    found = evaluate_predictions("test", labels, torch.eye(3)[labels] * 0.7 + 0.1, ["a", "b", "c"])
    assert found.scores["accuracy"].low == pytest.approx(0.0253 ** (1 / 120), abs=0.001)
    assert found.scores["macro_f1"].record() == {"value": 1.0, "low": None, "high": None, "method": None}
    assert any("No picture of test is wrong" in note for note in found.notes)


def test_outputs_that_are_not_finite_are_an_error() -> None:
    labels, shares = predicted(20, 3)
    shares[4] = torch.nan
    with pytest.raises(NumericsError, match="not finite for 1 of 20 pictures of the val split"):
        evaluate_predictions("val", labels, shares, ["a", "b", "c"])


def test_the_gap_is_seen_where_there_is_one() -> None:
    train, held_out = (evaluated(400, 5, knows=knows, split=name) for knows, name in ((6.0, "train"), (2.0, "val")))
    found = gap(train, held_out)
    assert found["accuracy"].low is not None
    assert found["accuracy"].low > 0
    assert found["nll"].value < 0
    same = gap(evaluated(400, 5, seed=1), evaluated(400, 5, seed=2))["accuracy"]
    assert same.low is not None
    assert same.high is not None
    assert same.low < 0 < same.high
    # of independent samples: the variances add up
    widths = [width(item.scores["accuracy"]) for item in (train, held_out)]
    assert width(found["accuracy"]) == pytest.approx(np.hypot(*widths), rel=0.1)


def width(found: Estimate) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low
