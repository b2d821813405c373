from __future__ import annotations

import timm
import torch

from frostline.callbacks import SyncBatchNorm


def test_synchronized_batch_norm_keeps_the_activations() -> None:
    model = timm.create_model("test_efficientnet", num_classes=3).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected, names = model(images), list(model.state_dict())
    converted = SyncBatchNorm().apply(model)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules())
    torch.testing.assert_close(converted.eval()(images), expected)
    assert list(converted.state_dict()) == names
