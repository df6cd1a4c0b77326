"""The processes of a run, as the loop sees them: what they decide together, and what the first one does alone."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from accelnet import cluster
from accelnet.cluster.exchange import exchange
from accelnet.cluster.preemption import Preemption, raise_dropped
from accelnet.cluster.watch import Watch
from accelnet.errors import UserError

# Between two signs of life of a process there are a chunk of steps, some batches of evaluation, a save.
HANG_SECONDS = 300.0


class Hosts:
    """Decide things together with the other processes of the run; trivial for one.

    All processes call these methods in the same order.

    Args:
        watch: Watch over the processes.
        preemption: Record of whether this process was told to end.
        finishes: Functions that complete what is being written; called before this process is ended from outside.
    """

    def __init__(self, watch: Watch, preemption: Preemption, finishes: list[Callable[[], None]]) -> None:
        self.watch = watch
        self.preemption = preemption
        self.finishes = finishes

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs and results."""
        return jax.process_index() == 0

    def mark(self, step: int, phase: str) -> None:
        """Say that this process makes progress: what it begins now, at which step."""
        raise_dropped()
        self.watch.mark(step, phase)

    def agree(self, *numbers: float) -> tuple[list[float], bool]:
        """Take the first process's numbers, such as times, and learn whether any process was told to end."""
        answers = cluster.gather(np.array([*numbers, self.preemption.requested], np.float64))
        return answers[0, :-1].tolist(), bool(answers[:, -1].any())

    def any(self, flag: bool) -> bool:
        """Learn whether any process says so."""
        return bool(cluster.gather(np.array(flag)).any())

    def on_first(self, function: Callable[[], Any]) -> Any:
        """Call a function on the first process, and return its result, JSON values, or raise its UserError, on all."""
        answer = b""
        if self.is_first:
            try:
                answer = json.dumps({"result": function()}).encode()
            except UserError as error:
                answer = json.dumps({"error": str(error)}).encode()
        content = json.loads(exchange(answer)[0])
        if "error" in content:
            raise UserError(content["error"])
        return content["result"]

    def check(self, description: Mapping[str, Any], workdir: str | Path | None) -> None:
        """Compare code and configuration of all processes, and see that the work directory is one and the same.

        Raises:
            UserError: on all processes, saying what differs and where.
        """
        if jax.process_count() == 1:
            return
        cluster.check_same(cluster.code_fingerprint() | {name: str(value) for name, value in description.items()})
        if workdir is not None:
            cluster.check_shared_directory(workdir)


@contextlib.contextmanager
def supervised(workdir: str | Path | None, hang_timeout: float) -> Iterator[Hosts]:
    """Run a block on all processes: if one of them is lost or ends, so do the others, saying why.

    Args:
        workdir: Directory of Python stacks. None: standard error.
        hang_timeout: Seconds without progress after which a process counts as lost.
    """
    finishes: list[Callable[[], None]] = []

    def finish() -> None:
        for complete in finishes:
            complete()

    with Preemption() as preemption, Watch(hang_timeout, workdir, preemption=preemption, finish=finish) as watch:
        yield Hosts(watch, preemption, finishes)
