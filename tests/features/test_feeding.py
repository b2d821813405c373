"""The frozen body: known by what it is, and looked at again where it was written to."""

from __future__ import annotations

import pytest
import timm
import torch

from frostline.features import FrozenBody, feeding, find_boundary


@pytest.fixture
def body() -> FrozenBody:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5, drop_rate=0.5).train()
    return FrozenBody(model, find_boundary(model), model.forward)


def test_its_hash_is_computed_again_only_where_a_tensor_was_written_to(
    body: FrozenBody, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    original = feeding.body_hash
    monkeypatch.setattr(feeding, "body_hash", lambda *given: counted.append("") or original(*given))
    first = body.hash()
    with torch.no_grad():
        body.model.fc.weight.add_(1)
    assert body.hash() == first
    assert len(counted) == 1
    with torch.no_grad():
        next(body.model.parameters()).add_(0)
    assert body.hash() == first
    assert len(counted) == 2
    next(buffer for name, buffer in body.model.named_buffers() if name.endswith("running_mean")).add_(1)
    assert body.hash() != first


def test_it_runs_in_eval_and_leaves_modes_and_statistics_alone(body: FrozenBody) -> None:
    images = torch.randn(3, 3, 32, 32)
    before = {name: buffer.clone() for name, buffer in body.model.named_buffers()}
    features = body(images)
    assert torch.equal(features, body(images))
    assert features.shape == (3, body.model.num_features)
    assert body.model.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in body.model.named_buffers())
    with torch.inference_mode(), torch.inference_mode(False):
        assert not body(images).is_inference()
