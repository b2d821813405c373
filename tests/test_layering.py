"""Imports go down only, and heavy or foreign packages stay in the rooms that are for them."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "frostline"
LAYERS = (
    {"errors", "forking", "signals", "specs", "types", "writing"},
    {"config", "adapters", "backbones", "freezing", "optim", "data", "metrics", "checkpoints", "storage"},
    {
        "auditing",
        "averaging",
        "features",
        "probing",
        "tasks",
        "loggers",
        "callbacks",
        "evaluation",
        "reports",
        "exporting",
        "explaining",
        "serving",
    },
    {"runs"},
    {"cli"},
)
# rooms of one layer do not import each other, but for these; whoever adds one here says why in the change
SIDEWAYS = {
    ("optim", "freezing"),
    ("data", "storage"),
    ("callbacks", "tasks"),
    ("callbacks", "loggers"),
    ("probing", "features"),
}
ONLY_IN = {
    "lightning": {"data", "tasks", "callbacks", "loggers", "runs"},
    "hydra": {"config", "runs", "cli"},
    "omegaconf": {"config", "runs", "cli"},
    "matplotlib": {"reports"},
    "jinja2": {"reports"},
    "captum": {"explaining"},
}
THE_SAME = {"pytorch_lightning": "lightning", "lightning_fabric": "lightning", "lightning_utilities": "lightning"}
OUTSIDERS = {"errors": set(), "specs": set(), "types": {"torch"}, "freezing": {"torch"}}
# what these import when they are imported themselves must be light: --help and a wrong override answer at once
LIGHT = {"__init__", "errors", "forking", "signals", "writing", "specs", "types", "config", "cli"}
HEAVY = {
    "torch",
    "matplotlib",
    "torchvision",
    "torchmetrics",
    "timm",
    "lightning",
    "sklearn",
    "scipy",
    "pyarrow",
    "pandas",
}


@dataclass(frozen=True)
class Import:
    """One imported name; ``at_once`` when importing the file runs it."""

    name: str
    line: int
    at_once: bool

    @property
    def package(self) -> str:
        top = self.name.split(".")[0]
        return THE_SAME.get(top, top)

    @property
    def room(self) -> str | None:
        parts = self.name.split(".")
        return parts[1] if parts[0] == "frostline" and len(parts) > 1 else None


def imports(code: str) -> Iterator[Import]:
    def visit(node: ast.AST, at_once: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, at_once) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from from_import(child, at_once)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(ast.Module(child.body, []), False)
                yield from visit(ast.Module(child.orelse, []), at_once)
            else:
                later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from visit(child, at_once and not later)

    def from_import(node: ast.ImportFrom, at_once: bool) -> Iterator[Import]:
        assert node.level == 0, f"line {node.lineno}: imports are absolute"
        named = [alias.name for alias in node.names] if node.module == "frostline" else [""]
        yield from (Import(f"{node.module}.{name}".rstrip("."), node.lineno, at_once) for name in named)

    yield from visit(ast.parse(code), True)


def layer(room: str) -> int | None:
    return next((number for number, rooms in enumerate(LAYERS) if room in rooms), None)


def faults(room: str, code: str) -> list[str]:
    """What is wrong with the imports of a file of ``room``; ``__init__`` is the face of the package, above all."""
    found = []
    for item in imports(code):
        at = f"line {item.line}: {room} imports {item.name}"
        if item.room and item.room != room and room != "__init__":
            own, other = layer(room), layer(item.room)
            if own is None or other is None:
                found.append(f"{at}: a room without a layer")
            elif other > own:
                found.append(f"{at}, which is above it")
            elif other == own > 0 and (room, item.room) not in SIDEWAYS:
                found.append(f"{at}, which is beside it")
        elif item.package != "frostline":
            if room not in ONLY_IN.get(item.package, {room}):
                found.append(f"{at}, which is for {sorted(ONLY_IN[item.package])}")
            if item.package not in {*sys.stdlib_module_names, *OUTSIDERS.get(room, {item.package})}:
                found.append(f"{at}, but may use {sorted(OUTSIDERS[room]) or 'the standard library'} only")
        if item.at_once and room in LIGHT and item.package in HEAVY:
            found.append(f"{at} when it is imported itself")
    return found


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = sorted(SOURCE.rglob("*.py"))
ROOMS = sorted(init.parent for init in SOURCE.glob("*/__init__.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_go_down_and_stay_in_their_rooms(file: Path) -> None:
    assert faults(room_of(file), file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_every_room_has_a_layer_and_spells_its_public_surface(room: Path) -> None:
    assert layer(room.name) is not None
    code = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
    assigned = [ast.unparse(target) for node in code.body if isinstance(node, ast.Assign) for target in node.targets]
    assert "__all__" in assigned


@pytest.mark.parametrize(
    ("room", "code", "fault"),
    [
        ("freezing", "from frostline.data import ImageData", "beside it"),
        ("optim", "from frostline.tasks import ClassificationTask", "above it"),
        ("errors", "from frostline import cli", "above it"),
        ("data", "def f():\n    import frostline.runs.train", "above it"),
        ("backbones", "from lightning import Trainer", "is for"),
        ("metrics", "def f():\n    from pytorch_lightning import Trainer", "is for"),
        ("tasks", "from omegaconf import DictConfig", "is for"),
        ("freezing", "import timm", "may use ['torch'] only"),
        ("specs", "import yaml", "the standard library only"),
        ("cli", "from torch import nn", "when it is imported itself"),
        ("config", "class A:\n    import timm", "when it is imported itself"),
        ("gadgets", "from frostline.errors import DataError", "without a layer"),
        ("metrics", "from frostline.gadgets import gadget", "without a layer"),
    ],
)
def test_a_breach_is_found(room: str, code: str, fault: str) -> None:
    assert [fault in found for found in faults(room, code)] == [True]


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("optim", "from frostline.freezing import Phase"),
        ("runs", "from frostline import errors\nfrom lightning import Trainer\nfrom hydra.utils import instantiate"),
        ("cli", "def main():\n    import torch"),
        ("types", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("freezing", "import torch.nn\nfrom frostline.freezing.phase import Phase"),
    ],
)
def test_what_is_allowed_is_no_breach(room: str, code: str) -> None:
    assert faults(room, code) == []


@pytest.mark.parametrize(
    "work",
    [
        "import frostline.cli, frostline.errors, frostline.specs, frostline.types, frostline.config",
        "import frostline; frostline.__all__",
        "from frostline.cli import main; main(['train', '--cfg', 'job'])",
        "from frostline.cli import main; main(['train', '--help'])",
        "from frostline.cli import main; main(['train', 'optimiser.lr=1'])",
    ],
)
def test_answers_without_the_heavy_imports(work: str, tmp_path: Path) -> None:
    code = f"""
        import atexit, sys
        loaded = lambda: sorted({HEAVY!r} & set(sys.modules))
        atexit.register(lambda: print("heavy:", loaded(), file=sys.stderr))
        {work}
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr.endswith("heavy: []\n"), done.stderr
    assert "Traceback" not in done.stderr
