"""Putting the tensors of a weight file into a model, and saying which of them fitted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import timm.models
from torch import Tensor, nn

from frostline.backbones.building import CONSTRUCTED, Built, classifier_tensors
from frostline.backbones.reading import file_sha256, read_tensors
from frostline.errors import ConfigError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What loading did.

    Attributes:
        source: where the weights came from, as the config says it; ``none`` for fresh weights.
        loaded: how many of the model's tensors, buffers included, got a value from it.
        missing: the model's tensors that did not, the new head among them.
        unexpected: tensors of the source that the model has no place for.
        sha256: the hash of the weight file; None where there is none.
        left_out: classifier tensors of the source, left out because the head is new or has another shape.
    """

    source: str
    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    sha256: str | None
    left_out: tuple[str, ...] = ()

    def sentence(self) -> str:
        """One line for the terminal: how many tensors were loaded, missing and unexpected, and which."""
        if self.source == "none":
            return f"weights: none loaded, all {len(self.missing)} tensors are new"
        whence = "as the constructor made them" if self.source == CONSTRUCTED else f"loaded from {self.source}"
        parts = [f"weights: {self.loaded} tensors {whence}"]
        parts.append(f"{len(self.missing)} missing{_some(self.missing)}")
        parts.append(f"{len(self.unexpected)} unexpected{_some(self.unexpected)}")
        if self.left_out:
            parts.append(f"its own classifier left out{_some(self.left_out)}")
        return ", ".join(parts)


def fresh_report(model: nn.Module) -> LoadReport:
    """The report of a model whose every tensor is new."""
    return LoadReport("none", 0, tuple(model.state_dict()), (), None)


def load_weights(built: Built, path: Path, *, label: str, keeps_head: bool) -> LoadReport:
    """Load a weight file into ``built.model``, in place.

    Names are matched after taking off the prefix that a trainer put before them (``model.``, ``module.``, ...) and
    after timm's own conversion of foreign formats and sizes.

    Args:
        built: the model and its checkpoint filter.
        path: the weight file.
        label: where it comes from, as the config says it.
        keeps_head: also load the classifier, where its shape is the model's.

    Raises:
        StorageError: the file cannot be read.
        ConfigError: no tensor fits, or a tensor of the body has another shape.
    """
    model = built.model
    tensors = read_tensors(path)
    target = model.state_dict()
    state = _best_match(tensors, built, target)
    head = classifier_tensors(model, built.head)
    left_out = {name for name in head & state.keys() if not keeps_head or state[name].shape != target[name].shape}
    state = _fit_channels(built, {name: tensor for name, tensor in state.items() if name not in left_out}, target)
    _check_fit(path, tensors, state, target)
    result = model.load_state_dict(state, strict=False)
    report = LoadReport(
        source=label,
        loaded=len(state) - len(result.unexpected_keys),
        missing=tuple(result.missing_keys),
        unexpected=tuple(result.unexpected_keys),
        sha256=file_sha256(path),
        left_out=tuple(sorted(left_out)),
    )
    _log.info(report.sentence())
    return report


def _best_match(tensors: Mapping[str, Tensor], built: Built, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reading of the file, with or without its most frequent prefix, that fills most of the model."""
    readings = [_adapted(_without_prefix(tensors, prefix), built) for prefix in _prefixes(tensors, target)]
    return max(readings, key=lambda reading: _fitting(reading, target))


def _prefixes(tensors: Iterable[str], target: Mapping[str, Tensor]) -> list[str]:
    """The prefix that makes most names those of the model; and none, for formats that only timm's filter knows."""
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        counts.update(".".join(parts[:cut]) + "." for cut in range(1, len(parts)) if ".".join(parts[cut:]) in target)
    bare = sum(name in target for name in tensors)
    common = counts.most_common(1)
    return ["", common[0][0]] if common and common[0][1] > bare else [""]


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _adapted(state: dict[str, Tensor], built: Built) -> dict[str, Tensor]:
    try:
        return dict(built.adapt(state, built.model))
    except Exception as fault:  # a filter may fail in any way on a file that it was not written for
        _log.debug("timm's filter refused the checkpoint: %r", fault)
        return state


def _fitting(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> int:
    return sum(name in target and target[name].shape == tensor.shape for name, tensor in state.items())


def _fit_channels(built: Built, state: dict[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapt the first convolution to another number of input channels, as timm does."""
    first = built.config.get("first_conv") or ()
    channels = (built.config.get("input_size") or (3,))[0]
    wanted = getattr(built.model, "in_chans", 3)
    for name in (f"{module}.weight" for module in ((first,) if isinstance(first, str) else first)):
        if wanted != channels and name in state and name in target and state[name].shape != target[name].shape:
            state[name] = timm.models.adapt_input_conv(wanted, state[name], base_chans=channels)
    return state


def _check_fit(
    path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> None:
    if not any(name in target for name in state):
        raise ConfigError(
            f"No tensor of '{path}' fits the backbone: it holds {_telling(tensors)}, "
            f"where the model wants {_telling(target)}.",
            mend="Set backbone.name to the architecture of these weights.",
        )
    other = [name for name, tensor in state.items() if name in target and target[name].shape != tensor.shape]
    if other:
        shapes = [f"{name} {tuple(state[name].shape)} instead of {tuple(target[name].shape)}" for name in other[:3]]
        raise ConfigError(
            f"{len(other)} tensors of '{path}' have another shape than the model's: {'; '.join(shapes)}.",
            mend="Check backbone.name, backbone.kwargs and data.size against what these weights were made with.",
        )


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")


def _telling(names: Iterable[str]) -> str:
    return _few(sorted(name for name in names if not name.endswith("num_batches_tracked")))


def _some(names: tuple[str, ...]) -> str:
    return f" ({_few(names)})" if names else ""
