"""Pictures of several requests, run together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

Classify = Callable[[Tensor], Tensor]
"""``[B, C, H, W]`` uint8 pictures to ``[B, K]`` float32 probabilities."""


class QueueFull(Exception):  # noqa: N818  # an answer, not a fault
    """More pictures are waiting than may."""


class Batcher:
    """Runs what has come together, a batch at a time, on a thread of its own.

    Args:
        classify: the model.
        most: pictures in a batch.
        wait: seconds that the first picture of a batch waits for others.
        room: pictures that may wait; those of one request are taken all or none.
    """

    def __init__(self, classify: Classify, *, most: int, wait: float, room: int) -> None:
        self._classify, self._most, self._wait, self._room = classify, most, wait, room
        self._waiting: asyncio.Queue[tuple[Tensor, asyncio.Future[Tensor]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "frostline-model")
        self._reserved = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def reserved(self) -> int:
        """Pictures that are on their way to an answer."""
        return self._reserved

    def start(self) -> None:
        """Begin to run batches, in the loop that runs now."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; requests that wait have been answered by then."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    def reserve(self, count: int) -> None:
        """Take room for the pictures of a request, before any is decoded.

        Raises:
            QueueFull: there is none.
        """
        if self._reserved + count > self._room:
            raise QueueFull
        self._reserved += count

    def release(self, count: int) -> None:
        """Give room back, once the request is answered or given up."""
        self._reserved -= count

    async def probabilities(self, pictures: list[Tensor]) -> Tensor:
        """``[N, K]`` for ``N`` pictures, each ``[C, H, W]`` uint8."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Tensor]] = [loop.create_future() for _ in pictures]
        for picture, future in zip(pictures, futures, strict=True):
            self._waiting.put_nowait((picture, future))
        try:
            return torch.stack(await asyncio.gather(*futures))
        finally:
            # of a request that was given up nothing needs to be run any more
            for future in futures:
                future.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._gathered()
            if not batch:
                continue
            try:
                stacked = torch.stack([picture for picture, _ in batch])
                rows = await loop.run_in_executor(self._thread, self._classify, stacked)
            except Exception as error:  # the model may fail in any way; its requests are told, and the next one is run
                for _, future in batch:
                    if not future.done():
                        future.set_exception(RuntimeError(str(error)))
                continue
            for row, (_, future) in zip(rows, batch, strict=True):
                if not future.done():
                    future.set_result(row)

    async def _gathered(self) -> list[tuple[Tensor, asyncio.Future[Tensor]]]:
        """The next batch: full, or what came within the wait."""
        loop = asyncio.get_running_loop()
        batch = [await self._waiting.get()]
        end = loop.time() + self._wait
        while len(batch) < self._most:
            # what is there costs no wait, and is taken after the end of it too
            if not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
                continue
            try:
                batch.append(await asyncio.wait_for(self._waiting.get(), max(0.0, end - loop.time())))
            except TimeoutError:
                break
        return [(picture, future) for picture, future in batch if not future.done()]
