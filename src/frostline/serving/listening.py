"""The process that answers, until it is told to stop."""

from __future__ import annotations

import math
import socket

import uvicorn
from fastapi import FastAPI

from frostline.errors import ConfigError, StorageError


def listen(app: FastAPI, host: str, port: int, *, connections: int, grace: float) -> None:
    """Answer until SIGTERM or SIGINT; then nothing new is taken, and what was begun is answered.

    Args:
        app: the application.
        host: the address to bind to.
        port: 0 takes a free one.
        connections: at once; above it they are answered 503.
        grace: seconds for what was begun.

    Raises:
        StorageError: the address cannot be bound to.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        # who asks from now on is answered once the application has started
        listening.listen(connections)
    except socket.gaierror as error:
        raise ConfigError(f"serve.host={host} is no address: {error.strerror}") from error
    except (OSError, OverflowError) as error:
        mend = "Choose another one, or serve.port=0 for any that is free."
        raise StorageError(f"{host}:{port} cannot be listened on: {error}", mend=mend) from error
    shown = f"[{host}]" if ":" in host else host
    print(f"listening: http://{shown}:{listening.getsockname()[1]}", flush=True)
    settings = uvicorn.Config(
        app,
        log_level="warning",
        limit_concurrency=connections,
        timeout_keep_alive=5,
        # whole seconds, and one to write the last answer in
        timeout_graceful_shutdown=math.ceil(grace) + 1,
        server_header=False,
    )
    with listening:
        uvicorn.Server(settings).run(sockets=[listening])
