"""Running statistics of batch norms, computed anew for weights that no training has made.

The mean of the running statistics of several models is not what the layers of the mean model see. As in stochastic
weight averaging (Izmailov et al. 2018, arXiv:1803.05407; ``torch.optim.swa_utils.update_bn``) training pictures are
passed through, and each layer takes the mean over the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS = ("running_mean", "running_var")


def layers_with(model: nn.Module, tensors: Iterable[str] | None = None) -> tuple[str, ...]:
    """The paths of the batch norms of ``model`` that keep statistics.

    Args:
        model: any module.
        tensors: names in ``state_dict()``; only layers whose statistics are among them. None takes all layers.
    """
    wanted = None if tensors is None else set(tensors)
    found = []
    for path, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or module.running_mean is None:
            continue
        own = {f"{path}.{name}" if path else name for name in STATISTICS}
        if wanted is None or own & wanted:
            found.append(path)
    return tuple(found)


def renew_statistics(
    model: nn.Module, layers: Iterable[str], batches: Iterable[Tensor], forward: Callable[[Tensor], object]
) -> int:
    """Set the statistics of ``layers`` to the mean over batches; all else of the model stays as it is, in eval mode.

    Unlike torch's function, no dropout and no other batch norm is in train mode meanwhile.

    Args:
        model: changed in place.
        layers: paths of batch norms.
        batches: ``[B, C, H, W]`` each, normalized, on the device of the model; one of a single picture is left out,
            since batch norm has no variance of it.
        forward: runs the model on a batch.

    Returns:
        How many batches there were.
    """
    count = 0
    with _renewing([model.get_submodule(path) for path in layers], model), torch.no_grad():
        for batch in batches:
            if len(batch) > 1:
                forward(batch)
                count += 1
    return count


@contextmanager
def _renewing(layers: list[nn.Module], model: nn.Module) -> Iterator[None]:
    norms = [layer for layer in layers if isinstance(layer, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        # None is the mean over all batches, in place of one in which the last count most
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
