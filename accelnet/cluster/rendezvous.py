"""The rendezvous: the processes of a run find each other before jax connects them.

jax's client ends a process with a page of C++ if another one does not come, and does not say which. Here process 0
listens at the coordinator's address for one line from each, answers all of them, and leaves the port to jax.
"""

import contextlib
import errno
import json
import os
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from accelnet.errors import UserError

_LINE_BYTES = 65536
_RETRY_SECONDS = 0.1
# A process that waits for an answer gives process 0 this much longer than itself to notice that time is up.
_GRACE_SECONDS = 5.0


def meet(address: str, num_processes: int, rank: int, *, timeout_seconds: float) -> list[str]:
    """Wait until every process of the run is there.

    Args:
        address: "host:port" of process 0.
        num_processes: number of processes of the run.
        rank: number of this process, from 0 to `num_processes` - 1.
        timeout_seconds: time to wait for the others.

    Returns:
        The host name of each process.

    Raises:
        UserError: on every process that came, if one did not, two have the same rank or they disagree on how many they
            are; if the port is in use; if nothing answers at the address.
    """
    host, port = split_address(address)
    deadline = time.monotonic() + timeout_seconds
    hello = {"rank": rank, "num_processes": num_processes, "host": socket.gethostname()}
    if rank:
        return _visit(host, port, hello, deadline)
    with _listen(port) as listener:
        return _Meeting(listener, hello, deadline, timeout_seconds).wait()


def split_address(address: str) -> tuple[str, int]:
    """Split "host:port".

    Raises:
        UserError: if it is not of this form.

    Example:
        >>> split_address("[::1]:8476")
        ('::1', 8476)
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"the coordinator's address is {address!r}, expected host:port of process 0, such as 10.0.0.1:8476"
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def _listen(port: int) -> socket.socket:
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
    try:
        if bind:
            host, port = split_address(bind)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=1024)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port}, where process 0 has to listen, is in use on {socket.gethostname()}: end what uses it "
                "(an earlier run, or a second process 0), or choose another port"
            ) from None
        raise UserError(
            f"process 0 cannot listen at {bind or f'port {port}'}: {error}. Give the coordinator's address a port that "
            "is free to use, and run process 0 on that host"
        ) from None


@dataclass
class _Meeting:
    """What process 0 does: it collects one line from each of the others."""

    listener: socket.socket
    hello: dict[str, Any]
    deadline: float
    timeout_seconds: float
    arrived: dict[int, str] = field(default_factory=dict)
    lines: dict[socket.socket, bytes] = field(default_factory=dict)
    ranks: dict[socket.socket, int] = field(default_factory=dict)

    def wait(self) -> list[str]:
        num_processes = self.hello["num_processes"]
        self.arrived[0] = self.hello["host"]
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            while len(self.arrived) < num_processes:
                remaining = self.deadline - time.monotonic()
                if remaining <= 0:
                    self._refuse(self._missing())
                for key, _ in selector.select(remaining):
                    if key.fileobj is self.listener:
                        self._accept(selector)
                    else:
                        self._read(key.fileobj, selector)
        # Closed before anybody is answered: those who then look for jax's service must not find this socket.
        self.listener.close()
        hosts = [self.arrived[rank] for rank in range(num_processes)]
        self._answer({"hosts": hosts})
        return hosts

    def _accept(self, selector: selectors.BaseSelector) -> None:
        visitor, _ = self.listener.accept()
        visitor.setblocking(False)
        self.lines[visitor] = b""
        selector.register(visitor, selectors.EVENT_READ)

    def _read(self, visitor: Any, selector: selectors.BaseSelector) -> None:
        try:
            received = visitor.recv(_LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        line = self.lines[visitor] = self.lines[visitor] + received
        hello = _parse(line) if line.endswith(b"\n") else {}
        if not received or len(line) > _LINE_BYTES or hello is None:
            # It went away, and may come again; or it is no process of a run.
            selector.unregister(visitor)
            visitor.close()
            del self.lines[visitor]
            self.arrived.pop(self.ranks.pop(visitor, -1), None)
        elif hello:
            self._admit(visitor, hello)

    def _admit(self, visitor: socket.socket, hello: dict[str, Any]) -> None:
        rank, host, expected = hello["rank"], hello["host"], self.hello["num_processes"]
        if hello["num_processes"] != expected:
            self._refuse(
                f"process {rank} on {host} was started for a run of {hello['num_processes']} processes, and process 0 "
                f"on {self.arrived[0]} for one of {expected}: start all with the same number"
            )
        if rank in self.arrived:
            self._refuse(
                f"two processes have the id {rank}, on {self.arrived[rank]} and on {host}: give each its own "
                f"JAX_PROCESS_ID, from 0 to {expected - 1}"
            )
        self.arrived[rank], self.ranks[visitor] = host, rank
        self.deadline = min(self.deadline, time.monotonic() + hello["seconds"])

    def _missing(self) -> str:
        expected = self.hello["num_processes"]
        missing = [str(rank) for rank in range(expected) if rank not in self.arrived]
        hosts = ", ".join(f"{rank} on {host}" for rank, host in sorted(self.arrived.items())[:8])
        shown = ", ".join(missing[:16]) + (", …" if len(missing) > 16 else "")
        return (
            f"{len(self.arrived)} of {expected} processes arrived within {self.timeout_seconds:g} s; missing: {shown} "
            f"(here: {hosts}{', …' if len(self.arrived) > 8 else ''}). Look at what the missing ones said, and whether "
            "they can reach process 0"
        )

    def _refuse(self, message: str) -> None:
        self._answer({"error": message})
        raise UserError(message)

    def _answer(self, answer: dict[str, Any]) -> None:
        for visitor in self.lines:
            visitor.setblocking(True)
            visitor.settimeout(_GRACE_SECONDS)
            # It may go away in this moment; jax's connection has a time limit too.
            with contextlib.suppress(OSError):
                visitor.sendall(json.dumps(answer).encode() + b"\n")
            visitor.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """Read a process's line; None if it is not one."""
    try:
        hello = json.loads(line)
        kinds = {"rank": int, "num_processes": int, "host": str, "seconds": float}
        if {name: type(hello[name]) for name in kinds} != kinds or not 0 < hello["rank"] < hello["num_processes"]:
            return None
        return hello
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _visit(host: str, port: int, hello: dict[str, Any], deadline: float) -> list[str]:
    failure = "nothing answers"
    while (remaining := deadline - time.monotonic()) > 0:
        try:
            answer = _ask(host, port, hello | {"seconds": float(remaining)}, remaining)
        except OSError as error:
            failure = str(error)
            time.sleep(_RETRY_SECONDS)
            continue
        if "error" in answer:
            raise UserError(answer["error"])
        _wait_for_service(host, port, deadline)
        return answer["hosts"]
    raise UserError(
        f"process {hello['rank']} on {hello['host']} did not reach process 0 at {host}:{port} in time: {failure}. "
        "Check that process 0 runs on that host, and that the address and port are right and open"
    )


def _ask(host: str, port: int, hello: dict[str, Any], seconds: float) -> dict[str, Any]:
    with socket.create_connection((host, port), timeout=seconds) as connection:
        connection.settimeout(seconds + _GRACE_SECONDS)
        connection.sendall(json.dumps(hello).encode() + b"\n")
        line = b""
        while not line.endswith(b"\n"):
            received = connection.recv(_LINE_BYTES)
            if not received:
                raise OSError("process 0 closed the connection")
            line += received
    try:
        return dict(json.loads(line))
    except ValueError:
        raise OSError("another program answers there, or a run that has begun without this process") from None


def _wait_for_service(host: str, port: int, deadline: float) -> None:
    # jax's client waits a second after it was refused once, and process 0 opens the port in some milliseconds.
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            time.sleep(0.005)
        else:
            return
