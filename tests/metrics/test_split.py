from __future__ import annotations

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from frostline.errors import ConfigError
from frostline.metrics import SplitScores, TrainingScores, makes_sense


def test_scores_are_of_all_pictures_and_start_anew() -> None:
    metrics = {"accuracy": MulticlassAccuracy(3, average="micro"), "macro_f1": MulticlassF1Score(3)}
    scores = SplitScores(metrics, "val")
    for _ in range(2):
        scores.update(torch.eye(3), torch.tensor([0, 1, 0]), torch.tensor(1.0))
        scores.update(torch.eye(3)[:1], torch.tensor([0]), torch.tensor(5.0))
        found = {name: float(value) for name, value in scores.compute().items()}
        assert found["val/accuracy"] == pytest.approx(3 / 4)
        assert found["val/loss"] == pytest.approx((3 * 1 + 1 * 5) / 4)
        assert found["val/count"] == 4
        assert set(found) == {"val/accuracy", "val/macro_f1", "val/loss", "val/count"}


def test_two_splits_share_no_state() -> None:
    metrics = {"accuracy": MulticlassAccuracy(2, average="micro")}
    one, other = SplitScores(metrics, "val"), SplitScores(metrics, "test")
    one.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor(0.0))
    other.update(torch.eye(2), torch.tensor([1, 0]), torch.tensor(0.0))
    assert float(one.compute()["val/accuracy"]) == 1
    assert float(other.compute()["test/accuracy"]) == 0


def test_a_top_k_over_k_classes_says_nothing() -> None:
    assert makes_sense(5, 6)
    assert not makes_sense(5, 5)


def test_a_first_batch_that_is_all_right_does_not_make_two_metrics_one() -> None:
    metrics = {
        "accuracy": MulticlassAccuracy(3, average="micro"),
        "top2_accuracy": MulticlassAccuracy(3, average="micro", top_k=2),
    }
    scores = SplitScores(metrics, "val")
    scores.update(torch.eye(3), torch.tensor([0, 1, 2]), torch.tensor(0.0))
    second = torch.tensor([[0.6, 0.3, 0.1]])
    scores.update(second, torch.tensor([1]), torch.tensor(0.0))
    found = scores.compute()
    assert float(found["val/accuracy"]) == 0.75
    assert float(found["val/top2_accuracy"]) == 1.0


def test_the_scores_of_training_are_torchmetrics_and_go_on_from_their_sums() -> None:
    torch.manual_seed(0)
    own, theirs = TrainingScores(), MulticlassAccuracy(5, average="micro")
    losses, counts = [], []
    for count in (7, 3, 6):
        logits, labels, loss = torch.randn(count, 5), torch.randint(5, (count,)), torch.rand(())
        own.update(logits, labels, loss)
        theirs.update(logits, labels)
        losses.append(float(loss) * count)
        counts.append(count)
        later = TrainingScores()
        later.load_sums(own.sums())
        own = later
    found = own.compute()
    assert float(found["train/accuracy"]) == float(theirs.compute())
    assert float(found["train/loss"]) == pytest.approx(sum(losses) / sum(counts))
    assert float(found["train/count"]) == sum(counts)
    with pytest.raises(ConfigError, match="older Frostline"):
        own.load_sums({"loss.loss": torch.tensor(0.0)})
    own.reset()
    assert all(float(value) == 0 for value in own.sums().values())
