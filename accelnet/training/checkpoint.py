"""Checkpoints: state and record of a run as one unit, written beside the training, whole or not at all.

A checkpoint is a directory `checkpoints/STEP`: `state/`, a flat dict of arrays by Orbax, to which every process writes
what lies on its own devices, and from which any other layout reads; `record.json`; and the manifest of both. It is
written under another name, which is given up when all of it is on the disk and was looked at once more. So whatever
damages a file later is found when a run resumes, and not in its results.

Only this file knows Orbax.
"""

import contextlib
import functools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from accelnet.errors import UserError
from accelnet.parallel.rules import path_names
from accelnet.terminal import say
from accelnet.training.hosts import Hosts
from accelnet.training.manifest import DamagedError, check_seal, seal, sync
from accelnet.training.snapshot import is_on_cpu, snapshot, verified

Tree = Any
Record = dict[str, Any]

DIRECTORY = "checkpoints"
RECORD = "record.json"
_SAVING, _DELETING = ".saving-", ".deleting-"


@dataclass(eq=False)
class Checkpoints:
    """The checkpoints of one work directory.

    Args:
        workdir: Directory of the run, which is there; "checkpoints" in it is made when something is saved.
        hosts: Processes of the run. None: this one.
        keep_last: Number of newest checkpoints kept, at least 1.
        keep_best: Number of checkpoints kept that are the best, at least 0.
        note: Function that gets a sentence when a damaged checkpoint is passed over.
        complete: Function that returns a record with what else belongs to it. It raises `DamagedError` if that is not
            whole; but where no checkpoint is, it is called again, with True, and returns what there is.
        read_only: Change nothing in the directory, where another process may be training.
    """

    workdir: str | Path
    _: KW_ONLY
    hosts: Hosts | None = None
    keep_last: int = 2
    keep_best: int = 1
    note: Callable[[str], None] = say
    complete: Callable[[Record, bool], Record] = lambda record, _: record
    read_only: bool = False

    def __post_init__(self) -> None:
        self.directory = Path(self.workdir).absolute() / DIRECTORY
        self._thread = ThreadPoolExecutor(1, "accelnet-checkpoint")
        self._writing: Future[None] | None = None

    @functools.cached_property
    def _orbax(self) -> Any:
        import orbax.checkpoint as ocp  # imported where it is needed: 0.3 s

        # Orbax reports every step of a save at this level; what matters comes as an exception.
        logging.getLogger("absl").setLevel(logging.ERROR)
        return ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that are complete, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.directory.iterdir() if entry.name.isdecimal())

    def _on_first(self, function: Callable[[], Any]) -> Any:
        # What a network file system shows may differ from host to host for a while.
        return function() if self.hosts is None else self.hosts.on_first(function)

    def _path(self, step: int) -> Path:
        return self.directory / str(step)

    def clear(self) -> None:
        """Remove what a process that was killed has left half-written; for the one that may write here.

        Raises:
            UserError: if it cannot be removed.
        """

        def remove() -> None:
            for prefix in (_SAVING, _DELETING):
                for path in self.directory.glob(f"{prefix}*"):
                    shutil.rmtree(path)

        with self._reporting():
            self._on_first(remove)

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

        def begin() -> None:
            import orbax.checkpoint as ocp

            # To convert an array that is not ready would hold Python's lock, and with it the training.
            jax.block_until_ready((arrays, checksums))
            self._orbax.save(saving / "state", args=ocp.args.StandardSave(arrays))

        def end() -> None:
            self._orbax.wait_until_finished()  # for all processes
            if jax.process_index() == 0:
                described = {
                    name: {"shape": list(array.shape), "dtype": array.dtype.name, "checksum": int(checksums[name])}
                    for name, array in arrays.items()
                }
                before()
                (saving / RECORD).write_text(json.dumps(record | {"arrays": described}, allow_nan=False) + "\n")
                self._commit(saving, step, ranks)

        def make_room() -> None:
            if saving.exists():
                shutil.rmtree(saving)
            self.directory.mkdir(exist_ok=True)  # not its parents: the work directory may be gone
            saving.mkdir()

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
                self._on_first(make_room)
                begin()
            self._writing = self._thread.submit(end)

    def _commit(self, saving: Path, step: int, ranks: Mapping[int, Any]) -> None:
        """Give a checkpoint its name when it is whole, and delete those that are not kept any more."""
        seal(saving)
        final = self._path(step)
        if final.exists():
            self._delete(step)
        saving.rename(final)
        sync(self.directory)
        self._look_at(step)
        steps = self.steps()
        best = sorted((ranks[step], step) for step in steps if step in ranks)[: self.keep_best]
        for one in sorted(set(steps) - set(steps[-self.keep_last :]) - {step for _, step in best}):
            self._delete(one)

    def _look_at(self, step: int) -> None:
        """Read the outline of a checkpoint, and one array, back from where it is now."""
        import tensorstore

        check_seal(self._path(step))
        place = {"driver": "ocdbt", "base": f"file://{self._path(step)}/state/", "path": "step/"}
        found = tensorstore.open({"driver": "zarr", "kvstore": place}, open=True).result().read().result()
        if int(found) != step:
            raise DamagedError(f"what was written as step {step} is read back as {found}")

    def _delete(self, step: int) -> None:
        # Renamed first, so that no half of it is ever taken for a checkpoint.
        deleting = self.directory / f"{_DELETING}{step}-{time.time_ns()}"
        self._path(step).rename(deleting)
        shutil.rmtree(deleting)

    def wait(self) -> None:
        """Wait until what was saved is on the disk, for all processes; all call this in the same order.

        Raises:
            UserError: if it cannot be written.
        """
        if jax.process_count() == 1:
            self.finish()
            return
        failed = None
        try:
            self.finish()
        except UserError as error:
            failed = error
        if failed and jax.process_index() != 0:
            raise failed

        def say_failed() -> None:
            if failed:
                raise failed

        self._on_first(say_failed)

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
        """Finish, and stop the threads. What could not be written is a note: something else ends the run already."""
        try:
            self.finish()
        except UserError as error:
            self.note(str(error))
        if "_orbax" in vars(self):
            with contextlib.suppress(Exception):  # said when it was met
                self._orbax.close()
            del self._orbax
        self._thread.shutdown()

    def restore(self, abstract: Tree, step: int | None = None) -> tuple[Tree, Record] | None:
        """Read a checkpoint.

        Args:
            abstract: Shapes of the state, and shardings where they are not those of one device.
            step: Step of the checkpoint. None: the newest that is whole.

        Returns:
            (state, record), or None if there is no checkpoint.

        Raises:
            UserError: if the checkpoint does not fit `abstract`, `step` is not there, or none is whole.
        """
        damages: dict[int, str] = {}
        for candidate, record in self._whole(step, damages):
            stored = record.pop("arrays")
            self._check_fit(candidate, abstract, stored)
            shapes = dict(path_names(abstract))
            try:
                arrays = self.read_arrays(candidate, shapes, stored)
            except Exception as error:  # Orbax and TensorStore each have their own
                damage = self._damage(candidate, error)
                if jax.process_count() > 1 and not isinstance(error, DamagedError):
                    # Perhaps only this process has met it, and the others wait for it in Orbax.
                    self._explain(error)
                    raise UserError(f"{damage}: move it away, and go on from the one before with --resume") from error
                damages[candidate] = damage
                continue
            for damage in damages.values():
                self.note(f"{damage}: going on from step {candidate}")
            self._set_aside(candidate)
            return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in shapes]), record
        if damages:
            raise UserError("; ".join(damages.values()) + ": none is whole, start again in another --workdir")
        return None

    def read_record(self, step: int | None = None) -> tuple[int, Record] | None:
        """Return step and record of a checkpoint, with "arrays" that describe its arrays by path.

        Args:
            step: Step of the checkpoint. None: the newest that is whole.

        Returns:
            (step, record), or None if there is no checkpoint.

        Raises:
            UserError: if `step` is not there, or none is whole.
        """
        damages: dict[int, str] = {}
        for found in self._whole(step, damages):
            return found
        if damages:
            raise UserError("; ".join(damages.values()) + ": none is whole")
        return None

    def outline(self) -> Record | None:
        """Return the newest record that is whole, whether or not the arrays beside it are; None if there is none."""
        for step in reversed(self.steps()):
            with contextlib.suppress(DamagedError, OSError):
                check_seal(self._path(step), [RECORD])
                return json.loads((self._path(step) / RECORD).read_text())
        return None

    def _whole(self, step: int | None, damages: dict[int, str]) -> Iterator[tuple[int, Record]]:
        """Give step and record of checkpoints, the newest first; add a sentence for each that is damaged."""
        steps = self._on_first(self.steps)
        if step is not None:
            if step not in steps:
                raise UserError(f"{self.directory} has no checkpoint of step {step}, only of {steps or 'none'}")
            steps = [step]
        for lenient in (False, True):
            for candidate in reversed(steps):
                found = self._on_first(partial(self._examine, candidate, lenient))
                if isinstance(found, str):
                    damages[candidate] = found
                elif found is not None:
                    yield candidate, found

    def _examine(self, step: int, lenient: bool) -> Record | str | None:
        """Return the record of a checkpoint, or what is damaged about it; None if it was deleted meanwhile."""
        try:
            check_seal(self._path(step))
            return self.complete(json.loads((self._path(step) / RECORD).read_text()), lenient)
        except (DamagedError, OSError) as error:
            return self._damage(step, error) if self._path(step).exists() else None

    def _damage(self, step: int, error: Exception) -> str:
        why = str(error) if isinstance(error, DamagedError) else first_line(error)
        return f"checkpoint {self._path(step)} is damaged ({why})"

    def _check_fit(self, step: int, abstract: Tree, stored: Mapping[str, Any]) -> None:
        shapes = dict(path_names(abstract))
        if differing := sorted(set(shapes) ^ set(stored)):
            raise UserError(
                f"checkpoint {self._path(step)} is of another model or optimizer: it and the "
                f"experiment differ in {', '.join(differing[:5])}{' …' if len(differing) > 5 else ''}"
            )
        for name, shape in shapes.items():
            before, now = (stored[name]["dtype"], stored[name]["shape"]), (shape.dtype.name, list(shape.shape))
            if before != now:
                raise UserError(
                    f"checkpoint {self._path(step)} holds {name} as {before[0]}{before[1]}, the experiment as "
                    f"{now[0]}{now[1]}"
                )

    def read_arrays(self, step: int, shapes: dict[str, Any], stored: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Return the arrays of a checkpoint by path.

        Args:
            step: Step of the checkpoint.
            shapes: Shapes of all its arrays by path, with shardings where they are not those of one device.
            stored: "arrays" of its record.

        Raises:
            DamagedError: if one is not what was saved.
        """
        import orbax.checkpoint as ocp

        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=shape.sharding or here)
            for name, shape in shapes.items()
        }
        arrays = self._orbax.restore(self._path(step) / "state", args=ocp.args.StandardRestore(wanted))
        return verified({name: arrays[name] for name in shapes}, {name: stored[name]["checksum"] for name in shapes})

    def _set_aside(self, step: int) -> None:
        """Rename the damaged checkpoints after a step: nothing is deleted, and their steps can be saved anew."""
        if self.read_only:
            return

        def rename() -> None:
            for damaged in [self._path(later) for later in self.steps() if later > step]:
                damaged.rename(damaged.with_name(f"damaged-{damaged.name}-{time.time_ns()}"))

        self._on_first(rename)

    def _explain(self, error: BaseException) -> None:
        """End this process if the reason of an error is that another one is lost."""
        if self.hosts is not None and jax.process_count() > 1:
            self.hosts.watch.explain(error)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn a failed write into one sentence."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore each have their own
            self._explain(error)
            raise UserError(
                f"a checkpoint could not be written to {self.directory}: {first_line(error)}. The checkpoints "
                "that were complete are unharmed; make room or give another --workdir, and go on with --resume"
            ) from error


def first_line(error: BaseException) -> str:
    """Return the kind of an exception and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
