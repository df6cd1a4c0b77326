"""One process that has imported what a worker needs, and forks a worker for each line of JSON that it reads.

Importing takes three seconds of a core, and the tests start some forty workers. Nothing here has touched a device or
started a thread, so that a fork is like a process that has just imported the same.
"""

import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path

import accelnet  # noqa: F401

# Absent where the module is only looked through for doctests.
FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


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


def become(worker, mode, output, env):
    """Run a script in this process, as `python worker mode >output 2>&1` would."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [worker, mode]
    runpy.run_path(worker, run_name="__main__")


def serve():
    gc.freeze()  # the workers' collector leaves alone what they share with this process
    signal.signal(signal.SIGCHLD, note_endings)
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
