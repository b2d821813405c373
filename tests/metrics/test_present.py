from __future__ import annotations

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from frostline.metrics import Auroc, BalancedAccuracy

SCORES = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)).softmax(1)


def test_with_all_classes_they_are_scikit_learns() -> None:
    labels = torch.arange(40) % 4
    auroc, balanced = Auroc(4), BalancedAccuracy(4)
    for part in (slice(0, 13), slice(13, 40)):
        auroc.update(SCORES[part], labels[part])
        balanced.update(SCORES[part], labels[part])
    assert float(auroc.compute()) == pytest.approx(roc_auc_score(labels, SCORES, multi_class="ovr"), abs=1e-6)
    assert float(balanced.compute()) == pytest.approx(balanced_accuracy_score(labels, SCORES.argmax(1)), abs=1e-6)


def test_one_class_alone_has_no_area() -> None:
    auroc = Auroc(4)
    auroc.update(SCORES, torch.full((40,), 2))
    assert auroc.compute().isnan()


def test_a_class_without_pictures_does_not_count() -> None:
    labels = torch.arange(40) % 3
    auroc, balanced = Auroc(4), BalancedAccuracy(4)
    auroc.update(SCORES, labels)
    balanced.update(SCORES, labels)
    each = [roc_auc_score(labels == label, SCORES[:, label]) for label in range(3)]
    recall = [float((SCORES.argmax(1)[labels == label] == label).float().mean()) for label in range(3)]
    assert float(auroc.compute()) == pytest.approx(sum(each) / 3, abs=1e-6)
    assert float(balanced.compute()) == pytest.approx(sum(recall) / 3, abs=1e-6)
