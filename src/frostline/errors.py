"""The error tree: each message says what is wrong, where, and what mends it.

The exit codes are part of the public interface: 2 for the config, 3 for the data, 4 for numbers, 5 for storage
and the network. Anything else that escapes a command exits with 1 and is a bug.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence

# names of files, classes and tensors come from strangers; a terminal obeys these characters
_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")


class FrostlineError(Exception):
    """A fault that a person can mend.

    Args:
        problem: what is wrong, naming the file, row, class, key or layer.
        mend: what to do about it; shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, problem: str, *, mend: str | None = None) -> None:
        problem = problem.translate(_CONTROL)
        mend = None if mend is None else mend.translate(_CONTROL)
        super().__init__(problem, mend)
        self.problem = problem
        self.mend = mend

    def __reduce__(self) -> tuple[object, ...]:
        # an error crosses processes with both of its parts
        return (_rebuilt, (type(self), self.problem, self.mend))

    def __str__(self) -> str:
        return self.problem if self.mend is None else f"{self.problem}\n  {self.mend}"


def _rebuilt(kind: type[FrostlineError], problem: str, mend: str | None) -> FrostlineError:
    return kind(problem, mend=mend)


class ConfigError(FrostlineError):
    """The configuration, the command line included, asks for something that cannot be built.

    Attributes:
        faults: those that it was made of, where they are several.
    """

    exit_code = 2
    faults: tuple[FrostlineError, ...] = ()

    @classmethod
    def of(cls, faults: Sequence[FrostlineError]) -> ConfigError:
        """One error out of several faults, so that all are mended in one round trip."""
        if len(faults) == 1 and isinstance(faults[0], ConfigError):
            return faults[0]
        # an error that is one out of several gives them up to the longer list
        each = [one for fault in faults for one in getattr(fault, "faults", ()) or (fault,)]
        listed = "\n".join(f"{number}. {fault}" for number, fault in enumerate(each, start=1))
        error = cls(f"{len(each)} faults in the configuration:\n{listed}")
        error.faults = tuple(each)
        return error


class DataError(FrostlineError):
    """A data set, split, class or picture cannot be used."""

    exit_code = 3


class NumericsError(FrostlineError):
    """A loss, gradient or metric is not finite."""

    exit_code = 4


class StorageError(FrostlineError):
    """A file, folder, weight file or network resource cannot be read or written."""

    exit_code = 5


class Interrupted(FrostlineError):  # noqa: N818  # it is no error: what was asked for, and why the run is not finished
    """A signal ended the run; what was trained is saved where the message says so.

    Args:
        problem: which signal, and up to which step the run is saved.
        mend: how to go on.
        code: 128 + the signal: 143 for SIGTERM and a scheduler's SIGUSR1, 130 for SIGINT.
    """

    def __init__(self, problem: str, *, mend: str | None = None, code: int = 143) -> None:
        super().__init__(problem, mend=mend)
        self.exit_code = code

    def __reduce__(self) -> tuple[object, ...]:
        return (_interrupted, (self.problem, self.mend, self.exit_code))


def _interrupted(problem: str, mend: str | None, code: int) -> Interrupted:
    return Interrupted(problem, mend=mend, code=code)


def near_misses(name: str, options: Iterable[str], count: int = 3) -> list[str]:
    """The ``count`` options most like ``name``, best first; empty where nothing comes close."""
    return difflib.get_close_matches(name, list(options), n=count, cutoff=0.6)


def suggestion(name: str, options: Iterable[str], *, known_as: str = "known") -> str:
    """A sentence that mends a misspelt ``name``: the near misses, or all options where none is near."""
    listed = sorted(set(options))
    close = near_misses(name, listed)
    if close:
        return "Did you mean " + " or ".join(f"'{option}'" for option in close) + "?"
    return f"{known_as.capitalize()}: {', '.join(listed)}." if listed else f"There are none {known_as}."


def override_for(key: str, value: object) -> str:
    """``KEY=VALUE`` as it is typed: a value that Hydra or a shell would read otherwise is quoted for both."""
    text = str(value)
    if re.fullmatch(r"[\w./:@%+-]*", text, flags=re.ASCII):
        return f"{key}={text}"
    # Hydra takes a backslash as one unless it stands before a quote
    inner = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), text)
    return shlex.quote(f'{key}="{inner}"')
