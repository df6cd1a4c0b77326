"""One process that has imported what a run needs, and forks a run for each line of JSON that it reads.

It is started with the shim, LD_PRELOAD=shim.so, so that every fork has it. It has opened no device and has no threads,
so that a fork is like a process that has just imported the same.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax

from scripts.faultstorm import kinds

# What a training imports on its way to the first step, and for the picture at its end.
_MODULES = (
    "accelnet.cli.entry", "accelnet.cli.verbs", "accelnet.cluster.agreement", "accelnet.cluster.join",
    "accelnet.planning.utilization",
    "accelnet.training.fit", "orbax.checkpoint", "tensorboardX.event_file_writer", "tyro.extras",
)  # fmt: skip
_LATER = ("matplotlib.backends.backend_agg", "matplotlib.figure")


def become(request: dict[str, Any]) -> None:
    """Be the process of a request: its environment, streams, faults and arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ctrl-C at the harness is none at the run
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in ((1, os.devnull), (2, request["said"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    if request["umask"] is not None:
        os.umask(request["umask"])
    library = ctypes.CDLL(None)
    if request["user"] is not None:
        _set_user(library, request["user"])
    # jax has read its own variables when it was imported.
    jax.config.update("jax_compilation_cache_dir", request["env"].get("JAX_COMPILATION_CACHE_DIR"))
    arm(library, **request["plan"])
    kinds.run(request["args"])


def _set_user(library: Any, user: int) -> None:
    """Be another user, who may read everything: Python itself may lie in a home directory that is closed to others."""
    keep_capabilities, read_and_search, version = 8, 1 << 2, 0x20080522
    library.prctl(keep_capabilities, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    library.capset((ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)(read_and_search, read_and_search))


def arm(library: Any, *, directory: str, pattern: str, operations: str, action: int, number: int, nth: int,
        seconds: float, amount: float, log: str, log_all: bool) -> None:  # fmt: skip
    """Tell the shim what is to happen in this process."""
    texts = [text.encode() for text in (directory, pattern, operations)]
    library.faultstorm_arm(
        *texts, action, number, ctypes.c_long(nth), ctypes.c_double(seconds), ctypes.c_double(amount), log.encode(),
        int(log_all),
    )  # fmt: skip


def _serve(folder: Path) -> None:
    def note_endings(*_: Any) -> None:
        """Write the exit code of each process that has ended into a file of its number."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                draft = folder / f"{ended[0]}.part"
                draft.write_text(str(os.waitstatus_to_exitcode(ended[1])))
                draft.rename(folder / str(ended[0]))

    for name in _MODULES:
        importlib.import_module(name)
    print("imported", flush=True)
    for name in _LATER:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a run's collector leaves alone what it shares with this process
    signal.signal(signal.SIGCHLD, note_endings)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise RuntimeError(f"the server has {threads} threads, and a fork would have one: import less in it")
    print("ready", flush=True)
    for line in sys.stdin:
        # An ending waits until its number was told.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        process = os.fork()
        if process == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            become(json.loads(line))
            return
        print(process, flush=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
