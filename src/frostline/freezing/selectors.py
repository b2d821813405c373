"""Selectors: expressions that name parameters.

Terms are joined by `` + `` and `` - ``, read from left to right: ``head + top:2 - type:norm``. What is selected is
a set of names; nothing is done to the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from frostline.errors import ConfigError, near_misses, suggestion
from frostline.freezing.layers import norm_parameters
from frostline.types import DepthGroup

KNOWN_FORMS = ("all", "head", "body", "top:N", "bottom:N", "path:NAME", "path:NAME.A..B", "type:norm", "param:bias")

_OPERATOR = re.compile(r"\s+([+-])\s+")
_RANGE = re.compile(r"(?P<before>.*?)(?P<first>\d+)\.\.(?P<last>\d+)(?P<after>(?:\..+)?)")


@dataclass(frozen=True)
class _Subject:
    """What terms select from."""

    groups: Sequence[DepthGroup]
    model: nn.Module | None

    @property
    def names(self) -> list[str]:
        return _names(self.groups)

    @property
    def body(self) -> list[DepthGroup]:
        return [group for group in self.groups if not group.is_head]


def select(expression: str, groups: Sequence[DepthGroup], model: nn.Module | None = None) -> frozenset[str]:
    """The names of the parameters that ``expression`` selects.

    Forms of a term: ``all``; ``head`` (the classifier); ``body`` (all but the head); ``top:N`` and ``bottom:N`` (the
    N deepest and the N first depth groups of the body); ``path:layer4`` (a module or parameter) and
    ``path:blocks.8..11`` (a range of them, both ends included); ``type:norm`` (normalization layers);
    ``param:bias``.

    Args:
        expression: terms joined by `` + `` and `` - ``.
        groups: the depth groups of the model.
        model: needed by ``type:norm`` alone.

    Raises:
        ConfigError: for an unknown term, for one that matches nothing, and where nothing is left in the end.
        ValueError: ``type:norm`` without ``model``.
    """
    subject = _Subject(groups, model)
    first, *rest = _OPERATOR.split(expression.strip())
    selected = _select_term(first, subject)
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        named = _select_term(term, subject)
        selected = selected | named if operator == "+" else selected - named
    if not selected:
        raise ConfigError(
            f"The selector '{expression}' leaves no parameter.",
            mend="Terms are read from left to right, and what a ' - ' takes away is gone.",
        )
    return selected


def _select_term(term: str, subject: _Subject) -> frozenset[str]:
    kind, colon, argument = term.partition(":")
    if "+" in term or ("-" in term and kind != "path"):
        raise ConfigError(
            f"The selector '{term}' cannot be read: ' + ' and ' - ' stand between terms, with a space on each side.",
            mend="For example 'head + top:2 - type:norm'.",
        )
    if not colon and kind in _PLAIN:
        names = _PLAIN[kind](subject)
    elif colon and kind in _WITH_ARGUMENT:
        names = _WITH_ARGUMENT[kind](argument.strip(), subject)
    else:
        raise _unknown(term, subject)
    if not names:
        raise ConfigError(f"The selector '{term}' matches no parameter.", mend=_depths(subject))
    return frozenset(names)


def _unknown(term: str, subject: _Subject) -> ConfigError:
    """What the term might have been meant as, then all known forms."""
    known = f"Known: {', '.join(KNOWN_FORMS)}; terms are joined by ' + ' and ' - ', with the spaces."
    kinds = {form.partition(":")[0]: form for form in KNOWN_FORMS}
    if term in _paths(subject.names):
        guess = f"Did you mean 'path:{term}'? "
    else:
        close = near_misses(term.partition(":")[0], kinds, count=1)
        guess = "".join(f"Did you mean '{kinds[kind]}'? " for kind in close)
    return ConfigError(f"Unknown selector '{term}'.", mend=guess + known)


def _all(subject: _Subject) -> Iterable[str]:
    return subject.names


def _head(subject: _Subject) -> Iterable[str]:
    return _names(group for group in subject.groups if group.is_head)


def _body(subject: _Subject) -> Iterable[str]:
    return _names(subject.body)


def _top(argument: str, subject: _Subject) -> Iterable[str]:
    return _names(subject.body[-_count("top", argument, subject) :])


def _bottom(argument: str, subject: _Subject) -> Iterable[str]:
    return _names(subject.body[: _count("bottom", argument, subject)])


def _count(kind: str, argument: str, subject: _Subject) -> int:
    """N of ``top:N`` or ``bottom:N``: at most the number of body groups, so that no larger one passes as ``body``."""
    most = len(subject.body)
    if not argument.isdecimal() or not 1 <= int(argument) <= most:
        raise ConfigError(
            f"The selector '{kind}:{argument}' matches nothing: {kind}:N takes a whole number from 1 to {most}.",
            mend=_depths(subject),
        )
    return int(argument)


def _path(argument: str, subject: _Subject) -> Iterable[str]:
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
    paths = _paths(names)
    parent = path
    while parent and parent not in paths:
        parent = parent.rpartition(".")[0]
    below = sorted({p for p in paths if p.rpartition(".")[0] == parent}, key=paths.index)
    if below and all(p.rpartition(".")[2].isdecimal() for p in below):
        return f"'{parent}' has {below[0].rpartition('.')[2]}..{below[-1].rpartition('.')[2]}."
    return suggestion(path, near_misses(path, paths) or below, known_as=f"in '{parent}'" if parent else "known")


def _type(argument: str, subject: _Subject) -> Iterable[str]:
    if argument != "norm":
        raise ConfigError(f"Unknown selector 'type:{argument}'.", mend="The one known type is 'type:norm'.")
    if subject.model is None:
        raise ValueError("select: 'type:norm' needs the model")
    names = norm_parameters(subject.model)
    if not names:
        owners = {type(m).__name__ for m in subject.model.modules() if any(True for _ in m.parameters(recurse=False))}
        raise ConfigError(
            "The selector 'type:norm' matches nothing: no normalization layer of the model has parameters.",
            mend=f"Layers with parameters: {', '.join(sorted(owners))}.",
        )
    return names


def _param(argument: str, subject: _Subject) -> Iterable[str]:
    if argument != "bias":
        raise ConfigError(f"Unknown selector 'param:{argument}'.", mend="The one known parameter is 'param:bias'.")
    names = [name for name in subject.names if re.fullmatch(r"(\w+_)?bias", name.rpartition(".")[2])]
    if not names:
        kinds = sorted({name.rpartition(".")[2] for name in subject.names})
        raise ConfigError(
            "The selector 'param:bias' matches nothing: the model has no bias.",
            mend=f"Its parameters are called {', '.join(kinds[:12])}.",
        )
    return names


_PLAIN: dict[str, Callable[[_Subject], Iterable[str]]] = {"all": _all, "head": _head, "body": _body}
_WITH_ARGUMENT: dict[str, Callable[[str, _Subject], Iterable[str]]] = {
    "top": _top,
    "bottom": _bottom,
    "path": _path,
    "type": _type,
    "param": _param,
}


def _names(groups: Iterable[DepthGroup]) -> list[str]:
    return [name for group in groups for name in group.parameters]


def _paths(names: Iterable[str]) -> list[str]:
    """Every module and parameter path that holds one of ``names``, in order of first appearance."""
    paths: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        paths.update({".".join(parts[: i + 1]): None for i in range(len(parts))})
    return list(paths)


def _depths(subject: _Subject) -> str:
    body = [group.name for group in subject.body]
    shown = body if len(body) <= 8 else [*body[:3], "...", *body[-3:]]
    return f"Depth groups of the body, from the stem: {', '.join(shown) or 'none'}."
