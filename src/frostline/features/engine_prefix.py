"""The part of a network below its classifier as a module of its own, around the same tensors."""

from __future__ import annotations

import copy

from torch import nn

from frostline.features.boundary import Boundary


def below(model: nn.Module, boundary: Boundary) -> nn.Module:
    """A model that ends where its classifier would begin, and that holds the same parameters and buffers.

    Only the modules around the classifier are new; the rest are the model's own, with their modes. What it gives is
    what comes into the classifier as long as nothing comes after that: whoever uses it compares.
    """
    top = _copy(model)
    *parents, last = boundary.path.split(".")
    module = top
    for name in parents:
        inner = _copy(module.get_submodule(name))
        setattr(module, name, inner)
        module = inner
    setattr(module, last, nn.Identity())
    return top


def _copy(module: nn.Module) -> nn.Module:
    """The same tensors, under a list of submodules of its own."""
    shallow = copy.copy(module)
    shallow._modules = dict(module._modules)
    return shallow
