"""Selectors: expressions that name parameters.

Terms are joined by `` + `` and `` - ``, read from left to right: ``head + top:2 - type:norm``; ``@`` restricts a term
to another: ``type:norm@top:2``. What is selected is a set of names; nothing is done to the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from frostline.errors import ConfigError, near_misses
from frostline.freezing.terms import PLAIN, WITH_ARGUMENT, Subject, depths, paths_of, shortened
from frostline.types import DepthGroup

KNOWN_FORMS = (
    "all",
    "head",
    "body",
    "top:N",
    "bottom:N",
    "depth:A..B",
    "stage:N",
    "path:NAME",
    "path:NAME.A..B",
    "type:norm",
    "type:conv",
    "type:linear",
    "type:CLASS",
    "param:NAME",
    "new",
    "re:PATTERN",
    "TERM@TERM",
)

_OPERATOR = re.compile(r"\s+([+-])\s+")
_MINUS = ("path", "depth", "stage", "top", "bottom")  # where a '-' is part of the argument, or a wrong number


def select(
    expression: str,
    groups: Sequence[DepthGroup],
    model: nn.Module | None = None,
    *,
    new: frozenset[str] | None = None,
) -> frozenset[str]:
    r"""The names of the parameters that ``expression`` selects.

    ==================  ================================================================================================
    ``all``             every parameter
    ``head``, ``body``  the classifier; all but the classifier
    ``top:N``           the N deepest depth groups of the body; ``bottom:N``: the N first
    ``depth:0.5..1``    depth groups by share of depth: group i of n, the head included, stands at i / (n - 1)
    ``stage:N``         the N-th stage, from 0, without the stem and what follows the last stage
    ``path:layer4``     a module or parameter; ``path:blocks.8..11``: a range of them, both ends included
    ``type:norm``       what layers of a kind own: ``norm``, ``conv`` or ``linear``; ``type:Mlp``: all below a class
    ``param:bias``      by the last part of the name; of biases also ``in_proj_bias`` and the like
    ``new``             what was not loaded from the weights
    ``A@B``             what both terms select; ``A@B@C`` from left to right
    ``re:PATTERN``      names that the regular expression matches in full; stands alone
    ==================  ================================================================================================

    Args:
        expression: terms joined by `` + `` and `` - ``, or one ``re:PATTERN``.
        groups: the depth groups of the model, the head last.
        model: needed by ``stage:`` and ``type:`` alone.
        new: the names of the parameters that were not loaded from the weights; needed by ``new`` alone.

    Raises:
        ConfigError: for an unknown term, for one that matches nothing, and where nothing is left in the end.
        ValueError: ``stage:`` or ``type:`` without ``model``.
    """
    subject = Subject(groups, model, new)
    if expression.lstrip().startswith("re:"):
        return _matching(expression.strip().removeprefix("re:"), subject)
    first, *rest = _OPERATOR.split(expression.strip())
    selected = _restricted(first, subject)
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        named = _restricted(term, subject)
        selected = selected | named if operator == "+" else selected - named
    if not selected:
        raise ConfigError(
            f"The selector '{expression}' leaves no parameter.",
            mend="Terms are read from left to right, and what a ' - ' takes away is gone.",
        )
    return selected


def _restricted(term: str, subject: Subject) -> frozenset[str]:
    """A term, or what several joined by ``@`` have in common."""
    first, *others = (part.strip() for part in term.split("@"))
    if others and not all((first, *others)):
        raise ConfigError(
            f"The selector '{term}' cannot be read: '@' stands between two terms.",
            mend="For example 'type:norm@top:2'.",
        )
    selected, read = _select_term(first, subject), first
    for other in others:
        named = _select_term(other, subject)
        if selected.isdisjoint(named):
            raise ConfigError(
                f"The selector '{term}' matches nothing: '{read}' and '{other}' have no parameter in common.",
                mend=f"'{read}' is in {_where(selected, subject)}; '{other}' is in {_where(named, subject)}.",
            )
        selected, read = selected & named, f"{read}@{other}"
    return selected


def _where(names: frozenset[str], subject: Subject) -> str:
    return shortened([group.name for group in subject.groups if not names.isdisjoint(group.parameters)])


def _select_term(term: str, subject: Subject) -> frozenset[str]:
    kind, colon, argument = term.partition(":")
    if kind == "re":
        raise ConfigError(
            f"The selector '{term}' cannot be part of another: what follows 're:' is one pattern to its end.",
            mend="Write 're:PATTERN' alone, or use 'path:', 'type:' and 'param:' terms.",
        )
    if "+" in term or re.search(r"\s-|-\s|^-|-$", term) or ("-" in term and kind not in _MINUS):
        raise ConfigError(
            f"The selector '{term}' cannot be read: ' + ' and ' - ' stand between terms, with a space on each side.",
            mend="For example 'head + top:2 - type:norm'.",
        )
    if not colon and kind in PLAIN:
        names = PLAIN[kind](subject)
    elif colon and kind in WITH_ARGUMENT:
        names = WITH_ARGUMENT[kind](argument.strip(), subject)
    else:
        raise _unknown(term, subject)
    if not names:
        raise ConfigError(f"The selector '{term}' matches no parameter.", mend=depths(subject))
    return frozenset(names)


def _unknown(term: str, subject: Subject) -> ConfigError:
    """What the term might have been meant as, then all known forms."""
    known = f"Known: {', '.join(KNOWN_FORMS)}; terms are joined by ' + ' and ' - ', with the spaces."
    kinds = {form.partition(":")[0]: form for form in reversed(KNOWN_FORMS) if "@" not in form}
    if term in paths_of(subject.names):
        guess = f"Did you mean 'path:{term}'? "
    else:
        close = [kinds[kind] for kind in near_misses(term.partition(":")[0], kinds, count=1)]
        close = close or [f"path:{path}" for path in near_misses(term, paths_of(subject.names), count=1)]
        guess = "".join(f"Did you mean '{form}'? " for form in close)
    return ConfigError(f"Unknown selector '{term}'.", mend=guess + known)


def _matching(pattern: str, subject: Subject) -> frozenset[str]:
    """The names that a regular expression matches in full."""
    try:
        expression = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"The selector 're:{pattern}' is no regular expression: {error}.",
            mend="It must match whole parameter names, as in 're:blocks\\.[0-3]\\..*'.",
        ) from None
    names = frozenset(name for name in subject.names if expression.fullmatch(name))
    if not names:
        raise ConfigError(
            f"The selector 're:{pattern}' matches no parameter's whole name.", mend=_nearly(expression, subject.names)
        )
    return names


def _nearly(expression: re.Pattern[str], names: Sequence[str]) -> str:
    """Names that hold a match, else names like the pattern, else some of them all."""
    inside = [name for name in names if expression.search(name)] if expression.pattern else []
    if inside:
        return f"A part of it matches in {shortened(inside)}; '.*' at either end takes the rest along."
    literal = re.sub(r"\\(.)", r"\1", expression.pattern).replace(".*", "")
    close = near_misses(literal, names)
    return f"Names like it: {', '.join(close)}." if close else f"Parameters: {shortened(names)}."
