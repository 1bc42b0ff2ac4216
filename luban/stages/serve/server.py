"""uvicorn around the service: a port, signals, and a stop that answers what was accepted."""

from __future__ import annotations

import logging
import signal
import socket
import time
from types import FrameType

import uvicorn

from luban import console
from luban.errors import RequestError
from luban.stages.serve.app import make
from luban.stages.serve.service import Service

LINGER = 0.5  # seconds that the port stays open after SIGTERM, so that a balancer reads /readyz and clients a 503
CONNECTIONS = 1000


class Server(uvicorn.Server):
    """`run()` serves until it is told to stop; `stop()` is safe from other threads. `url` is known before."""

    def __init__(self, service: Service, host: str, port: int):
        self.service, self._stopping = service, 0.0
        self.socket = _bound(host, port)
        self.port = self.socket.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}"
        limits = service.limits
        super().__init__(uvicorn.Config(
            make(service), ws="none", lifespan="off", access_log=False, log_config=None, server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=int(limits.graceful), timeout_keep_alive=15,
            limit_concurrency=limits.queue + CONNECTIONS,
        ))  # fmt: skip
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # its lines are written by clients' mistakes

    def run(self) -> None:
        service = self.service
        console.tell("serve.started", url=self.url, engine=service.engine.name, docs=self.url + "/docs")
        try:
            super().run(sockets=[self.socket])
        finally:
            service.close()
            self.socket.close()
        if not self.force_exit:
            console.tell("serve.stopped")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; a second one leaves at once."""
        if self.service.draining:
            self.should_exit = self.force_exit = True
        else:
            self.stop()

    def stop(self) -> None:
        """Take no new work, answer what is inside, then leave: after `graceful` seconds at the latest."""
        self._stopping = time.monotonic()
        self.service.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self.service.draining and not self.should_exit:
            waited = time.monotonic() - self._stopping
            idle = not self.service.inside and waited >= LINGER
            self.should_exit = idle or waited >= self.service.limits.graceful
        return await super().on_tick(counter)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, else asyncio leaves Nagle's delay on
    try:
        if hasattr(socket, "SO_REUSEADDR") and hasattr(
            signal, "SIGHUP"
        ):  # on Windows it would let another take the port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(2048)
    except OSError as e:
        made.close()
        raise RequestError("serve.no_port", host=host, port=port, reason=e.strerror or str(e)) from e
    return made
