"""``create_backbone``: from a ``BackboneSpec`` to a loaded model with its preprocessing and depth groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm.models
from torch import nn

from frostline.backbones.building import build, classifier_tensors
from frostline.backbones.depth import Depth, depth_of
from frostline.backbones.loading import LoadReport, fresh_report, load_weights
from frostline.backbones.module_config import INTERPOLATIONS, holds_module
from frostline.backbones.modules import check_module, fit_head, input_of, weigh
from frostline.backbones.reading import refuse_unsafe_environment
from frostline.backbones.sources import find_source
from frostline.errors import ConfigError
from frostline.specs import BackboneSpec, DepthSpec, InputSpec
from frostline.types import DepthGroup, Preprocessing

Loaded = tuple[nn.Module, Preprocessing, LoadReport]


@dataclass
class Backbone:
    """A model that is ready to be fine-tuned.

    Attributes:
        model: the model with its classifier; ``[B, C, H, W]`` float32 to ``[B, num_classes]`` logits.
        preprocessing: what its input must look like.
        depth: its parameters by depth, and where their order comes from.
        report: what loading the weights did.
        head: the path of its classifier, where it is not timm's; None for a timm model, which knows.
    """

    model: nn.Module
    preprocessing: Preprocessing
    depth: Depth
    report: LoadReport
    head: str | None = None

    @property
    def groups(self) -> tuple[DepthGroup, ...]:
        """The parameters of ``model`` by depth, from the stem to the head."""
        return self.depth.groups


def create_backbone(
    spec: BackboneSpec,
    *,
    num_classes: int,
    size: int | None = None,
    depth: DepthSpec | None = None,
    module: object = None,
) -> Backbone:
    """Build a timm model, or take a module that is none, load its weights and give it a new head.

    The head of a timm model is new unless the weights come from a run with as many classes; see
    ``start_head_at_zero``. That of a module stays where its constructor made it for as many classes and nothing else
    was loaded. The weights of other fresh tensors follow torch's global generator.

    Args:
        spec: the name, the weights and the constructor arguments.
        num_classes: outputs of the classifier; 0 for a feature extractor without one, which only timm's models become.
        size: height and width of the input in pixels; None keeps what the weights were made with. A constructor
            that takes ``img_size`` gets it, and position tables of another size are resampled.
        depth: how its parameters are put in order of depth.
        module: what ``spec.module`` names, built; changed in place. None for a timm model.

    Raises:
        ConfigError: an unknown model, weights that do not exist for it or do not fit, an argument that it refuses; no
            classifier at ``spec.head``.
        StorageError: a file cannot be read, or there is no network and nothing cached.
    """
    refuse_unsafe_environment()
    refuse_mixture(spec, module, num_classes)
    head = None if module is None else spec.head
    if module is None:
        model, preprocessing, report = _timm_model(spec, num_classes, size)
    else:
        model, preprocessing, report = _module(spec, check_module(spec, module), num_classes, size)
    found = depth_of(model, depth or DepthSpec(), input_size=preprocessing.size, head=head)
    return Backbone(model, preprocessing, found, report, head)


def refuse_mixture(spec: BackboneSpec, module: object, num_classes: int) -> None:
    """Raise where a spec has keys of a module for a timm model, or a module is to be what it cannot.

    Raises:
        ConfigError: naming the key.
    """
    if spec.module is not None and (module is None or num_classes == 0):
        problem = "backbone.module is for `frostline train`; only timm's models are known well enough for this."
        raise ConfigError(problem, mend="Choose one: backbone=timm backbone.name=NAME.")
    if module is None and spec.head is not None:
        problem = f"backbone.head={spec.head} is for backbone.module; timm's models know their classifier."
        raise ConfigError(problem, mend="Leave it out.")
    if module is None and spec.input != InputSpec():
        problem = "backbone.input is for backbone.module; timm's models know what their input looks like."
        raise ConfigError(problem, mend="Leave it out, or set data.size.")
    kind, _, place = spec.name.partition(":")
    named = [spec.weights, *([place] if kind == "local-dir" else [])]
    runs = [path for path in named if holds_module(Path(path).expanduser())]
    if module is None and runs:
        problem = f"'{runs[0]}' is the run of a module, which timm does not have."
        raise ConfigError(
            problem, mend="Take it up with backbone=module and backbone.module as its config.yaml has it."
        )


def _timm_model(spec: BackboneSpec, num_classes: int, size: int | None) -> Loaded:
    source = find_source(spec)
    built = build(
        source.architecture,
        config=source.config,
        saved_args=source.model_args,
        kwargs=spec.kwargs,
        num_classes=num_classes,
        size=size,
    )
    if num_classes > 0:
        classifier_tensors(built.model)  # raises for an encoder that has no classifier to train
    if source.weights is None:
        report = fresh_report(built.model)
    else:
        report = load_weights(built, source.weights, label=source.label, keeps_head=source.keeps_head)
        start_head_at_zero(built.model, report)
    return built.model, resolve_preprocessing(built.model, size=size or spec.kwargs.get("img_size")), report


def _module(spec: BackboneSpec, model: nn.Module, num_classes: int, size: int | None) -> Loaded:
    preprocessing = input_of(spec.input, size)
    new_head = fit_head(model, spec.head, num_classes)
    report = weigh(model, spec, new_head=new_head)
    if report.loaded:
        start_head_at_zero(model, report, spec.head)
    return model, preprocessing, report


def start_head_at_zero(model: nn.Module, report: LoadReport, head: str | None = None) -> None:
    """Make the logits of a new head on a loaded body 0, so that the loss starts at log K.

    As in BiT (Kolesnikov et al. 2020, arXiv:1912.11370). timm scales the head of an efficientnet or a mobilenet by its
    number of classes: with six of them, the logits start at a standard deviation of 8 and the loss at 14, and what
    flows back from there does the body harm before the head has learned anything.

    Args:
        model: a timm model, or another; linear layers and 1x1 convolutions of its classifier are changed, in place.
        report: of loading its body.
        head: the path of the classifier where it is not timm's.
    """
    new = classifier_tensors(model, head) & set(report.missing)
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
    if interpolation not in INTERPOLATIONS:
        raise ConfigError(
            f"The model's configuration asks for the interpolation '{interpolation}'.",
            mend=f"Known: {', '.join(INTERPOLATIONS)}.",
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
