"""What the code of modules is that no package with a version holds: a person's own, as it is loaded."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import fx, nn

# what is known by a version, or by the text of its files
_KNOWN = {"frostline", "numpy", "peft", "PIL", "timm", "torch", "torchvision", *sys.stdlib_module_names}


def code_of(modules: Sequence[nn.Module]) -> Iterator[str]:
    """Lines that change when the code of some modules does, or that of a function or class which it calls by name.

    It is that of the process, and not of a file, which may have been edited since.

    Args:
        modules: those of a known package have no lines.
    """
    seen: set[int] = set()
    for module in modules:
        if isinstance(module, fx.GraphModule):  # torch makes a class for each, of the code that it has
            yield module.code
        # a class first: what is in the instance may be one of its methods
        for part in (type(module), *vars(module).values()):
            yield from _lines(part, seen)


def _lines(part: Any, seen: set[int]) -> Iterator[str]:
    """Of a function or a class, once; nothing of anything else."""
    while not isinstance(part, FunctionType | type):
        inner = next((getattr(part, name) for name in ("func", "__func__", "fget") if _has(part, name)), None)
        if inner is None:
            return
        part = inner
    if id(part) in seen or _is_known(str(part.__module__)):
        return
    seen.add(id(part))
    yield f"{part.__module__}.{part.__qualname__}"
    if isinstance(part, type):
        for base in part.__mro__[1:]:
            yield from _lines(base, seen)
        for name, value in vars(part).items():
            if not name.startswith("__") or name in ("__init__", "__call__"):
                yield f"{name} {_told(value)}"
                yield from _lines(value, seen)
        return
    yield f"{_told(part.__defaults__)} {_told(part.__kwdefaults__)}"
    values = inspect.getclosurevars(part).nonlocals if part.__closure__ else {}
    for name, value in sorted(values.items()):
        yield f"{name} {_told(value)}"
        yield from _lines(value, seen)
    yield from _lines_of_code(part.__code__, part.__globals__, seen)


def _lines_of_code(code: CodeType, known: dict[str, Any], seen: set[int]) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _lines_of_code(constant, known, seen)
        else:
            yield _told(constant)
    # `layers.squash` names a file of a person's own, and what is in it
    named = [known[name] for name in code.co_names if isinstance(known.get(name), ModuleType)]
    places = [known, *(vars(file) for file in named if not _is_known(file.__name__))]
    for name in code.co_names:
        for value in (place[name] for place in places if name in place):
            yield f"{name} {_told(value)}"
            yield from _lines(value, seen)


def _is_known(path: str) -> bool:
    return path.partition(".")[0] in _KNOWN


def _has(part: Any, name: str) -> bool:
    kinds = functools.partial, classmethod, staticmethod, property
    return isinstance(part, kinds) and getattr(part, name, None) is not None


def _told(value: object) -> str:
    """A plain value as text that is the same in each process; nothing of another one."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_told(key)}: {_told(one)}' for key, one in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_told, value))})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_told, value)))}}}"
    return repr(value) if value is None or isinstance(value, str | bytes | int | float | complex | bool) else ""
