"""Processes that read rows, where reading takes more computing than the threads of one process have."""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import jax
import numpy as np

from accelnet import arguments
from accelnet.data.rows import Rows
from accelnet.errors import UserCodeError, UserError, user_traceback

# The worker gets the paths of modules that this process has, before it imports anything of them.
_START = (
    "import json, sys; start = json.loads(sys.argv[1]); sys.path[:] = start['path']; "
    "from accelnet.data.workers import serve; serve(**start['serve'])"
)
_START_SECONDS = 60.0
_importing = threading.Event()  # while this process, which reads rows, imports the script
_SCRIPT = "__mp_main__"  # as multiprocessing calls the script in its processes, so that its main part does not run


class InProcesses(Rows):
    """Let processes read rows: each read is cut into parts, one for each process.

    They start at the first read and end with this process, whatever ends it. They get the rows as multiprocessing sends
    objects, import what the rows need, see no accelerator (JAX_PLATFORMS=cpu), and leave signals to this process.

    They pay where reading is computing and cores are free that the feed's two threads do not use: sources in Python and
    small pictures, where threads wait for each other, and large pictures on more than two cores. Where no core is free,
    they are as fast as threads. `python scripts/bench_input.py --only png` tells on your machine.

    Args:
        rows: Rows to read. A class of the script that is run is imported from it again, so the script must not start to
            train when it is imported.
        workers: Processes, at least 1.
        timeout_seconds: Seconds that a process may take for its part of a read, above 0; for its first, a minute more,
            since a process that starts imports what it needs.

    Raises:
        UserError: at the first read, if the rows cannot be sent; at any, if a process died or took too long.
    """

    def __init__(self, rows: Rows, workers: int, timeout_seconds: float = 120.0) -> None:
        self._rows, self.shapes = rows, rows.shapes
        self._workers = arguments.integer("workers", workers, low=1)
        self._timeout = arguments.number("timeout_seconds", timeout_seconds, above=0)
        self._lock = threading.Lock()
        self._pool: list[_Worker] = []
        weakref.finalize(self, _end, self._pool)

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, row: int) -> str:
        return self._rows.place(row)

    def identity(self) -> bytes:
        return self._rows.identity()

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        pool = self._started()
        parts = np.array_split(rows, min(len(pool), max(1, len(rows))))
        asked: list[_Worker] = []
        try:
            for worker, part in zip(pool, parts, strict=False):
                worker.lock.acquire()  # in one order, so that no two reads wait for each other
                asked.append(worker)
                worker.ask(part)
            # All answers are taken, also behind a failure: the next read must not get them.
            answers = []
            while asked:
                answers.append(asked[0].answer())
                asked.pop(0).lock.release()
        except _LostError as error:
            self._give_up()
            raise UserError(str(error)) from None
        finally:
            for worker in asked:
                worker.lock.release()
        for kind, content in answers:
            if kind == "mistake":
                raise UserError(content)
            if kind == "failure":
                raise UserCodeError("reading rows in a process", RuntimeError(content))
        batches = [content for _, content in answers]
        return batches[0] if len(batches) == 1 else jax.tree.map(lambda *a: np.concatenate(a), *batches)

    def _started(self) -> list["_Worker"]:
        if _importing.is_set():
            raise UserError("it reads rows in processes of its own")
        with self._lock:
            if not self._pool:
                content, script = _sendable(self._rows)
                try:
                    self._pool.extend(_Worker(script, self._timeout) for _ in range(self._workers))
                except OSError as error:
                    _end(self._pool)
                    raise UserError(f"a process that reads rows cannot start: {error.strerror or error}") from None
                for worker in self._pool:
                    worker.content = content  # is sent with the first question: starting takes seconds
            return list(self._pool)

    def _give_up(self) -> None:
        """End all processes after one was lost; a later read starts others."""
        with self._lock:
            _end(self._pool)


class _LostError(Exception):
    """Report a process that died or does not answer."""


class _Worker:
    """A process and the connection to it."""

    def __init__(self, script: str | None, timeout_seconds: float) -> None:
        self.lock, self.content, self._timeout = threading.Lock(), b"", timeout_seconds
        self._allowed = timeout_seconds + _START_SECONDS
        ours, theirs = socket.socketpair()
        with ours, theirs:
            _limit(ours, self._allowed)
            serve = {"descriptor": theirs.fileno(), "parent": os.getpid(), "script": script}
            self.process = subprocess.Popen(  # noqa: S603, our own module
                [sys.executable, "-c", _START, json.dumps({"path": sys.path, "serve": serve})],
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # signals to the group of this process, such as Ctrl-C, do not reach it
            )
            self._connection = Connection(ours.detach())

    def ask(self, rows: np.ndarray) -> None:
        with self._told():
            if self.content:
                self._connection.send_bytes(self.content)
                self.content = b""
            self._connection.send(rows)

    def answer(self) -> tuple[str, Any]:
        with self._told():
            answer = self._connection.recv()
        if self._allowed != self._timeout:  # it has started
            self._allowed = self._timeout
            connection = socket.socket(fileno=self._connection.fileno())
            _limit(connection, self._allowed)
            connection.detach()
        return answer

    @contextlib.contextmanager
    def _told(self) -> Any:
        try:
            yield
        except BlockingIOError:
            raise _LostError(
                f"a process that reads rows gave no answer within {self._allowed:g} s: does the disk answer? With "
                f"workers=0 this process reads"
            ) from None
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
            code = self.process.returncode
            how = f"with code {code}" if code is not None and code >= 0 else "at once"
            if code is not None and code < 0:
                how = f"by {signal.Signals(-code).name}"
            more = ", as the system does where memory is short" if code == -signal.SIGKILL else ""
            raise _LostError(
                f"a process that reads rows was ended {how}{more}: take fewer workers, or workers=0 to see its error"
            ) from None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._connection.close()


def _limit(connection: socket.socket, seconds: float) -> None:
    """Let a read that takes longer raise BlockingIOError, wherever in a message the process stopped."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, limit)


def _end(pool: list[_Worker]) -> None:
    while pool:
        pool.pop().close()


def _sendable(rows: Rows) -> tuple[bytes, str | None]:
    """Return rows as bytes, and the script that a process has to import before it can read them."""
    try:
        content = bytes(ForkingPickler.dumps(rows))
    except Exception as error:  # noqa: BLE001, a stranger's object may fail in any way
        raise UserError(
            f"the rows cannot be sent to other processes ({' '.join(str(error).split())[:200]}): take workers=0, or "
            f"open files where rows are read rather than where the source is made"
        ) from None
    if b"__main__" not in content:
        return content, None
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is None:
        raise UserError(
            "the source of the rows is defined in a notebook or at a prompt, which other processes cannot import: "
            "put it into a module, or take workers=0"
        )
    return content, os.path.abspath(script)  # noqa: PTH100, it may be relative to another place in the process


def serve(descriptor: int, parent: int, script: str | None) -> None:
    """Read rows for another process until it ends or closes the connection.

    Args:
        descriptor: Socket to it.
        parent: Number of that process.
        script: Script that defines what is sent, None for modules alone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the other process ends in order, and with it this one
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):
        content = _answered(lambda: _received(connection, script))
        while _is_asked(connection, parent):
            asked = connection.recv()
            if content[0] != "rows":
                connection.send(content)
            else:
                connection.send(_answered(lambda asked=asked: content[1].read(asked)))


def _received(connection: Connection, script: str | None) -> Any:
    try:
        if script is not None:
            _import(script)
    except BaseException:
        connection.recv_bytes()  # the rows: what comes next is a question
        raise
    return connection.recv()


def _import(script: str) -> None:
    import runpy
    import types

    module = types.ModuleType(_SCRIPT)
    sys.modules["__main__"] = sys.modules[_SCRIPT] = module
    _importing.set()
    try:
        module.__dict__.update(runpy.run_path(script, run_name=_SCRIPT))
    except (UserError, UserCodeError, SystemExit) as error:
        raise UserError(
            f"{script} is imported by the processes that read rows, and ended there ({error}): put what trains under "
            f'if __name__ == "__main__":'
        ) from None
    finally:
        _importing.clear()


def _is_asked(connection: Connection, parent: int) -> bool:
    """Wait for a question; another process may hold the socket open, so look after the parent too."""
    while not connection.poll(2.0):
        if os.getppid() != parent:
            return False
    return True


def _answered(function: Any) -> tuple[str, Any]:
    try:
        return "rows", function()
    except UserError as error:
        return "mistake", str(error)
    except Exception as error:  # noqa: BLE001, whatever a stranger's source raises is told
        return "failure", str(error) if isinstance(error, UserCodeError) else user_traceback(error)
