"""What kind of layer a module is, as far as freezing and weight decay ask."""

from __future__ import annotations

from torch import nn

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` normalizes activations.

    Third-party layers often derive from ``nn.Module`` directly, so that a class with "norm" in its name counts too.
    Containers such as a convolution with its normalization do as well, which is harmless where only a module's
    own parameters are looked at.
    """
    return isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()


def norm_parameters(model: nn.Module) -> frozenset[str]:
    """The names of all parameters that a normalization layer of ``model`` owns directly."""
    owned = {
        id(parameter) for module in model.modules() if is_norm(module) for parameter in module.parameters(recurse=False)
    }
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in owned)


def keeps_statistics(module: nn.Module) -> bool:
    """Whether ``module`` updates running statistics in train mode: batch norms and their like."""
    return any(name in ("running_mean", "running_var") for name, _ in module.named_buffers(recurse=False))


def batch_norm_affine(model: nn.Module) -> frozenset[str]:
    """The names of scale and shift of the layers of ``model`` that keep running statistics."""
    owned = {
        id(parameter)
        for module in model.modules()
        if keeps_statistics(module)
        for parameter in module.parameters(recurse=False)
    }
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in owned)
