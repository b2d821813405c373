"""The terms of a selector, each a function from its argument to the names of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from frostline.errors import ConfigError, near_misses, suggestion
from frostline.freezing.layers import is_norm
from frostline.freezing.stages import stages
from frostline.types import DepthGroup

_RANGE = re.compile(r"(?P<before>.*?)(?P<first>\d+)\.\.(?P<last>\d+)(?P<after>(?:\..+)?)")
_SHARES = re.compile(r"(\d+(?:\.\d+)?)\.\.(\d+(?:\.\d+)?)", flags=re.ASCII)


@dataclass(frozen=True)
class Subject:
    """What terms select from.

    Attributes:
        groups: the depth groups of the model, the head last.
        model: the unwrapped network; only ``stage:`` and ``type:`` read it.
        new: the names of the parameters that no weights were loaded for; None where that is not known.
    """

    groups: Sequence[DepthGroup]
    model: nn.Module | None = None
    new: frozenset[str] | None = None

    @property
    def names(self) -> list[str]:
        """All parameter names, from the stem to the head."""
        return _names(self.groups)

    @property
    def body(self) -> list[DepthGroup]:
        """The depth groups without the head."""
        return [group for group in self.groups if not group.is_head]


def paths_of(names: Iterable[str]) -> list[str]:
    """Every module and parameter path that holds one of ``names``, in order of first appearance."""
    paths: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        paths.update({".".join(parts[: i + 1]): None for i in range(len(parts))})
    return list(paths)


def shortened(names: Sequence[str]) -> str:
    """``names`` as a list to be read: at most eight of them."""
    return ", ".join(names if len(names) <= 8 else [*names[:3], "...", *names[-3:]]) or "none"


def depths(subject: Subject) -> str:
    """A sentence that names the depth groups that ``top:N`` and ``bottom:N`` count."""
    return f"Depth groups of the body, from the stem: {shortened([group.name for group in subject.body])}."


def _all(subject: Subject) -> Iterable[str]:
    return subject.names


def _head(subject: Subject) -> Iterable[str]:
    return _names(group for group in subject.groups if group.is_head)


def _body(subject: Subject) -> Iterable[str]:
    return _names(subject.body)


def _new(subject: Subject) -> Iterable[str]:
    if subject.new is None:
        raise ConfigError(
            "The selector 'new' cannot be used here: which weights are loaded is not known.",
            mend="Name the parameters otherwise, such as 'head'.",
        )
    names = [name for name in subject.names if name in subject.new]
    if not names:
        raise ConfigError(
            "The selector 'new' matches nothing: every parameter was loaded from the weights.",
            mend="To train the classifier, loaded or not, select 'head'.",
        )
    return names


def _top(argument: str, subject: Subject) -> Iterable[str]:
    return _names(subject.body[-_count("top", argument, subject) :])


def _bottom(argument: str, subject: Subject) -> Iterable[str]:
    return _names(subject.body[: _count("bottom", argument, subject)])


def _count(kind: str, argument: str, subject: Subject) -> int:
    """N of ``top:N`` or ``bottom:N``: at most the number of body groups, so that no larger one passes as ``body``."""
    most = len(subject.body)
    if not argument.isdecimal() or not 1 <= int(argument) <= most:
        raise ConfigError(
            f"The selector '{kind}:{argument}' matches nothing: {kind}:N takes a whole number from 1 to {most}.",
            mend=depths(subject),
        )
    return int(argument)


def _depth(argument: str, subject: Subject) -> Iterable[str]:
    """Groups at a share of the depth: group i of n, the head included, stands at i / (n - 1)."""
    first, last = _shares(argument)
    steps = len(subject.groups) - 1
    placed = [(i / steps if steps else 1.0, group) for i, group in enumerate(subject.groups)]
    held = [group for at, group in placed if first <= at <= last]
    if not held:
        nearest = sorted(placed, key=lambda place: min(abs(place[0] - first), abs(place[0] - last)))[:2]
        raise ConfigError(
            f"The selector 'depth:{argument}' matches nothing: no depth group stands between {first:g} and {last:g}.",
            mend=f"The nearest: {', '.join(f'{group.name} at {at:.3g}' for at, group in nearest)}.",
        )
    return _names(held)


def _shares(argument: str) -> tuple[float, float]:
    match = _SHARES.fullmatch(argument)
    first, last = (float(share) for share in match.groups()) if match else (1.0, 0.0)
    if not 0 <= first <= last <= 1:
        raise ConfigError(
            f"The selector 'depth:{argument}' holds no range of depth that can be read.",
            mend="It is written depth:A..B, two shares of depth with 0 <= A <= B <= 1, as in 'depth:0.5..1'.",
        )
    return first, last


def _stage(argument: str, subject: Subject) -> Iterable[str]:
    found = stages(_model("stage", argument, subject))
    if not found:
        raise ConfigError(
            f"The selector 'stage:{argument}' matches nothing: the model has no stages.",
            mend=f"Select by depth, with 'top:N' or 'depth:A..B', or with 'path:NAME'. {depths(subject)}",
        )
    if not argument.isdecimal() or int(argument) >= len(found):
        begin = ", ".join(f"{i} from '{names[0]}'" for i, names in enumerate(found))
        raise ConfigError(
            f"The selector 'stage:{argument}' matches nothing: N of stage:N is a whole number, 0 to {len(found) - 1}.",
            mend=f"The model has {len(found)} stages: {begin}.",
        )
    held = set(found[int(argument)])
    return [name for name in _names(subject.body) if name in held]


def _path(argument: str, subject: Subject) -> Iterable[str]:
    selected: list[str] = []
    for path in _expand(argument):
        inside = [name for name in subject.names if name == path or name.startswith(f"{path}.")]
        if not inside:
            raise ConfigError(
                f"The selector 'path:{argument}' matches nothing: there is no parameter or module '{path}'.",
                mend=_nearest_path(path, subject.names),
            )
        selected += inside
    return selected


def _expand(argument: str) -> list[str]:
    """``blocks.8..11`` as its four paths; a path without a range as itself."""
    if ".." not in argument:
        return [argument]
    match = _RANGE.fullmatch(argument)
    if match is None or int(match["first"]) > int(match["last"]):
        raise ConfigError(
            f"The selector 'path:{argument}' holds no range that can be read.",
            mend="A range is written first..last, both included, as in 'path:blocks.8..11'.",
        )
    return [f"{match['before']}{i}{match['after']}" for i in range(int(match["first"]), int(match["last"]) + 1)]


def _nearest_path(path: str, names: Sequence[str]) -> str:
    """Paths like ``path``, else what lies under the longest part of it that exists."""
    paths = paths_of(names)
    parent = path
    while parent and parent not in paths:
        parent = parent.rpartition(".")[0]
    below = sorted({p for p in paths if p.rpartition(".")[0] == parent}, key=paths.index)
    if below and all(p.rpartition(".")[2].isdecimal() for p in below):
        return f"'{parent}' has {below[0].rpartition('.')[2]}..{below[-1].rpartition('.')[2]}."
    return suggestion(path, near_misses(path, paths) or below, known_as=f"in '{parent}'" if parent else "known")


def _type(argument: str, subject: Subject) -> Iterable[str]:
    """Parameters that layers of a kind own directly, or all parameters below modules of a class."""
    model = _model("type", argument, subject)
    if argument in _KINDS:
        held = {
            id(parameter)
            for module in model.modules()
            if _KINDS[argument](module)
            for parameter in module.parameters(recurse=False)
        }
    else:
        classes = _classes(model)
        held = {id(parameter) for module in classes.get(argument, ()) for parameter in module.parameters()}
        if not held:
            raise _no_class(argument, classes)
    names = [name for name, parameter in model.named_parameters() if id(parameter) in held]
    if not names:
        raise ConfigError(
            f"The selector 'type:{argument}' matches nothing: {_NONE[argument]} of the model has parameters.",
            mend=f"Layers with parameters: {', '.join(sorted(_owners(model)))}.",
        )
    return names


def _is_conv(module: nn.Module) -> bool:
    # a convolution whose kernel is mixed for each picture derives from nn.Module directly
    return isinstance(module, nn.modules.conv._ConvNd) or "conv2d" in type(module).__name__.lower()


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


_KINDS: Mapping[str, Callable[[nn.Module], bool]] = {"norm": is_norm, "conv": _is_conv, "linear": _is_linear}
_NONE = {"norm": "no normalization layer", "conv": "no convolution", "linear": "no linear layer"}


def _classes(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules of each class that hold parameters, by the name of the class; the model itself is none of them."""
    classes: dict[str, list[nn.Module]] = {}
    for module in model.modules():
        if module is not model and any(True for _ in module.parameters()):
            classes.setdefault(type(module).__name__, []).append(module)
    return classes


def _no_class(argument: str, classes: Mapping[str, Sequence[nn.Module]]) -> ConfigError:
    known = sorted({*_KINDS, *classes})
    same = [name for name in known if name.lower() == argument.lower()]
    return ConfigError(
        f"The selector 'type:{argument}' matches nothing: no module of a class '{argument}' has parameters.",
        mend=f"Did you mean '{same[0]}'?" if same else suggestion(argument, known),
    )


def _owners(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules() if any(True for _ in module.parameters(recurse=False))}


def _model(kind: str, argument: str, subject: Subject) -> nn.Module:
    if subject.model is None:
        raise ValueError(f"select: '{kind}:{argument}' needs the model")
    return subject.model


def _param(argument: str, subject: Subject) -> Iterable[str]:
    """Parameters by the last part of their name; a bias may have a prefix, as in ``in_proj_bias``."""
    wanted = re.compile(r"(\w+_)?bias" if argument == "bias" else re.escape(argument))
    names = [name for name in subject.names if wanted.fullmatch(name.rpartition(".")[2])]
    if not names:
        kinds = sorted({name.rpartition(".")[2] for name in subject.names})
        raise ConfigError(
            f"The selector 'param:{argument}' matches nothing: no parameter is called so.",
            mend=suggestion(argument, kinds, known_as="its parameters are called"),
        )
    return names


PLAIN: Mapping[str, Callable[[Subject], Iterable[str]]] = {"all": _all, "head": _head, "body": _body, "new": _new}
WITH_ARGUMENT: Mapping[str, Callable[[str, Subject], Iterable[str]]] = {
    "top": _top,
    "bottom": _bottom,
    "depth": _depth,
    "stage": _stage,
    "path": _path,
    "type": _type,
    "param": _param,
}


def _names(groups: Iterable[DepthGroup]) -> list[str]:
    return [name for group in groups for name in group.parameters]
