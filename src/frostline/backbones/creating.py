"""``create_backbone``: from a ``BackboneSpec`` to a loaded model with its preprocessing and depth groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm.models
from torch import nn

from frostline.backbones.building import build, classifier_tensors
from frostline.backbones.depth import depth_groups
from frostline.backbones.loading import LoadReport, fresh_report, load_weights
from frostline.backbones.reading import refuse_unsafe_environment
from frostline.backbones.sources import find_source
from frostline.errors import ConfigError
from frostline.specs import BackboneSpec
from frostline.types import DepthGroup, Preprocessing


@dataclass
class Backbone:
    """A model that is ready to be fine-tuned.

    Attributes:
        model: the timm model with its classifier; ``[B, C, H, W]`` float32 to ``[B, num_classes]`` logits.
        preprocessing: what its input must look like.
        groups: its parameters by depth.
        report: what loading the weights did.
    """

    model: nn.Module
    preprocessing: Preprocessing
    groups: tuple[DepthGroup, ...]
    report: LoadReport


def create_backbone(spec: BackboneSpec, *, num_classes: int, size: int | None = None) -> Backbone:
    """Build a timm model, load its weights and give it a new head.

    The head is new unless the weights come from a run with as many classes; see ``start_head_at_zero``. The weights of
    other fresh tensors follow torch's global generator.

    Args:
        spec: the name, the weights and the constructor arguments.
        num_classes: outputs of the classifier; 0 for a feature extractor without one.
        size: height and width of the input in pixels; None keeps what the weights were made with. A constructor
            that takes ``img_size`` gets it, and position tables of another size are resampled.

    Raises:
        ConfigError: an unknown model, weights that do not exist for it or do not fit, an argument that it refuses.
        StorageError: a file cannot be read, or there is no network and nothing cached.
    """
    refuse_unsafe_environment()
    source = find_source(spec)
    built = build(
        source.architecture,
        config=source.config,
        saved_args=source.model_args,
        kwargs=spec.kwargs,
        num_classes=num_classes,
        size=size,
    )
    if source.weights is None:
        report = fresh_report(built.model)
    else:
        report = load_weights(built, source.weights, label=source.label, keeps_head=source.keeps_head)
        start_head_at_zero(built.model, report)
    preprocessing = resolve_preprocessing(built.model, size=size or spec.kwargs.get("img_size"))
    return Backbone(built.model, preprocessing, depth_groups(built.model), report)


def start_head_at_zero(model: nn.Module, report: LoadReport) -> None:
    """Make the logits of a new head on a loaded body 0, so that the loss starts at log K.

    As in BiT (Kolesnikov et al. 2020, arXiv:1912.11370). timm scales the head of an efficientnet or a mobilenet by its
    number of classes: with six of them, the logits start at a standard deviation of 8 and the loss at 14, and what
    flows back from there does the body harm before the head has learned anything.

    Args:
        model: a timm model; linear layers and 1x1 convolutions of its classifier are changed, in place.
        report: of loading its body.
    """
    new = classifier_tensors(model) & set(report.missing)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and f"{path}.weight" in new:
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def resolve_preprocessing(model: nn.Module, *, size: int | Sequence[int] | None = None) -> Preprocessing:
    """What timm's configuration of ``model`` says about its input.

    Args:
        model: a timm model.
        size: a side, or height and width, in pixels, in place of the model's own.

    Raises:
        ConfigError: the configuration names an interpolation or crop that Frostline does not have.
    """
    timm_model: Any = model
    told: dict[str, Any] = timm_model.pretrained_cfg
    _, height, width = told["input_size"]
    now = timm.models.get_model_input_config(model)
    if now["fixed_input_size"]:
        _, height, width = now["input_size"]
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
    channels = int(now["input_size"][0])
    interpolation = str(told["interpolation"])
    if interpolation not in ("nearest", "bilinear", "bicubic", "lanczos"):
        raise ConfigError(
            f"The model's configuration asks for the interpolation '{interpolation}'.",
            mend="Known: nearest, bilinear, bicubic, lanczos.",
        )
    return Preprocessing(
        size=(channels, int(height), int(width)),
        mean=_per_channel(told["mean"], channels),
        std=_per_channel(told["std"], channels),
        interpolation=interpolation,
        crop_pct=float(told["crop_pct"]),
        crop_mode=str(told["crop_mode"]),
    )


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """The statistics of ``channels`` channels; their mean for each where the weights had another number of them."""
    known = tuple(float(value) for value in values)
    return known if len(known) == channels else (sum(known) / len(known),) * channels
