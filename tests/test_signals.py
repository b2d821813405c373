from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frostline import signals
from frostline.errors import Interrupted
from frostline.signals import STOP, StopSignals

TERM, INT, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and prctl")


@pytest.fixture
def stop() -> Iterator[StopSignals]:
    """The process's own, installed over what pytest has."""
    STOP.install()
    yield STOP
    STOP.restore()


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


class Script:
    """A Python program in a process of its own, spoken with by lines."""

    def __init__(self, code: str, folder: Path, **settings: object) -> None:
        path = folder / "script.py"
        start = "import os, signal, sys, time\nfrom frostline import signals\nfrom frostline.signals import STOP\n"
        path.write_text(start + textwrap.dedent(code))
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,  # type: ignore[call-overload]
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def error_line(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline().strip()

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    started: list[Script] = []

    def start(code: str, **settings: object) -> Script:
        started.append(Script(code, tmp_path, **settings))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def has_ended(pid: int) -> bool:
    for _ in range(200):
        if not is_running(pid):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("signum", "code"), [(TERM, 143), (INT, 130), (USR1, 143)])
def test_outside_a_deferral_a_signal_raises_at_once(stop: StopSignals, signum: int, code: int) -> None:
    with pytest.raises(Interrupted, match=signals.name(signum)) as caught:
        send(signum)
    assert caught.value.exit_code == code == signals.exit_code(signum)
    assert stop.received == signum


@pytest.mark.parametrize(("signum", "again"), [(TERM, False), (INT, True), (USR1, False)])
def test_inside_a_deferral_a_signal_is_noted_and_said_once(
    stop: StopSignals, signum: int, again: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with stop.deferred():
            assert stop.agreed() == 0
            send(signum)
            assert stop.agreed() == stop.received == signum
            if signum != INT:
                send(signum)
            raise Interrupted("saved")

    with pytest.raises(Interrupted, match="saved"):
        work()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{signals.name(signum)}: stopping after this step; the run is saved first.")
    assert ("Again to stop at once." in line) is again


def test_a_signal_that_nobody_took_is_taken_at_the_end_of_the_outermost_deferral(stop: StopSignals) -> None:
    reached = []

    def work() -> None:
        with stop.deferred():
            with stop.deferred():
                send(TERM)
            reached.append(True)

    with pytest.raises(Interrupted, match="SIGTERM") as caught:
        work()
    assert reached
    assert caught.value.exit_code == 143


def test_another_exception_of_a_deferral_is_not_replaced(stop: StopSignals) -> None:
    def work() -> None:
        with stop.deferred():
            send(TERM)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()


@pytest.mark.parametrize("order", [(INT, TERM), (TERM, INT)])
def test_a_termination_counts_for_more_than_an_interrupt(stop: StopSignals, order: tuple[int, int]) -> None:
    def work() -> None:
        with stop.deferred():
            for signum in order:
                send(signum)
            assert stop.received == TERM

    with pytest.raises(Interrupted, match="SIGTERM"):
        work()


def test_while_the_process_ends_signals_are_only_noted(stop: StopSignals) -> None:
    stop.ending()
    send(TERM)
    with stop.deferred():
        send(USR1)
    assert stop.received == TERM


def test_handlers_are_given_back_and_what_came_is_forgotten() -> None:
    before = [signal.getsignal(signum) for signum in signals.STOPPING]
    STOP.install()
    STOP.install()
    with pytest.raises(Interrupted):
        send(TERM)
    STOP.restore()
    assert [signal.getsignal(signum) for signum in signals.STOPPING] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert STOP.received is None
    with pytest.raises(KeyboardInterrupt):
        send(INT)


def test_without_handlers_nothing_is_deferred_and_nothing_agreed() -> None:
    with StopSignals().deferred():
        assert StopSignals().agreed() == 0


def test_an_interrupt_that_is_ignored_stays_ignored(script: Callable[..., Script]) -> None:
    running = script(
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        STOP.install()
        with STOP.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        print(STOP.received)
        """
    )
    assert running.end() == (0, "None\n", "")


def test_another_thread_leaves_the_signals_alone(script: Callable[..., Script]) -> None:
    running = script(
        """
        import threading
        def work():
            STOP.install()
            STOP.restore()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        """
    )
    assert running.end() == (0, "True\n", "")


STUBBORN = """
import multiprocessing, subprocess
def stubborn():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = subprocess.Popen(["sleep", "300"])
    print(grandchild.pid, os.getpid(), flush=True)
    time.sleep(300)
def start():
    multiprocessing.get_context("fork").Process(target=stubborn).start()
"""


@LINUX
@pytest.mark.parametrize("deferral", ["STOP.deferred()", "contextlib.nullcontext()"])
def test_a_second_interrupt_kills_children_that_ignore_it(script: Callable[..., Script], deferral: str) -> None:
    running = script(
        STUBBORN
        + f"""
import contextlib
STOP.install()
start()
with {deferral}:
    try:
        print("ready", flush=True)
        time.sleep(300)
    except signals.Interrupted:
        print("interrupted", flush=True)
    while True:
        time.sleep(1)
"""
    )
    lines = [running.line(), running.line()]
    (pids,) = (line for line in lines if line != "ready")
    running.process.send_signal(INT)
    if "deferred" in deferral:
        assert "stopping after this step" in running.error_line()
    else:
        assert running.line() == "interrupted"
    assert all(is_running(int(pid)) for pid in pids.split())
    running.process.send_signal(INT)
    assert running.error_line() == "SIGINT again: stopped at once. What came after the last checkpoint is lost."
    assert running.process.wait(30) == 130
    assert all(has_ended(int(pid)) for pid in pids.split())


@LINUX
def test_a_second_interrupt_ends_a_process_that_is_stuck_in_a_foreign_call(script: Callable[..., Script]) -> None:
    running = script(
        """
        import ctypes
        STOP.install()
        with STOP.deferred():
            mutex = ctypes.create_string_buffer(256)
            library = ctypes.CDLL(None)
            library.pthread_mutex_lock(mutex)
            print("stuck", flush=True)
            library.pthread_mutex_lock(mutex)  # for ever, whatever signals come
        """
    )
    assert running.line() == "stuck"
    time.sleep(0.3)
    running.process.send_signal(INT)
    time.sleep(0.3)
    assert running.process.poll() is None
    running.process.send_signal(INT)
    assert running.process.wait(30) == 130


@LINUX
def test_one_interrupt_of_a_whole_group_counts_once_and_spares_who_left_it_to_main(
    script: Callable[..., Script],
) -> None:
    running = script(
        """
        import multiprocessing
        STOP.install()
        def read():
            signals.leave_to_main()
            os.write(1, b"reading\\n")
            for _ in range(600):
                time.sleep(0.1)
        def sleep():
            os.write(1, b"sleeping\\n")
            time.sleep(60)
        readers = [multiprocessing.get_context("fork").Process(target=read) for _ in range(2)]
        plain = multiprocessing.get_context("fork").Process(target=sleep)
        with STOP.deferred():
            for process in [*readers, plain]:
                process.start()
            while STOP.received != signal.SIGTERM:
                time.sleep(0.05)
            time.sleep(1)
            print([reader.is_alive() for reader in readers], flush=True)
            for process in readers:
                process.terminate()
            for process in readers:
                process.join()
            raise SystemExit(7)
        """,
        start_new_session=True,
    )
    # what is still being forked has the pipe of its parent
    assert sorted(running.line() for _ in range(3)) == ["reading", "reading", "sleeping"]
    os.killpg(running.process.pid, INT)
    assert "SIGINT: stopping" in running.error_line()
    os.killpg(running.process.pid, TERM)
    assert running.line() == "[True, True]"
    assert running.process.wait(30) == 7


@LINUX
def test_a_process_dies_with_its_parent_however_that_ends(script: Callable[..., Script]) -> None:
    running = script(
        """
        import subprocess
        child = "import os, signal, time; from frostline import signals; "
        child += f"signals.die_with_parent(signal.SIGKILL, {os.getpid()}); print(os.getpid(), flush=True); "
        subprocess.Popen([sys.executable, "-c", child + "time.sleep(300)"])
        time.sleep(300)
        """
    )
    child = int(running.line())
    assert is_running(child)
    running.process.kill()
    running.process.wait()
    assert has_ended(child)


def test_a_process_whose_parent_has_gone_dies_at_once(script: Callable[..., Script]) -> None:
    running = script("signals.die_with_parent(signal.SIGKILL, os.getppid() + 1)\nprint('alive')")
    assert running.end() == (-signal.SIGKILL, "", "")
    assert script("signals.die_with_parent(signal.SIGKILL, os.getppid())\nprint('alive')").end()[1] == "alive\n"


AGREE = """
import torch.distributed as ranks
rank, where = int(sys.argv[1]), sys.argv[2]
os.environ["RANK"] = str(rank)
STOP.install()
ranks.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=2)
STOP.prepare()
with STOP.deferred():
    found = [STOP.agreed()]
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGINT)
    found.append(STOP.agreed())
    print(found, STOP.everywhere, STOP.received, flush=True)
    ranks.destroy_process_group()
    os._exit(0)
"""


def test_ranks_agree_on_the_signal_that_counts_for_most(tmp_path: Path) -> None:
    code = "import os, signal, sys\nfrom frostline.signals import STOP\n" + AGREE
    commands = [[sys.executable, "-c", code, str(rank), str(tmp_path / "meet")] for rank in range(2)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for command in commands]
    outputs = [process.communicate(timeout=120) for process in started]
    for out, err in outputs:
        assert out.decode() == "[0, 15] True 15\n", err.decode()


def test_asking_costs_next_to_nothing_on_one_process(stop: StopSignals) -> None:
    import torch  # noqa: F401  # as in a run

    started = time.perf_counter()
    for _ in range(1000):
        stop.agreed()
    assert time.perf_counter() - started < 0.1
