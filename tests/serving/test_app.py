"""What the server answers, and what it refuses; over real connections, where that is the matter."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("fastapi")
pytest.importorskip("multipart")

from frostline.data.decoding import decode_picture
from frostline.serving.batching import Batcher, QueueFull

SERVER = """
import sys, time, torch, numpy
from frostline.data.decoding import decode_picture
from frostline.serving import Limits, ServedModel, listen, make_app

def decode(content, name):
    picture = decode_picture(content, name, 10_000).resize((8, 8))
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)

def classify(pictures):
    time.sleep({delay})
    # the brightest channel
    means = pictures.float().mean(dim=(2, 3))
    return torch.softmax(means, dim=1)

model = ServedModel("test", ("red", "green", "blue"), decode, classify)
app = make_app(model, Limits(body=20_000, pictures=4, seconds={seconds}, queue={queue}))
listen(app, "127.0.0.1", 0, connections=100, grace={grace})
"""


class Server:
    def __init__(self, delay: float = 0.0, seconds: float = 20.0, queue: int = 16, grace: float = 10.0) -> None:
        code = SERVER.format(delay=delay, seconds=seconds, queue=queue, grace=grace)
        environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening: "), self.process.communicate()[1]
        self.port = int(line.rsplit(":", 1)[1])

    def ask(self, body: bytes, kind: str = "image/png", path: str = "/predict") -> tuple[int, dict[str, Any]]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def stop(self, signum: int = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.stop()


def picture(channel: int, side: int = 20, kind: str = "PNG") -> bytes:
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    pixels[..., channel] = 200
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def form(*files: tuple[str, bytes]) -> tuple[bytes, str]:
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="pictures"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_picture_gets_its_label(server: Server, kind: str) -> None:
    status, told = server.ask(picture(1, kind=kind), f"image/{kind.lower()}")
    assert status == 200
    (said,) = told["predictions"]
    assert said["label"] == "green"
    assert said["confidence"] == max(said["probabilities"].values())
    assert sum(said["probabilities"].values()) == pytest.approx(1)


def test_a_form_with_several_is_answered_in_order(server: Server) -> None:
    status, told = server.ask(*form(("b.png", picture(2)), ("r.png", picture(0)), ("g.png", picture(1))))
    assert status == 200
    assert [(one["name"], one["label"]) for one in told["predictions"]] == [
        ("b.png", "blue"),
        ("r.png", "red"),
        ("g.png", "green"),
    ]


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"", "image/png", 400, "There is no picture"),
        (b"no picture", "image/png", 400, "picture"),
        (picture(0)[:60], "image/png", 400, "picture"),
        (picture(0, side=101), "image/png", 400, "101 x 101 pixels"),
        (b"x" * 20_001, "image/png", 413, "20,000 bytes"),
        (b"rubbish", "multipart/form-data; boundary=edge", 400, "form"),
        (b"rubbish", "multipart/form-data", 400, "form"),
        (*form(), 400, "no file"),
        (*form(*(("a.png", picture(0)),) * 5), 400, "form"),
        (
            *form(("good.png", picture(0)), ("bad.png", b"no")),
            400,
            "bad.png cannot be read: cannot identify image file.",
        ),
        # cut off within the second file, and before the end of the form
        (form(("a.png", picture(0)), ("b.png", picture(1)))[0][:-30], form()[1], 400, "its end is missing"),
        (form(("a.png", picture(0)), ("b.png", picture(1)))[0][:-12], form()[1], 400, "its end is missing"),
    ],
)
def test_what_is_wrong_is_refused_with_the_reason(
    server: Server, body: bytes, kind: str, status: int, message: str
) -> None:
    found, told = server.ask(body, kind)
    assert (found, message in told["error"]) == (status, True), told


def test_a_body_without_a_length_is_cut_off(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(3):
            connection.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_form_may_end_without_a_line_and_be_called_in_capitals(server: Server) -> None:
    body, kind = form(("a.png", picture(0)), ("b.png", picture(1)))
    status, told = server.ask(body.removesuffix(b"\r\n"), kind.replace("multipart/form-data", "Multipart/Form-Data"))
    assert (status, [one["label"] for one in told["predictions"]]) == (200, ["red", "green"])


def test_who_hangs_up_while_sending_is_counted_and_no_fault_of_the_server() -> None:
    server = Server()
    for kind in (b"image/png", b"multipart/form-data; boundary=edge"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: " + kind
            connection.sendall(head + b"\r\nContent-Length: 999\r\n\r\n--edge")
            time.sleep(0.1)
    end = time.monotonic() + 20
    while 'frostline_requests_total{status="400"} 2.0' not in server.get("/metrics")[1]:
        assert time.monotonic() < end
        time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.communicate(timeout=30)[1] == ""


def test_health_metrics_openapi_and_the_page(server: Server) -> None:
    server.ask(picture(0))
    assert json.loads(server.get("/health")[1])["classes"] == ["red", "green", "blue"]
    metrics = server.get("/metrics")[1]
    assert 'frostline_requests_total{status="200"}' in metrics
    assert "frostline_pictures_waiting 0.0" in metrics
    described = json.loads(server.get("/openapi.json")[1])
    assert set(described["paths"]["/predict"]["post"]["responses"]) >= {"200", "400", "413", "429"}
    status, page = server.get("/")
    assert status == 200
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


@pytest.mark.slow
def test_a_full_queue_is_said_and_nothing_is_lost() -> None:
    server = Server(delay=0.3, queue=4)
    try:
        with ThreadPoolExecutor(16) as many:
            found = list(many.map(lambda _: server.ask(picture(2)), range(16)))
    finally:
        server.stop()
    statuses = [status for status, _ in found]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 4
    assert all(told["predictions"][0]["label"] == "blue" for status, told in found if status == 200)


@pytest.mark.slow
def test_what_takes_too_long_is_given_up() -> None:
    server = Server(delay=1.0, seconds=0.3)
    try:
        assert server.ask(picture(0))[0] == 408
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\n")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_what_was_begun_is_answered(signum: int) -> None:
    # a part of a second to end in is one that there is
    server = Server(delay=0.8, grace=0.9)
    with ThreadPoolExecutor(4) as many:
        asked = [many.submit(server.ask, picture(0)) for _ in range(4)]
        time.sleep(0.4)
        server.process.send_signal(signum)
        assert [one.result()[0] for one in asked] == [200] * 4
    server.process.communicate(timeout=30)
    with pytest.raises(OSError, match=r"."):
        server.ask(picture(0))


@pytest.mark.parametrize("wait", [0.05, 0.0])
def test_pictures_of_several_requests_are_run_together(wait: float) -> None:
    """Without a wait what came while the last batch was run."""
    seen: list[int] = []

    def classify(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        time.sleep(0.02)
        return batch.float().flatten(1)[:, :2]

    async def ask() -> list[Tensor]:
        batcher = Batcher(classify, most=8, wait=wait, room=20)
        batcher.start()
        wanted = [torch.full((1, 2, 1), value, dtype=torch.uint8) for value in range(20)]
        rows = await asyncio.gather(*(batcher.probabilities([one]) for one in wanted))
        await batcher.stop()
        return rows

    rows = asyncio.run(ask())
    assert [int(row[0, 0]) for row in rows] == list(range(20))
    assert seen == [8, 8, 4]


def test_room_is_taken_whole_or_not_at_all() -> None:
    async def take() -> None:
        batcher = Batcher(lambda batch: batch, most=2, wait=0.0, room=5)
        batcher.reserve(3)
        with pytest.raises(QueueFull):
            batcher.reserve(3)
        assert batcher.reserved == 3
        batcher.release(3)
        batcher.reserve(5)

    asyncio.run(take())


def test_a_model_that_fails_once_answers_the_next() -> None:
    calls: list[int] = []

    def classify(batch: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("out of memory")
        return batch.float().flatten(1)

    async def ask() -> Tensor:
        batcher = Batcher(classify, most=2, wait=0.0, room=5)
        batcher.start()
        one = torch.ones(1, 1, 1, dtype=torch.uint8)
        with pytest.raises(RuntimeError, match="out of memory"):
            await batcher.probabilities([one])
        found = await batcher.probabilities([one])
        await batcher.stop()
        return found

    assert asyncio.run(ask()).tolist() == [[1.0]]


def test_the_decoder_names_the_picture_it_refuses() -> None:
    with pytest.raises(Exception, match=r"cat\.png"):
        decode_picture(b"no", "cat.png", 100)


def test_the_page_lies_in_the_package() -> None:
    assert (Path(__file__).parents[2] / "src" / "frostline" / "serving" / "page.html").is_file()
