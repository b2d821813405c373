"""Batch norm over all ranks."""

from __future__ import annotations

from lightning.pytorch.plugins.layer_sync import LayerSync
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn


class SyncBatchNorm(LayerSync):
    """Synchronized batch norm that keeps the activation which timm's batch norms carry.

    torch's own conversion, which Lightning uses, puts a plain batch norm in the place of timm's ``BatchNormAct2d`` and
    so drops its activation.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Convert in place of Lightning."""
        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # timm gives no types
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave it: outside training a synchronized batch norm is a plain one."""
        return model
