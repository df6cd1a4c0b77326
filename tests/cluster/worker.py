"""One process of a run, as the tests of the cluster start several: python worker.py MODE."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from accelnet.cluster import agreement, check_same, check_shared_directory, code_fingerprint, gather, initialize, store
from accelnet.cluster.exchange import leave
from accelnet.cluster.preemption import Preemption
from accelnet.cluster.watch import Watch
from accelnet.errors import DivergenceError, LostProcessError, PreemptedError, UserError

# Absent where the module is only looked through for doctests.
MODE = sys.argv[1] if len(sys.argv) > 1 else ""
RANK = int(os.environ.get("JAX_PROCESS_ID", "0"))
DIRECTORY = Path(os.environ.get("RUN_DIRECTORY", "."))
TIMEOUT = float(os.environ.get("TIMEOUT", "3"))
CULPRIT = int(os.environ.get("CULPRIT", "-1"))
STEPS = int(os.environ.get("STEPS", "10000"))


def say(text):
    print(text, flush=True)


def make_sum():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spec = PartitionSpec("data")
    ones = jax.make_array_from_process_local_data(NamedSharding(mesh, spec), np.ones((1, 4), np.float32))
    function = jax.jit(
        jax.shard_map(lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=spec, out_specs=PartitionSpec())
    )
    return lambda: jax.block_until_ready(function(ones))


def stand_still():
    threading.Event().wait()


def train():
    total = make_sum()  # opening devices may take longer than the timeout
    with Preemption() as preemption, Watch(TIMEOUT, DIRECTORY, preemption=preemption) as watch:
        watch.mark(0, "compile")
        total()
        for step in range(STEPS):
            watch.mark(step, "train")
            total()
            if step == 5:
                say("training")
                if RANK == CULPRIT and MODE == "deadlock":
                    stand_still()
                if RANK == CULPRIT and MODE == "mistake":
                    raise UserError("no such file\nand more")
                if RANK == CULPRIT and MODE == "failure":
                    raise RuntimeError("out of memory")
            if MODE == "collectives":
                continue
            time.sleep(0.02)
            if gather(np.array(preemption.requested)).any():
                raise PreemptedError(f"saved at step {step}")
    names = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("accelnet"))
    gather(np.zeros(1))  # all have deleted what they had written
    keys = [key for folder in ("beat/", "end/") for key in store.connected().entries(folder)]
    gather(np.zeros(1))
    say(f"left behind: {names} {keys}")


def compile_long():
    def finish():
        (DIRECTORY / f"finished-{RANK}").touch()

    total = make_sum()
    with Preemption() as preemption, Watch(TIMEOUT, DIRECTORY, preemption=preemption, finish=finish) as watch:
        preemption.defers_interrupts = True  # as from the first step on
        watch.mark(0, "compile" if RANK == CULPRIT else "train")
        say("compiling")
        if RANK == CULPRIT:
            time.sleep(float(os.environ["SECONDS"]))
        total()
        say("compiled")


def agree():
    same = code_fingerprint()
    check_same(same | {"seed": "3"})
    check_shared_directory(DIRECTORY / "shared")
    values = gather(np.array([RANK, 10 * RANK], np.int16))
    left = [path.name for path in (DIRECTORY / "shared").iterdir()]
    say(f"gathered {values.dtype} {values.tolist()}, left in the directory: {left}")
    agreement._SHARED_SECONDS = 1.0
    checks = {
        "same": lambda: check_same(same | {"jax": "0.0.1" if RANK == 2 else "0.10.2", "extra": "yes"}),
        "shared": lambda: check_shared_directory(DIRECTORY / ("elsewhere" if RANK == 1 else "shared")),
        "unwritable": lambda: check_shared_directory("/proc/no"),
        "gather": lambda: gather(np.zeros(1 + (RANK == 2))),
    }
    for name, check in checks.items():
        try:
            check()
        except ValueError as error:
            say(f"{name}: {type(error).__name__}: {error}")
    start = time.perf_counter()
    for _ in range(100):
        gather(np.zeros(3))
    say(f"{10 * (time.perf_counter() - start):.2f} ms each")


def leave_early():
    gather(np.zeros(1))
    if RANK == CULPRIT:
        raise UserError("no such file")
    gather(np.zeros(1))


def stand_still_at_the_end():
    """The culprit comes last, so that the others leave at once; or is killed before it comes."""
    handed_in, waited, deleted = store.Store.set, store.Store.wait, store.Store.delete
    how, _, when = os.environ["HOW"].partition(" ")
    end = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[how]
    with Watch(TIMEOUT, DIRECTORY) as watch:
        watch.mark(0, "train")
        gather(np.zeros(1))

        def hand_in(self, key, value):
            handed_in(self, key, value)
            if RANK == CULPRIT and key.startswith("exchange/"):
                while when == "when read" and len(list(DIRECTORY.glob("read-*"))) < 2:
                    time.sleep(0.01)
                os.kill(os.getpid(), end)

        def wait_and_rest(self, key, seconds):
            came = waited(self, key, seconds)
            if when == "unread" and came:
                time.sleep(1.0)  # the culprit stands still by now
            return came

        def rest_and_delete(self, key):
            if when == "when read" and RANK != CULPRIT and key.startswith("beat/"):
                (DIRECTORY / f"read-{RANK}").touch()
                time.sleep(1.0)
            deleted(self, key)

        store.Store.set, store.Store.wait, store.Store.delete = hand_in, wait_and_rest, rest_and_delete
        say("at the end")
        time.sleep(1.0 if RANK == CULPRIT else 0.0)
        if RANK == CULPRIT and when == "before":
            os.kill(os.getpid(), end)


def read_late():
    gather(np.zeros(1))
    if RANK == CULPRIT:
        time.sleep(2)
        say(f"still read: {sorted(store.connected().entries('exchange/'))}")


def main():
    initialize(timeout_seconds=float(os.environ.get("JOIN_SECONDS", "30")))
    assert initialize() == (int(os.environ["JAX_NUM_PROCESSES"]) > 1), "joining again changes nothing"
    modes = {"join": lambda: None, "agree": agree, "leave": leave_early, "compile": compile_long, "late": read_late}
    modes |= {"end": stand_still_at_the_end}
    modes.get(MODE, train)()


if __name__ == "__main__":
    try:
        main()
    except (UserError, DivergenceError, LostProcessError, PreemptedError) as error:
        say(f"error: {error}")
        leave(error)
        sys.exit(error.exit_code)
