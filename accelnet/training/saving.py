"""Writing checkpoints beside the training, each whole or not at all.

A checkpoint is written under another name, which is given up when all of it is on the disk and was looked at once more.
"""

import contextlib
import functools
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
# Small networks may be the best so far several times a second, and to write one takes a core from their training for as
# long as tens of steps. So small states wait in memory until so long after the last was written.
_APART_SECONDS = 1.0
_SMALL_BYTES = 16 * 2**20


@dataclass(frozen=True)
class _Copy:
    """A state to write, as it was when it was to be saved."""

    arrays: Mapping[str, jax.Array]
    checksums: Mapping[str, jax.Array]
    record: Record
    before: Callable[[], None]


@dataclass(eq=False)
class Saver:
    """Write checkpoints, and delete those that are not kept.

    What may wait is on the disk about a second after it was saved, or when `finish` returns. Where more than are kept
    came meanwhile, the others are not written.

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
        self._lock, self._hurry, self._next_write = threading.Lock(), threading.Event(), 0.0
        self._waiting: dict[int, _Copy] = {}
        self._writing: list[Future[None]] = []
        self._ranks: Mapping[int, float] = {}

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
        *,
        may_wait: bool = False,
    ) -> None:
        """Begin to write a checkpoint of the state as it is now.

        Args:
            state: Pytree of arrays with a scalar `step`.
            record: JSON values that belong to it.
            ranks: By step what is the smaller the better, for the steps that may be kept as the best.
            before: Function that is called before the checkpoint gets its name, beside the training: what it refers to
                has to be on the disk.
            may_wait: Write it later than at once, where the state is small and others were written just now.

        Raises:
            UserError: if it or the one before it cannot be written. All complete checkpoints stay.
        """
        step, arrays = int(state.step), dict(path_names(state))
        beside = jax.process_count() == 1 and is_on_cpu(arrays)
        if may_wait and beside and sum(array.nbytes for array in arrays.values()) <= _SMALL_BYTES:
            self._tell_failures([writing for writing in self._writing if writing.done()])
        else:
            self.wait()
            self._next_write = 0.0
        copy, self._ranks = _Copy(*snapshot(arrays), record, before), dict(ranks or {})
        if beside:
            # Orbax prepares a save for longer than it takes to copy a state of a few MB.
            with self._lock:
                waiting = {**self._waiting, step: copy}
                self._waiting = {one: waiting[one] for one in self._kept(waiting)}
            self._writing.append(self._thread.submit(self._write_waiting))
        else:
            # With several processes Orbax synchronizes the devices, in an order that must be the same on all. And on
            # an accelerator it has to fetch the arrays before the next chunk of steps writes into them.
            with self._reporting():
                on_first(self.hosts, functools.partial(self._make_room, step))
                self._begin(step, copy)
            self._writing.append(self._thread.submit(self._end, step, copy))

    def _write_waiting(self) -> None:
        """Write what waits, when it is time for that. In the thread."""
        if not self._waiting:  # an earlier call wrote it
            return
        self._hurry.wait(max(0.0, self._next_write - time.monotonic()))
        self._hurry.clear()
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for step, copy in sorted(waiting.items()):
            self._make_room(step)
            self._begin(step, copy)
            self._end(step, copy)
            self._next_write = time.monotonic() + _APART_SECONDS

    def _make_room(self, step: int) -> None:
        saving = self._saving(step)
        if saving.exists():
            shutil.rmtree(saving)
        self.directory.mkdir(exist_ok=True)  # not its parents: the work directory may be gone
        saving.mkdir()

    def _begin(self, step: int, copy: _Copy) -> None:
        # To convert an array that is not ready would hold Python's lock, and with it the training.
        jax.block_until_ready((copy.arrays, copy.checksums))
        self._writer.save(self._saving(step) / "state", args=orbax().args.StandardSave(copy.arrays))

    def _end(self, step: int, copy: _Copy) -> None:
        self._writer.wait_until_finished()  # for all processes
        if jax.process_index() == 0:
            copy.before()
            described = {
                name: {"shape": list(array.shape), "dtype": array.dtype.name, "checksum": int(copy.checksums[name])}
                for name, array in copy.arrays.items()
            }
            described = json.dumps(copy.record | {"arrays": described}, allow_nan=False) + "\n"
            (self._saving(step) / RECORD).write_text(described)
            self._commit(step)

    def _saving(self, step: int) -> Path:
        return self.directory / f"{_SAVING}{step}"

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

    def hasten(self) -> None:
        """Let what waits be written at once; not waited for."""
        if self._waiting:
            self._hurry.set()

    def finish(self) -> None:
        """Wait until what this process writes is on the disk.

        Raises:
            UserError: if it cannot be written.
        """
        self.hasten()
        self._tell_failures(self._writing)

    def _tell_failures(self, writing: Sequence[Future[None]]) -> None:
        """Wait for writes, and raise what one of them failed with; that is said once."""
        self._writing = [one for one in self._writing if one not in writing]
        with self._reporting():
            for one in writing:
                one.result()

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

    def _kept(self, steps: Collection[int]) -> set[int]:
        """Return those steps that are the newest, and those that are the best."""
        best = sorted((self._ranks[step], step) for step in steps if step in self._ranks)[: self.keep_best]
        return {*sorted(steps)[-self.keep_last :], *(step for _, step in best)}

    def _commit(self, step: int) -> None:
        """Give a checkpoint its name when it is whole, and delete those that are not kept any more."""
        saving = self._saving(step)
        seal(saving)
        final = self.checkpoints.path(step)
        if final.exists():
            self._delete(step)
        saving.rename(final)
        sync(self.directory)
        _look_at(final, step)
        steps = self.checkpoints.steps()
        for one in sorted({*steps} - self._kept(steps)):
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
