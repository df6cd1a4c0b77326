"""One process that has imported what a run needs, and forks a process for each line of JSON that it reads.

Importing takes three seconds of a core, and the tests start some eighty processes. Nothing here has touched a device or
started a thread, so that a fork is like a process that has just imported the same.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path

import jax

# Absent where the module is only looked through for doctests.
FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
# What a training imports on its way.
MODULES = (
    "accelnet.cli.entry", "accelnet.cli.verbs", "accelnet.cluster.agreement", "accelnet.cluster.join",
    "accelnet.planning.utilization",
    "accelnet.training.fit", "matplotlib.backends.backend_agg", "matplotlib.figure", "orbax.checkpoint",
    "tensorboardX.event_file_writer", "tests.training.conftest", "tyro.extras",
)  # fmt: skip


def note_endings(*_):
    """Write the exit code of each process that has ended into a file of its number."""
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not process:
            return
        draft = FOLDER / f"{process}.part"
        draft.write_text(str(os.waitstatus_to_exitcode(status)))
        draft.rename(FOLDER / str(process))


def become(script, args, output, env):
    """Run a script in this process, as `python script args >output 2>&1` would."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Whoever runs the tests in the background has interrupts ignored, which processes inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.environ.clear()
    os.environ.update(env)
    # jax read this one when it was imported.
    jax.config.update("jax_num_cpu_devices", int(env["JAX_NUM_CPU_DEVICES"]))
    sys.argv = [script, *args]
    runpy.run_path(script, run_name="__main__")


def serve():
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # the forks' collector leaves alone what they share with this process
    signal.signal(signal.SIGCHLD, note_endings)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise RuntimeError(f"the server has {threads} threads, and a fork would have one: import less in it")
    for line in sys.stdin:
        # An ending waits until its number was told.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        process = os.fork()
        if process == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            return become(**json.loads(line))
        print(process, flush=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    return None


if __name__ == "__main__":
    serve()
