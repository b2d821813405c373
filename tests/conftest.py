"""What holds for every test: no network beyond this machine, and workers that do not fight over the cores."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # read by torch and NumPy when they are first imported, here and in what the tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# a tracking client that reports its use would wait for a network that is not there
os.environ["DO_NOT_TRACK"] = "true"

LOCAL = ("127.", "::1", "localhost", "0.0.0.0")


def _is_local(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    return not isinstance(name, str) or name in ("", "::", socket.gethostname()) or name.startswith(LOCAL)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept of data sets is kept for the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("FROSTLINE_CACHE_GIB", raising=False)
        yield


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes a look at the network fail at once, as on a machine without one; ``network`` tests are let through."""
    if request.node.get_closest_marker("network"):
        yield
        return
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            raise ConnectionRefusedError(f"tests have no network: {address}")
        connect(self, address)

    def resolve_here(host: Any, *arguments: Any, **keywords: Any) -> Any:
        if not _is_local(host):
            raise socket.gaierror(socket.EAI_NONAME, f"tests have no network: {host}")
        return resolve(host, *arguments, **keywords)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)
    yield
