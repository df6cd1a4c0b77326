"""The rendezvous: the processes of a run find each other before jax connects them.

jax's client ends a process with a page of C++ if another one does not come, and does not say which. Here process 0
listens at the coordinator's address for one line from each, answers all of them, and leaves the port to jax.

Whoever can reach the port may connect: lines are sealed with the run's secret (`sealed`), and who has it not, says what
no process says, or says it slowly, is turned away. Nothing that a stranger sends ends the start or takes of its time.
"""

import errno
import ipaddress
import json
import os
import socket
import time
from typing import Any

from accelnet.cluster import sealed
from accelnet.cluster.meeting import Meeting
from accelnet.errors import LostProcessError, UserError

_RETRY_SECONDS = 0.1
# A process that waits for an answer gives process 0 this much longer than itself to notice that time is up.
_GRACE_SECONDS = 5.0
_GREETING_SECONDS = 5.0
_GREETING_BYTES = 256
_HOST_BYTES = 300  # of one host's name in an answer
_ANOTHER = "another program answers there, or a run that has begun without this process"


def meet(address: str, num_processes: int, rank: int, *, timeout_seconds: float) -> list[str]:
    """Wait until every process of the run is there.

    With the same ACCELNET_TOKEN in each, they prove to each other that they are of this run. Without one, whoever
    reaches the port can take a process's place while the run starts: then the interface that process 0 listens at
    (`bind_address`) and the network's firewall are what protects the run.

    Args:
        address: "host:port" of process 0.
        num_processes: number of processes of the run.
        rank: number of this process, from 0 to `num_processes` - 1.
        timeout_seconds: time to wait for the others.

    Returns:
        The host name of each process.

    Raises:
        LostProcessError: on every process that came, if one did not; if nothing of this run answers at the address.
        UserError: if two have the same rank or they disagree on how many they are, on every process that came; without
            a secret, on the one that came too much. If the port is in use.
    """
    host, port = split_address(address)
    deadline = time.monotonic() + timeout_seconds
    hello = {"rank": rank, "num_processes": num_processes, "host": socket.gethostname()}
    if rank:
        return _visit(host, port, hello, deadline)
    with _listen(port, bind_address(address)) as listener:
        return Meeting(listener, hello, deadline, timeout_seconds).wait()


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


def bind_address(address: str) -> str | None:
    """Return where process 0 listens: where JAX_COORDINATOR_BIND_ADDRESS says, on this machine alone, or everywhere.

    Args:
        address: "host:port" of process 0. One of the loopback interface is reached from this machine alone.

    Returns:
        "host:port", None for every interface.

    Example:
        >>> bind_address("localhost:8476"), bind_address("10.0.0.1:8476")
        ('127.0.0.1:8476', None)
    """
    if given := os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
        return given
    host, port = split_address(address)
    host = "127.0.0.1" if host == "localhost" else host
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may be another address for other hosts
        return None
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}") if is_loopback else None


def _listen(port: int, bind: str | None) -> socket.socket:
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


def _visit(host: str, port: int, hello: dict[str, Any], deadline: float) -> list[str]:
    failure = "nothing answers"
    while (remaining := deadline - time.monotonic()) > 0:
        try:
            answer = _ask(host, port, hello | {"seconds": float(remaining)}, deadline)
        except OSError as error:
            failure = str(error)
            time.sleep(_RETRY_SECONDS)
            continue
        if "error" in answer:
            raise (LostProcessError if answer.get("lost") else UserError)(answer["error"])
        _wait_for_service(host, port, deadline)
        return answer["hosts"]
    raise LostProcessError(
        f"process {hello['rank']} on {hello['host']} did not reach process 0 at {host}:{port} in time: {failure}. "
        "Check that process 0 runs on that host, and that the address and port are right and open"
    )


def _ask(host: str, port: int, hello: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Say hello to process 0 and return its answer.

    Raises:
        OSError: if there is none, or not from a process 0 of this run.
    """
    nonce = sealed.make_nonce()
    with socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())) as connection:
        until = min(deadline, time.monotonic() + _GREETING_SECONDS)
        theirs, has_secret = _read_greeting(_receive(connection, _GREETING_BYTES, until, _ANOTHER))
        connection.sendall(sealed.seal(hello | {"nonce": nonce}, "hello", theirs))
        most = _GREETING_BYTES + _HOST_BYTES * hello["num_processes"] + 65536
        waiting = "it is there, and still waits for other processes"
        try:
            line = _receive(connection, most, deadline + _GRACE_SECONDS, waiting)
        except ConnectionError:
            raise OSError(_turned_away(has_secret)) from None
    answer = sealed.unseal(line, "answer", nonce)
    if answer is None or not _is_answer(answer, hello["num_processes"]):
        raise OSError(f"what answers there is no process 0 of this run, or has another {sealed.VARIABLE}")
    return answer


def _turned_away(process_0_has_secret: bool) -> str:
    if process_0_has_secret == sealed.has_secret():
        same = f"; {sealed.VARIABLE} must be the same in all processes" if process_0_has_secret else ""
        return f"process 0 closed the connection{same}"
    without = "this process" if process_0_has_secret else "process 0"
    return f"{without} has no {sealed.VARIABLE} and the other has one: give all processes the same"


def _receive(connection: socket.socket, most_bytes: int, deadline: float, silence: str) -> bytes:
    """Receive a line, which ends by the deadline however slowly it comes."""
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(silence)
        connection.settimeout(left)
        try:
            received = connection.recv(65536)
        except TimeoutError:
            raise TimeoutError(silence) from None
        if not received:
            raise ConnectionAbortedError("process 0 closed the connection")
        line += received
        if len(line) > most_bytes:
            raise OSError(_ANOTHER)
    return line


def _read_greeting(line: bytes) -> tuple[str, bool]:
    try:
        greeting = json.loads(line)
        nonce, has_secret = greeting["nonce"], greeting["secret"]
        if isinstance(nonce, str) and len(nonce) == 32 and isinstance(has_secret, bool):
            return nonce, has_secret
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise OSError(_ANOTHER)


def _is_answer(answer: dict[str, Any], num_processes: int) -> bool:
    hosts = answer.get("hosts")
    are_hosts = isinstance(hosts, list) and len(hosts) == num_processes and all(isinstance(host, str) for host in hosts)
    return isinstance(answer.get("error"), str) or are_hosts


def _wait_for_service(host: str, port: int, deadline: float) -> None:
    # jax's client waits a second after it was refused once, and process 0 opens the port in some milliseconds.
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            time.sleep(0.005)
        else:
            return
