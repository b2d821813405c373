"""The exit codes of jobs that end while others begin."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from frostline.runs import jobs


@pytest.mark.slow
def test_a_job_that_ends_while_another_begins_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PRELOAD", [])
    leave = threading.Event()

    def look() -> None:
        while not leave.is_set():
            multiprocessing.active_children()  # as each start of another process does

    looking = threading.Thread(target=look)
    looking.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            codes = list(pool.map(lambda number: jobs.run_forked(int, number), range(1, 31)))
    finally:
        leave.set()
        looking.join()
    assert codes == list(range(1, 31))
