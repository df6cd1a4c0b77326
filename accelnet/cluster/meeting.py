"""The meeting: what process 0 does at the rendezvous. It collects one line from each of the others, and answers all.

Strangers get as far as a connection: a few at a time, a few seconds and a few bytes each.
"""

import contextlib
import json
import math
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from accelnet.cluster import sealed
from accelnet.errors import LostProcessError, UserError

_HELLO_BYTES = 4096
_HELLO_SECONDS = 10.0
_MOST_WAITING = 128  # connections that have not said hello
_MOST_PROCESSES = 10**6
_MOST_SECONDS = 10**9
_ANSWER_SECONDS = 5.0


@dataclass(eq=False)
class _Visitor:
    """A connection.

    Attributes:
        place: Address that it comes from.
        nonce: Number with which its hello is sealed.
        line: What it has said so far.
        rank: Rank of the process, None before its hello.
        answer_nonce: Number with which the answer is sealed.
    """

    connection: socket.socket
    place: str
    nonce: str = field(default_factory=sealed.make_nonce)
    since: float = field(default_factory=time.monotonic)
    line: bytes = b""
    rank: int | None = None
    answer_nonce: str = ""

    def fileno(self) -> int:
        return self.connection.fileno()


@dataclass
class Meeting:
    """Wait for the other processes.

    Attributes:
        listener: Socket at the coordinator's address.
        hello: Dict with "num_processes" and "host" of process 0.
        deadline: Time at which the meeting is over, `time.monotonic()`; a process that knows the secret and has less
            time brings it forward.
        timeout_seconds: Time that there was, for the message.
        arrived: Host of each process that is here, by rank.
        visitors: Connections.
        turned_away: Last connections that were dropped, in words.
    """

    listener: socket.socket
    hello: dict[str, Any]
    deadline: float
    timeout_seconds: float
    arrived: dict[int, str] = field(default_factory=dict)
    visitors: list[_Visitor] = field(default_factory=list)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    turned_away: list[str] = field(default_factory=list)

    def wait(self) -> list[str]:
        """Return the host of each process once all are here.

        Raises:
            LostProcessError: if one did not come.
            UserError: if two that know the secret have the same rank, or expect other numbers of processes.

        Example:
            >>> with socket.create_server(("127.0.0.1", 0)) as listener:
            ...     Meeting(listener, {"num_processes": 1, "host": "a"}, time.monotonic() + 1, 1.0).wait()
            ['a']
        """
        num_processes = self.hello["num_processes"]
        self.arrived[0] = self.hello["host"]
        self.listener.setblocking(False)
        try:
            self.selector.register(self.listener, selectors.EVENT_READ)
            while len(self.arrived) < num_processes:
                self._look()
        finally:
            self.selector.close()
        # Closed before anybody is answered: those who then look for jax's service must not find this socket.
        self.listener.close()
        self._close_strangers()
        hosts = [self.arrived[rank] for rank in range(num_processes)]
        self._answer({"hosts": hosts})
        return hosts

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self.deadline:
            self._refuse(self._missing(), LostProcessError)
        waiting = [visitor for visitor in self.visitors if visitor.rank is None]
        for visitor in waiting:
            if now - visitor.since > _HELLO_SECONDS:
                self._turn_away(visitor, "said nothing in time")
        until = min([self.deadline, *(visitor.since + _HELLO_SECONDS for visitor in waiting)])
        for key, _ in self.selector.select(max(0.0, until - now)):
            if key.fileobj is self.listener:
                self._accept()
            elif key.fileobj in self.visitors:  # not turned away in this round
                self._read(key.fileobj)  # pyright: ignore[reportArgumentType]

    def _accept(self) -> None:
        waiting = [visitor for visitor in self.visitors if visitor.rank is None]
        if len(waiting) >= _MOST_WAITING:
            self._turn_away(waiting[0], "said nothing while many came")
        try:
            connection, address = self.listener.accept()
        except OSError:  # gone again, or this process has no room for more
            if waiting:
                self._turn_away(waiting[0], "said nothing while many came")
            time.sleep(0.01)
            return
        connection.setblocking(False)
        visitor = _Visitor(connection, str(address[0]))
        greeting = json.dumps({"nonce": visitor.nonce, "secret": sealed.has_secret()}).encode() + b"\n"
        with contextlib.suppress(OSError):  # gone: reading it will tell
            connection.send(greeting)
        self.visitors.append(visitor)
        self.selector.register(visitor, selectors.EVENT_READ)

    def _read(self, visitor: _Visitor) -> None:
        try:
            received = visitor.connection.recv(_HELLO_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        visitor.line += received
        if not received and not visitor.line:
            self._drop(visitor)  # looked whether somebody is here
        elif not received or visitor.rank is not None:
            # It went away, and may come again; nobody says more than hello.
            self._turn_away(visitor, "went away")
        elif len(visitor.line) > _HELLO_BYTES:
            self._turn_away(visitor, "is no process of a run")
        elif visitor.line.endswith(b"\n"):
            hello = sealed.unseal(visitor.line, "hello", visitor.nonce)
            if hello is None or not _is_hello(hello):
                self._turn_away(visitor, "is no process of this run")
            else:
                self._admit(visitor, hello)

    def _admit(self, visitor: _Visitor, hello: dict[str, Any]) -> None:
        rank, host, expected = hello["rank"], hello["host"], self.hello["num_processes"]
        visitor.answer_nonce = hello["nonce"]
        if hello["num_processes"] != expected:
            problem = (
                f"process {rank} on {host} was started for a run of {hello['num_processes']} processes, and process 0 "
                f"on {self.arrived[0]} for one of {expected}: start all with the same number"
            )
        elif rank in self.arrived:
            problem = (
                f"two processes have the id {rank}, on {self.arrived[rank]} and on {host}: give each its own "
                f"JAX_PROCESS_ID, from 0 to {expected - 1}"
            )
        else:
            self.arrived[rank], visitor.rank = host, rank
            if sealed.has_secret():
                self.deadline = min(self.deadline, time.monotonic() + hello["seconds"])
            return
        if sealed.has_secret():
            visitor.rank = rank
            self._refuse(problem, UserError)
        # It may be a stranger, for whom no run ends.
        _send(visitor, {"error": problem})
        self._turn_away(visitor, problem)

    def _missing(self) -> str:
        expected = self.hello["num_processes"]
        missing = [str(rank) for rank in range(expected) if rank not in self.arrived]
        hosts = ", ".join(f"{rank} on {host}" for rank, host in sorted(self.arrived.items())[:8])
        shown = ", ".join(missing[:16]) + (", …" if len(missing) > 16 else "")
        others = f". Turned away: {'; '.join(self.turned_away)}" if self.turned_away else ""
        return (
            f"{len(self.arrived)} of {expected} processes arrived within {self.timeout_seconds:g} s; missing: {shown} "
            f"(here: {hosts}{', …' if len(self.arrived) > 8 else ''}){others}. Look at what the missing ones said, "
            "and whether they can reach process 0"
        )

    def _refuse(self, message: str, kind: type[UserError] | type[LostProcessError]) -> NoReturn:
        self._close_strangers()
        self._answer({"error": message, "lost": kind is LostProcessError})
        raise kind(message)

    def _answer(self, answer: dict[str, Any]) -> None:
        for visitor in self.visitors:
            _send(visitor, answer)
            visitor.connection.close()

    def _turn_away(self, visitor: _Visitor, why: str) -> None:
        """Drop a connection; the last few are kept for the message."""
        self.turned_away = [*self.turned_away, f"{visitor.place} ({why})"][-3:]
        self._drop(visitor)

    def _drop(self, visitor: _Visitor) -> None:
        self.selector.unregister(visitor)
        self.visitors.remove(visitor)
        visitor.connection.close()
        if visitor.rank is not None:
            self.arrived.pop(visitor.rank, None)

    def _close_strangers(self) -> None:
        for visitor in self.visitors:
            if visitor.rank is None:
                visitor.connection.close()
        self.visitors = [visitor for visitor in self.visitors if visitor.rank is not None]


def _send(visitor: _Visitor, answer: dict[str, Any]) -> None:
    # It may go away in this moment; jax's connection has a time limit too.
    with contextlib.suppress(OSError):
        visitor.connection.settimeout(_ANSWER_SECONDS)
        visitor.connection.sendall(sealed.seal(answer, "answer", visitor.answer_nonce))


def _is_hello(hello: dict[str, Any]) -> bool:
    kinds = {"rank": int, "num_processes": int, "host": str, "seconds": float, "nonce": str}
    if {name: type(hello.get(name)) for name in kinds} != kinds:
        return False
    return (
        0 < hello["rank"] < hello["num_processes"] <= _MOST_PROCESSES
        and 0 < len(hello["host"]) <= 255
        and len(hello["nonce"]) == 32
        and math.isfinite(hello["seconds"])
        and 0 < hello["seconds"] <= _MOST_SECONDS
    )
