"""Writing checkpoints beside the training, each whole or not at all.

A checkpoint is written under another name, which is given up when all of it is on the disk and was looked at once more.
"""

import contextlib
import functools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from accelnet.disk import sync
from accelnet.errors import UserError
from accelnet.parallel.memory import is_exhaustion
from accelnet.parallel.rules import path_names
from accelnet.training.checkpoint import RECORD, Checkpoints, Record, first_line, on_first, orbax
from accelnet.training.manifest import DamagedError, check_seal, seal
from accelnet.training.snapshot import is_on_cpu, snapshot

Tree = Any

_SAVING, _DELETING = ".saving-", ".deleting-"
# Orbax measures the time of a save by the wall clock. One that jumps forward must not end it, so the limit is 50 years.
# The watch ends processes that make no progress.
_SAVE_SECONDS = 50 * 365 * 24 * 3600


@dataclass(eq=False)
class Saver:
    """Write checkpoints, and delete those that are not kept.

    Args:
        checkpoints: Those that there are. Their work directory is there; "checkpoints" in it is made for the first.
        keep_last: Number of newest checkpoints kept, at least 1.
        keep_best: Number of checkpoints kept that are the best, at least 0.
    """

    checkpoints: Checkpoints
    keep_last: int = 2
    keep_best: int = 1

    def __post_init__(self) -> None:
        self.directory, self.hosts = self.checkpoints.directory, self.checkpoints.hosts
        self._thread = ThreadPoolExecutor(1, "accelnet-checkpoint")
        self._writing: Future[None] | None = None

    @functools.cached_property
    def _writer(self) -> Any:
        # Directories that are made in the background have threads wait for them, ten minutes where the disk is full.
        options = orbax().options.AsyncOptions(create_directories_asynchronously=False, timeout_secs=_SAVE_SECONDS)
        return orbax().AsyncCheckpointer(orbax().StandardCheckpointHandler(), async_options=options)

    def begin(self, step: int) -> None:
        """Remove what a process that was killed left half-written, and set aside the checkpoints after a step.

        Those are damaged, since the run goes on from an earlier one. They are renamed, so that nothing is lost.

        Raises:
            UserError: if that cannot be done.
        """

        def tidy() -> None:
            for prefix in (_SAVING, _DELETING):
                for path in self.directory.glob(f"{prefix}*"):
                    shutil.rmtree(path)
            for damaged in [self.checkpoints.path(later) for later in self.checkpoints.steps() if later > step]:
                damaged.rename(damaged.with_name(f"damaged-{damaged.name}-{time.time_ns()}"))

        with self._reporting():
            on_first(self.hosts, tidy)

    def save(
        self,
        state: Tree,
        record: Record,
        ranks: Mapping[int, float] | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to write a checkpoint of the state as it is now.

        Args:
            state: Pytree of arrays with a scalar `step`.
            record: JSON values that belong to it.
            ranks: By step what is the smaller the better, for the steps that may be kept as the best.
            before: Function that is called before the checkpoint gets its name, beside the training: what it refers to
                has to be on the disk.

        Raises:
            UserError: if it or the one before it cannot be written. All complete checkpoints stay.
        """
        self.wait()
        arrays, checksums = snapshot(dict(path_names(state)))
        step, ranks = int(state.step), dict(ranks or {})
        saving = self.directory / f"{_SAVING}{step}"

        def make_room() -> None:
            if saving.exists():
                shutil.rmtree(saving)
            self.directory.mkdir(exist_ok=True)  # not its parents: the work directory may be gone
            saving.mkdir()

        def begin() -> None:
            # To convert an array that is not ready would hold Python's lock, and with it the training.
            jax.block_until_ready((arrays, checksums))
            self._writer.save(saving / "state", args=orbax().args.StandardSave(arrays))

        def end() -> None:
            self._writer.wait_until_finished()  # for all processes
            if jax.process_index() == 0:
                before()
                described = {
                    name: {"shape": list(array.shape), "dtype": array.dtype.name, "checksum": int(checksums[name])}
                    for name, array in arrays.items()
                }
                (saving / RECORD).write_text(json.dumps(record | {"arrays": described}, allow_nan=False) + "\n")
                self._commit(saving, step, ranks)

        def write() -> None:
            make_room()
            begin()
            end()

        if jax.process_count() == 1 and is_on_cpu(arrays):
            # Orbax prepares a save for longer than it takes to copy a state of a few MB.
            self._writing = self._thread.submit(write)
        else:
            # With several processes Orbax synchronizes the devices, in an order that must be the same on all. And on
            # an accelerator it has to fetch the arrays before the next chunk of steps writes into them.
            with self._reporting():
                on_first(self.hosts, make_room)
                begin()
            self._writing = self._thread.submit(end)

    def wait(self) -> None:
        """Wait until what was saved is on the disk, for all processes; all call this in the same order.

        Raises:
            UserError: if it cannot be written.
        """
        failures: list[Exception] = []
        try:
            self.finish()
        except Exception as error:  # noqa: BLE001, it is raised below
            failures.append(error)

        def tell() -> None:
            if failures:
                raise failures[0]

        if jax.process_index() != 0:
            tell()
        on_first(self.hosts, tell)

    def finish(self) -> None:
        """Wait until what this process writes is on the disk.

        Raises:
            UserError: if it cannot be written.
        """
        if self._writing is not None:
            with self._reporting():
                writing, self._writing = self._writing, None
                writing.result()

    def close(self) -> None:
        """Finish, and stop the threads. What could not be written is a note, unless another error ends the run."""
        ending = sys.exc_info()[1]
        try:
            self.finish()
        except Exception as error:  # noqa: BLE001, it is said
            if not isinstance(ending, Exception):
                self.checkpoints.note(str(error))
        if "_writer" in vars(self):
            with contextlib.suppress(Exception):  # said when it was met
                self._writer.close()
            del self._writer
        self._thread.shutdown()

    def _commit(self, saving: Path, step: int, ranks: Mapping[int, float]) -> None:
        """Give a checkpoint its name when it is whole, and delete those that are not kept any more."""
        seal(saving)
        final = self.checkpoints.path(step)
        if final.exists():
            self._delete(step)
        saving.rename(final)
        sync(self.directory)
        _look_at(final, step)
        steps = self.checkpoints.steps()
        best = sorted((ranks[step], step) for step in steps if step in ranks)[: self.keep_best]
        for one in sorted(set(steps) - set(steps[-self.keep_last :]) - {step for _, step in best}):
            self._delete(one)

    def _delete(self, step: int) -> None:
        # Renamed first, so that no half of it is ever taken for a checkpoint.
        deleting = self.directory / f"{_DELETING}{step}-{time.time_ns()}"
        self.checkpoints.path(step).rename(deleting)
        shutil.rmtree(deleting)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn a failed write into one sentence, unless it failed because another process is lost."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore each have their own
            if isinstance(error, UserError) or is_exhaustion(error):
                raise
            if self.hosts is not None and jax.process_count() > 1:
                self.hosts.watch.explain(error)
            raise UserError(
                f"a checkpoint could not be written to {self.directory}: {first_line(error)}. The checkpoints "
                "that were complete are unharmed; make room or give another --workdir, and go on with --resume"
            ) from error


def _look_at(checkpoint: Path, step: int) -> None:
    """Read the outline of a checkpoint, and one array, back from where it is now."""
    import tensorstore

    check_seal(checkpoint)
    place = {"driver": "ocdbt", "base": f"file://{checkpoint}/state/", "path": "step/"}
    found = tensorstore.open({"driver": "zarr", "kvstore": place}, open=True).result().read().result()
    if int(found) != step:
        raise DamagedError(f"what was written as step {step} is read back as {found}")
