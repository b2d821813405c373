"""The HTTP interface: what is asked, what is answered, and what is refused."""

from __future__ import annotations

import asyncio
import importlib.resources
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from torch import Tensor

from frostline.errors import DataError
from frostline.serving.batching import Batcher, Classify, QueueFull

_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Limits:
    """What a stranger may ask for.

    Attributes:
        body: bytes of a request.
        pictures: of a request.
        seconds: from the first byte of a request to its answer.
        queue: pictures that may be on their way at once; above it requests are answered 429.
        batch: pictures that the model is given at once.
        wait: seconds that a picture waits for others to fill a batch.
    """

    body: int = 20_000_000
    pictures: int = 32
    seconds: float = 30.0
    queue: int = 256
    batch: int = 32
    wait: float = 0.005


@dataclass(frozen=True)
class ServedModel:
    """What answers.

    Attributes:
        name: of the model, for a person.
        labels: the K classes.
        decode: from an encoded picture and its name to ``[C, H, W]`` uint8, or `DataError`.
        classify: see `Classify`.
        facts: more of the model, as plain types.
    """

    name: str
    labels: tuple[str, ...]
    decode: Callable[[bytes, str], Tensor]
    classify: Classify
    facts: dict[str, Any] = field(default_factory=dict)


class Label(BaseModel):
    """What the model says of a picture."""

    name: str
    label: str
    confidence: float
    probabilities: dict[str, float]


class Answer(BaseModel):
    """One entry a picture, in the order in which they came."""

    model: str
    predictions: list[Label]


class Fault(BaseModel):
    """Why a request was refused."""

    error: str


class _Refused(Exception):  # noqa: N818  # an answer, not a fault
    def __init__(self, status: int, error: str, **headers: str) -> None:
        super().__init__(error)
        self.status, self.error, self.headers = status, error, headers


class _Figures:
    """What ``/metrics`` tells, of this server alone."""

    def __init__(self, batcher: Batcher) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("frostline_requests", "Requests for a prediction, by status.", ["status"], **made)
        self.pictures = Counter("frostline_pictures", "Pictures that were labelled.", **made)
        self.seconds = Histogram("frostline_request_seconds", "From a request's first byte to its answer.", **made)
        Gauge("frostline_pictures_waiting", "Pictures on their way.", **made).set_function(lambda: batcher.reserved)


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"pictures": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": Fault, "description": "No picture, or one that cannot be read"},
    408: {"model": Fault, "description": "It took too long"},
    413: {"model": Fault, "description": "The request is too large"},
    429: {"model": Fault, "description": "Too many pictures are waiting"},
    500: {"model": Fault, "description": "The model failed"},
}


def make_app(model: ServedModel, limits: Limits) -> FastAPI:
    """The application: ``POST /predict``, ``/health``, ``/metrics``, ``/openapi.json``, and a page at ``/``."""
    batcher = Batcher(model.classify, most=limits.batch, wait=limits.wait, room=limits.queue)
    decoders = ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0))), "frostline-decode")
    figures = _Figures(batcher)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()
        decoders.shutdown()

    app = FastAPI(title=f"Frostline: {model.name}", lifespan=life, docs_url=None, redoc_url=None)

    @app.post("/predict", responses=_FAULTS, openapi_extra=_BODY)
    async def predict(request: Request) -> Answer:
        """Label one picture, sent as it is (``image/*``), or several as files of a form."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(limits.seconds):
                answer = await _answer(request, model, limits, batcher, decoders)
        except TimeoutError:
            raise _Refused(
                408, f"The answer took longer than {limits.seconds:g} seconds.", Connection="close"
            ) from None
        except ClientDisconnect:
            # nobody reads it; it is counted
            raise _Refused(400, "The connection ended before the request did.") from None
        finally:
            figures.seconds.observe(time.perf_counter() - started)
        figures.requests.labels("200").inc()
        figures.pictures.inc(len(answer.predictions))
        return answer

    @app.exception_handler(_Refused)
    async def refused(_: Request, refusal: _Refused) -> JSONResponse:
        figures.requests.labels(str(refusal.status)).inc()
        return JSONResponse({"error": refusal.error}, refusal.status, headers=refusal.headers)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """That it answers, and what it is."""
        return {"status": "ok", "model": model.name, "classes": list(model.labels), **model.facts}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(generate_latest(figures.registry), media_type=CONTENT_TYPE_LATEST)

    page = importlib.resources.files("frostline.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def drop() -> HTMLResponse:
        headers = {"Content-Security-Policy": _PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(page, headers=headers)

    return app


async def _answer(
    request: Request, model: ServedModel, limits: Limits, batcher: Batcher, decoders: ThreadPoolExecutor
) -> Answer:
    found = await _pictures_of(request, limits)
    try:
        batcher.reserve(len(found))
    except QueueFull:
        waiting = f"{limits.queue} pictures are waiting already; try again."
        raise _Refused(429, waiting, **{"Retry-After": "1"}) from None
    try:
        loop = asyncio.get_running_loop()
        work = [loop.run_in_executor(decoders, model.decode, content, name) for name, content in found]
        decoded = await asyncio.gather(*work, return_exceptions=True)
        rows = await batcher.probabilities(_good(decoded))
    except RuntimeError as error:
        raise _Refused(500, f"The model failed: {error}") from error
    finally:
        batcher.release(len(found))
    names = [name for name, _ in found]
    return Answer(model=model.name, predictions=[_label(*one, model.labels) for one in zip(names, rows, strict=True)])


def _good(decoded: Sequence[Tensor | BaseException]) -> list[Tensor]:
    for one in decoded:
        if isinstance(one, DataError):
            raise _Refused(400, one.problem)
        if isinstance(one, BaseException):
            raise one
    return [one for one in decoded if isinstance(one, Tensor)]


def _label(name: str, row: Tensor, labels: Sequence[str]) -> Label:
    values = row.tolist()
    best = max(range(len(values)), key=values.__getitem__)
    probabilities = dict(zip(labels, values, strict=True))
    return Label(name=name, label=labels[best], confidence=values[best], probabilities=probabilities)


async def _pictures_of(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """Name and content of each picture of a request."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        body = b"".join([part async for part in _within(request, limits)])
        if not body:
            raise _Refused(400, "There is no picture: send one as the body, or several as files of a form.")
        return [("picture", body)]
    parser = _Form(request.headers, _within(request, limits), max_files=limits.pictures, max_fields=limits.pictures)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _Refused(400, f"The form cannot be read: {error.message}") from error
    except (KeyError, ValueError) as error:
        raise _Refused(400, f"The form cannot be read: {error}") from error
    try:
        if not parser.ended:
            raise _Refused(400, "The form cannot be read: its end is missing.")
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise _Refused(400, "There is no file in the form.")
        return [(_shown(file.filename), await file.read()) for file in files]
    finally:
        await form.close()


class _Form(MultiPartParser):
    """A form that knows whether it came to its end; of one that was cut off the last files would be missing."""

    ended = False

    def on_end(self) -> None:
        """See `MultiPartParser`."""
        self.ended = True


def _shown(name: str | None) -> str:
    return "".join(letter for letter in (name or "picture") if letter.isprintable())[:200] or "picture"


async def _within(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body, as long as it is not too large; it is never held in whole before that is known."""
    said = request.headers.get("content-length", "0")
    too_large = _Refused(413, f"A request may have {limits.body:,} bytes.", Connection="close")
    if said.isdigit() and int(said) > limits.body:
        raise too_large
    seen = 0
    async for part in request.stream():
        seen += len(part)
        if seen > limits.body:
            raise too_large
        yield part
