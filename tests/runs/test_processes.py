"""What several processes of a run do alike while features are computed; two of them that talk over gloo."""

from __future__ import annotations

import ast
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from frostline import signals
from frostline.features import NotCached, Stopped
from frostline.runs.processes import Processes

RANKS = 2
# on a place, on one that each names otherwise, on one that the first alone names, and on none
AGREED = [True, False, False, True]


def trainer_of(rank: int, ranks: int = RANKS, machines: int = 1) -> Any:
    """What `Processes` asks of a trainer: on one machine, or each process on its own."""
    return SimpleNamespace(
        world_size=ranks,
        num_nodes=machines,
        node_rank=rank if machines > 1 else 0,
        local_rank=0 if machines > 1 else rank,
    )


def meet(rank: int, folder: str) -> None:
    """One process: does the tasks of this module, and writes down what came of each."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    found = {}
    for name, task in TASKS.items():
        found[name] = task(rank, Path(folder))
        torch.distributed.barrier()
    (Path(folder) / str(rank)).write_text(repr(found))
    torch.distributed.destroy_process_group()


def computed(rank: int, folder: Path, machines: int = 1) -> tuple[list[str], list[bool]]:
    """What each process was asked for, whether the other was done by then, and what they agree on."""
    processes, asked = Processes(trainer_of(rank, machines=machines), nn.Module()), []
    mark = folder / "done"

    def compute() -> str:
        asked.append("compute")
        time.sleep(0.5)
        mark.touch()
        return "the table"

    def find() -> str:
        asked.append(f"find {mark.exists()}")
        return "the table"

    assert processes.shared(f"of {machines}", compute, find) == "the table"
    torch.distributed.barrier()
    mark.unlink(missing_ok=True)
    torch.distributed.barrier()
    # the same once more, which is another question
    assert processes.shared(f"of {machines}", compute, find) == "the table"
    return asked, [processes.agree(place) for place in ("fc", f"fc{rank}", "fc" if rank == 0 else "", "")]


def refused(rank: int, folder: Path) -> str:
    processes = Processes(trainer_of(rank), nn.Module())

    def compute() -> str:
        raise NotCached("there is no room")

    with pytest.raises(NotCached) as reason:
        processes.shared("refused", compute, lambda: "the table")
    return str(reason.value)


def failed(rank: int, folder: Path) -> str:
    processes = Processes(trainer_of(rank), nn.Module())

    def compute() -> str:
        raise OSError("no disk")

    with pytest.raises((OSError, RuntimeError)) as reason:
        processes.shared("failed", compute, lambda: "the table")
    return str(reason.value)


def stopped(rank: int, folder: Path) -> str:
    """The one that waits gets a signal, which the one that computes has to see."""
    processes = Processes(trainer_of(rank), nn.Module())

    def compute() -> str:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if processes.is_stopping():
                raise Stopped
            time.sleep(0.01)
        raise AssertionError("it went on")

    signals.STOP.install()
    signals.STOP.ending()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped):
        processes.shared("stopped", compute, lambda: "the table")
    received = str(signals.STOP.received)
    signals.STOP.restore()
    return received


def buffers(rank: int, folder: Path) -> tuple[list[float], bool]:
    norm = nn.BatchNorm1d(2)
    norm.running_mean = torch.full((2,), float(rank) + 1)
    version = norm.running_mean._version
    assert Processes(trainer_of(rank), norm).agree("")
    return norm.running_mean.tolist(), norm.running_mean._version > version


TASKS: dict[str, Callable[[int, Path], Any]] = {
    "computed": computed,
    "on two machines": lambda rank, folder: computed(rank, folder, machines=2),
    "refused": refused,
    "failed": failed,
    "buffers": buffers,
    # it stays said that they stop
    "stopped": stopped,
}


@pytest.fixture(scope="module")
def of_both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Any]]:
    """What came of a task in each process."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.start_processes(meet, (str(folder),), nprocs=RANKS, start_method="spawn")
    found = [ast.literal_eval((folder / str(rank)).read_text()) for rank in range(RANKS)]
    return lambda task: [one[task] for one in found]


@pytest.mark.slow
def test_one_computes_and_the_other_finds_it_then(of_both: Callable[[str], list[Any]]) -> None:
    first, second = of_both("computed")
    assert first == (["compute", "compute"], AGREED)
    assert second == (["find True", "find True"], AGREED)


@pytest.mark.slow
def test_on_machines_of_their_own_each_computes(of_both: Callable[[str], list[Any]]) -> None:
    assert of_both("on two machines") == [(["compute", "compute"], AGREED)] * 2


@pytest.mark.slow
def test_what_the_one_cannot_keep_none_of_them_uses(of_both: Callable[[str], list[Any]]) -> None:
    assert of_both("refused") == ["there is no room"] * 2


@pytest.mark.slow
def test_where_the_one_fails_the_other_does_not_wait(of_both: Callable[[str], list[Any]]) -> None:
    assert of_both("failed") == ["no disk", "the process that computes features failed: OSError"]


@pytest.mark.slow
def test_a_signal_to_any_of_them_stops_both(of_both: Callable[[str], list[Any]]) -> None:
    assert of_both("stopped") == ["None", str(int(signal.SIGTERM))]


@pytest.mark.slow
def test_each_has_the_buffers_of_the_first_then(of_both: Callable[[str], list[Any]]) -> None:
    # and the other knows that they were written to
    assert of_both("buffers") == [([1.0, 1.0], False), ([1.0, 1.0], True)]


def test_one_process_asks_nobody() -> None:
    alone = Processes(trainer_of(0, ranks=1), nn.Module())
    assert not alone.several
    assert not alone.is_stopping()
