"""The server's process: its port, how it begins, and how it ends."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from accelnet.arguments import integer, word
from accelnet.artifact.model import Model
from accelnet.errors import UserError
from accelnet.packages import imported
from accelnet.serving.connections import connection_type
from accelnet.serving.limits import Limits
from accelnet.serving.service import Service
from accelnet.terminal import StatusLine, say

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MOST_CONNECTIONS = 1024
_IDLE_SECONDS = 75


def serve(model: Model, host: str, port: int, limits: Limits, *, progress: bool = True) -> None:
    """Serve a model until SIGTERM or Ctrl-C, and answer what waits before the end.

    Args:
        model: The model.
        host: Address to listen at.
        port: Port, 0 for any that is free.
        limits: How much the server takes on.
        progress: Whether a line on standard error tells how many shapes are compiled.

    Raises:
        UserError: if the extra `serve` is not installed, or the port cannot be had.
    """
    for package in ("httptools", "orjson", "uvicorn"):
        imported(package, "serve")
    uvloop = imported("uvloop", "serve")
    with contextlib.closing(listening(host, port)) as listener:
        service = Service(model, limits)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(make_server(service, limits), service, listener, progress=progress))


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: if there is no such address, or its port cannot be had.

    Example:
        >>> with listening("127.0.0.1", 0) as first:
        ...     listening("127.0.0.1", first.getsockname()[1])
        Traceback (most recent call last):
        accelnet.errors.UserError: port ... of 127.0.0.1 is in use: give another port, or 0 for any that is free
    """
    word("host", host)
    integer("port", port, 0, 65535)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise UserError(f"host is {host!r}, expected an address of this machine: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_MOST_CONNECTIONS)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            told = f"port {port} of {host} is in use: give another port, or 0 for any that is free"
        else:
            told = f"port {port} of {host} cannot be had: {error.strerror or error}"
        raise UserError(told) from None
    return listener


def make_server(service: Service, limits: Limits) -> Any:
    """Return the `uvicorn.Server` of a service; setting its `should_exit` ends it."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn raises the signal anew at the end. This server has done what it was asked: it ends with code 0.
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # strangers' mistakes, a line for each
    return Server(
        uvicorn.Config(
            service.application,
            http=connection_type(limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=int(2 * limits.seconds) + 1,
        )
    )


async def run(server: Any, service: Service, listener: socket.socket, *, progress: bool) -> None:
    """Compile and serve, until a signal or `server.should_exit` ends it."""
    host, port, *_ = listener.getsockname()
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    line = StatusLine(progress)

    async def compile_all() -> None:
        try:
            await service.compile(
                lambda done, whole: line(f"compiling: {done} of {whole} shapes"), lambda: server.should_exit
            )
            line.close()
            if service.ready:
                say(f"{service.name} is served at {address}; Ctrl-C ends it")
        except BaseException:
            server.should_exit = True
            raise

    async def check() -> None:
        while True:
            await asyncio.sleep(1)
            for connection in list(server.server_state.connections):
                connection.check(asyncio.get_running_loop().time())

    if host not in _LOOPBACK:
        say(f"anyone who reaches {address} can use it: there is no authentication")
    compiling, checking = asyncio.create_task(compile_all()), asyncio.create_task(check())
    try:
        await server.serve(sockets=[listener])
        await compiling
    finally:
        checking.cancel()
        service.close()
