"""Run a script as several processes on this machine, as a cluster runs it on several hosts: `accelnet launch`.

Each process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID and its own simulated CPU devices, and all
get one ACCELNET_TOKEN, a secret of this run by which they know each other. They listen on this machine alone. Their
lines come out with their rank in front. The exit code is that of the process that failed first, 0 if none did.
SIGINT and SIGTERM are passed on to all. No process outlives the launcher.
"""

import contextlib
import os
import queue
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

from accelnet.terminal import say

_KILL_SECONDS = 10.0  # between SIGTERM, at which a run may still save, and SIGKILL
_PROGRESS_SECONDS = 2.0  # a progress bar renews its line many times a second
# Asks the kernel for SIGKILL when the launcher dies, however it dies, and becomes the script. Done by the process
# itself, and not between fork and exec, where Python code can deadlock. Whoever starts the launcher in the background
# may have interrupts ignored, which processes inherit.
_BECOME = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
# Lines of all processes go to the same terminal, standard error too.
_print_lock = threading.Lock()
# An exit of a process, (rank, exit code), or a signal to the launcher, (None, signal number).
Event = tuple[int | None, int]


class Lines:
    r"""Cut what a process prints into lines; of a line that is renewed by carriage returns, keep one now and then.

    Example:
        >>> lines = Lines()
        >>> lines.feed(b"a\n\r10 %\r20 %\r30", now=9.0)
        [b'a', b'10 %']
        >>> lines.feed(b" %\r\nb", now=9.1), lines.rest()
        ([b'30 %'], [b'b'])
    """

    def __init__(self) -> None:
        self._pending = b""
        self._shown_at = -_PROGRESS_SECONDS

    def feed(self, data: bytes, now: float) -> list[bytes]:
        """Return the lines that are complete after `data` came at the time `now`, in seconds."""
        # A carriage return at the end may be half of a line's end: it waits for what follows.
        *pieces, self._pending = re.split(rb"(\r?\n|\r(?!\n|$))", self._pending + data)
        found = []
        for text, end in zip(pieces[::2], pieces[1::2], strict=True):
            if end == b"\r":
                if not text or now - self._shown_at < _PROGRESS_SECONDS:
                    continue
                self._shown_at = now
            found.append(text)
        return found

    def rest(self) -> list[bytes]:
        """Return the line without an end that is left."""
        return [text] if (text := self._pending.rstrip(b"\r")) else []


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank: int, num_processes: int, port: int, devices_per_process: int, token: str) -> dict[str, str]:
    """Return the environment variables of one process."""
    return {
        "JAX_PLATFORMS": "cpu",
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(num_processes),
        "JAX_PROCESS_ID": str(rank),
        "JAX_NUM_CPU_DEVICES": str(devices_per_process),
        "ACCELNET_TOKEN": token,
        "PYTHONUNBUFFERED": "1",
    }


def start(command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a script in a session of its own, so that an interrupt at the terminal reaches it once, through us."""
    return subprocess.Popen(  # noqa: S603, the user's own script
        [sys.executable, "-ISc", _BECOME, str(os.getpid()), *command],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def copy_lines(rank: int, source: IO[bytes], target: IO[bytes]) -> None:
    """Copy a process's output line by line, with its rank in front, until it ends."""
    lines, prefix = Lines(), b"[%d] " % rank
    while data := os.read(source.fileno(), 65536):
        _print(prefix, lines.feed(data, time.monotonic()), target)
    _print(prefix, lines.rest(), target)


def _print(prefix: bytes, found: list[bytes], target: IO[bytes]) -> None:
    if not found:
        return
    try:
        with _print_lock:
            target.write(b"".join(prefix + text + b"\n" for text in found))
            target.flush()
    except BrokenPipeError:
        pass  # nobody reads any more; the processes go on, and must not wait for room in their pipes


def wait_for(rank: int, process: subprocess.Popen[bytes], events: "queue.SimpleQueue[Event]") -> None:
    """Wait for a process's end, end what it started and left behind, and report its exit code."""
    # Not collected yet, the process keeps its group's number from being given to others.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    _signal_group(process, signal.SIGKILL)
    code = process.wait()
    events.put((rank, code if code >= 0 else 128 - code))


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses where only zombies are left
        os.killpg(process.pid, number)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    # Popen.send_signal would collect the process, which `wait_for` does.
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


def supervise(processes: list[subprocess.Popen[bytes]], events: "queue.SimpleQueue[Event]", grace: float) -> int:
    """Pass signals on until every process has ended.

    Args:
        processes: by rank.
        events: exits and signals, in the order in which they come.
        grace: seconds that the others have after one failed, before they get SIGTERM.

    Returns:
        The first exit code that is not 0, or 0.
    """
    running = dict(enumerate(processes))
    failure = 0
    # What processes get that have not ended by then: (time, signal).
    plan: list[tuple[float, int]] = []
    while running:
        try:
            rank, number = events.get(timeout=max(0.0, plan[0][0] - time.monotonic()) if plan else None)
        except queue.Empty:
            _, number = plan.pop(0)
            _say(f"{signal.Signals(number).name} to {_named(running)}, which did not end by itself")
            rank = None
        if rank is None:
            for process in running.values():
                _signal(process, number)
            continue
        del running[rank]
        if number and not failure:
            failure = number
            now = time.monotonic()
            plan = [(now + grace, signal.SIGTERM), (now + grace + _KILL_SECONDS, signal.SIGKILL)]
            if running:
                _say(f"process {rank} ended with exit code {number}; {_named(running)}: {grace:g} s to end as well")
    return failure


def _named(running: dict[int, Any]) -> str:
    return f"process{'es' if len(running) > 1 else ''} {', '.join(map(str, running))}"


def _say(message: str) -> None:
    with _print_lock:
        say(f"launch: {message}")


def launch(command: Sequence[str], num_processes: int, devices_per_process: int = 1, grace: float = 30.0) -> int:
    """Run a Python script as several processes, and wait for their end.

    Args:
        command: Script and its arguments.
        num_processes: Number of processes, at least 1.
        devices_per_process: Simulated CPU devices of each, at least 1.
        grace: Seconds that the others have after one failed.

    Returns:
        Exit code: that of the process that failed first, 128 + the signal's number if one killed it; or 0.

    Example:
        >>> launch(["-c", "raise SystemExit(3)"], num_processes=1)  # doctest: +SKIP
        3
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: events.put((None, number)))
    port, token = free_port(), secrets.token_hex(16)
    processes: list[subprocess.Popen[bytes]] = []
    threads: list[threading.Thread] = []
    try:
        for rank in range(num_processes):
            process = start(command, environment(rank, num_processes, port, devices_per_process, token))
            processes.append(process)
            for source, target in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer)):
                threads.append(threading.Thread(target=copy_lines, args=(rank, source, target), daemon=True))
            threading.Thread(target=wait_for, args=(rank, process, events), daemon=True).start()
        for thread in threads:
            thread.start()
        return supervise(processes, events, grace)
    finally:
        for process in processes:
            if process.returncode is None:
                _signal_group(process, signal.SIGKILL)
        for thread in threads:
            if thread.ident:
                thread.join(timeout=2.0)  # what went into a session of its own may hold a pipe open
