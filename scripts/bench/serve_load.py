"""Many clients at once against ``frostline serve``, some of which send what is no picture.

The server runs in a process of its own on loopback with the model of a finished run. Each client sends one request
after the other over a connection that it keeps. Pictures are those that the run made predictions of, and each answer
is compared with the row of ``predictions/``, calibrated by the run's temperature; among them are broken pictures, empty
bodies and broken forms, which must be refused. Prints a Markdown table: what came of the requests, requests a second,
percentiles of the time of an answer, and the server's memory.

    python scripts/bench/serve_load.py outputs/train/RUN --root DATA --clients 64 --requests 2000
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

Row = dict[str, float]
BROKEN: tuple[tuple[str, bytes, str, int], ...] = (
    ("no picture", b"this is no picture", "image/jpeg", 400),
    ("an empty body", b"", "image/jpeg", 400),
    ("the first bytes of a JPEG", b"\xff\xd8\xff\xe0\x00\x10JFIF", "image/jpeg", 400),
    ("a form without an end", b"--x\r\nContent-Disposition: form-data", "multipart/form-data; boundary=x", 400),
    ("a form without a boundary", b"--x--", "multipart/form-data", 400),
)


@dataclass
class Seen:
    """What came of the requests; clients add to it in turn."""

    seconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    largest_difference: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str, seconds: float, difference: float = 0.0) -> None:
        with self.lock:
            self.outcomes[outcome] += 1
            self.seconds.append(seconds)
            self.largest_difference = max(self.largest_difference, difference)


def expected(run: Path, root: Path) -> list[tuple[bytes, Row]]:
    """Encoded pictures of the test split and the calibrated probabilities of each class."""
    table = pq.read_table(run / "predictions" / "test.parquet").to_pydict()
    classes = [name for name in table if name.startswith("p(")]
    temperature = json.loads((run / "calibration.json").read_text())["temperature"]
    logits = np.log(np.stack([np.array(table[name], np.float64) for name in classes], axis=1)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    rows = powers / powers.sum(axis=1, keepdims=True)
    found = []
    for name, row in zip(table["image"], rows.tolist(), strict=True):
        path = Path(name) if Path(name).is_absolute() else root / name
        found.append((path.read_bytes(), dict(zip([name[2:-1] for name in classes], row, strict=True))))
    return found


def memory(process: int) -> int:
    """Resident bytes of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024


def client(address: tuple[str, int], work: Iterator[int], pictures: list[tuple[bytes, Row]], seen: Seen) -> None:
    """Send requests until none is left; a tenth of them are broken."""
    connection = http.client.HTTPConnection(*address, timeout=120)
    for number in work:
        broken = number % 10 == 9
        row: Row = {}
        if broken:
            kind, body, form, status = BROKEN[number // 10 % len(BROKEN)]
        else:
            (body, row), kind, form, status = pictures[number % len(pictures)], "a picture", "image/jpeg", 200
        started = time.perf_counter()
        try:
            connection.request("POST", "/predict", body, {"Content-Type": form})
            answer = connection.getresponse()
            content = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            seen.add(f"lost: {type(error).__name__}", time.perf_counter() - started)
            connection.close()
            continue
        seconds = time.perf_counter() - started
        if answer.status != status:
            seen.add(f"{kind}: answered {answer.status} and not {status}", seconds)
        elif broken:
            seen.add("refused, as it should be", seconds)
        else:
            given = content["predictions"][0]["probabilities"]
            seen.add("answered", seconds, max(abs(given[name] - value) for name, value in row.items()))
    connection.close()


class Shared:
    """An iterator that several threads may take from."""

    def __init__(self, count: int) -> None:
        self._left, self._lock = iter(range(count)), threading.Lock()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self._lock:
            return next(self._left)


def listening(server: subprocess.Popen[str]) -> tuple[str, int]:
    """The address that a server says it listens on."""
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.match(r"listening: http://([^:]+):(\d+)", line):
            return found[1], int(found[2])
    raise SystemExit("the server ended before it listened")


def measure(run: Path, root: Path, *, clients: int, requests: int) -> str:
    """A Markdown table of what was seen."""
    pictures = expected(run, root)
    command = [sys.executable, "-m", "frostline.cli", "serve", f"run={run}", "port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = listening(server)
            # a first round: what a server takes once it has seen each kind of request
            attack(address, pictures, Seen(), clients=clients, requests=max(requests // 10, clients))
            before, seen, started = memory(server.pid), Seen(), time.perf_counter()
            marks = attack(address, pictures, seen, clients=clients, requests=requests, watched=server.pid)
            wall, after = time.perf_counter() - started, memory(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
    ended = server.wait()
    quantiles = statistics.quantiles(seen.seconds, n=100)
    rows = [
        ("requests, clients", f"{requests}, {clients}"),
        *((outcome, str(count)) for outcome, count in sorted(seen.outcomes.items())),
        ("largest difference of a probability", f"{seen.largest_difference:.1e}"),
        ("requests a second", f"{requests / wall:.0f}"),
        ("p50, p99 of an answer", f"{quantiles[49] * 1e3:.0f} ms, {quantiles[98] * 1e3:.0f} ms"),
        ("memory before, most, after", " , ".join(f"{it / 2**20:.0f} MiB" for it in (before, max(marks), after))),
        ("exit code after SIGTERM", str(ended)),
    ]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def attack(
    address: tuple[str, int],
    pictures: list[tuple[bytes, Row]],
    seen: Seen,
    *,
    clients: int,
    requests: int,
    watched: int | None = None,
) -> list[int]:
    """All requests by all clients; the memory of the server, each half second."""
    work = Shared(requests)
    threads = [threading.Thread(target=client, args=(address, work, pictures, seen)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    marks = [0]
    while any(thread.is_alive() for thread in threads):
        if watched is not None:
            marks.append(memory(watched))
        time.sleep(0.5)
    return marks


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run that has scored its test split")
    parser.add_argument("--root", type=Path, required=True, help="where the pictures of its data set are")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2000)
    given = parser.parse_args()
    print(measure(given.run, given.root, clients=given.clients, requests=given.requests))


if __name__ == "__main__":
    main()
