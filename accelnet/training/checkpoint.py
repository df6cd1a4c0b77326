"""Checkpoints: state, record and configuration of a run as one unit, asynchronous and atomic, by Orbax.

Only this file knows Orbax. A checkpoint is a directory `checkpoints/STEP` with a flat dict of arrays and one JSON
document; Orbax writes it under another name and renames it when it is complete. Every process writes and reads what
lies on its own devices, and a checkpoint of one layout is read into any other. The JSON holds a checksum of every
array, so damage is found when a run resumes and not in its results.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import jax

from accelnet.errors import UserError
from accelnet.parallel.rules import path_names
from accelnet.terminal import say
from accelnet.training.events import rank
from accelnet.training.hosts import Hosts
from accelnet.training.snapshot import ChecksumError, is_on_cpu, snapshot, verified

Tree = Any
Record = dict[str, Any]

DIRECTORY = "checkpoints"


@dataclass(eq=False)
class Checkpoints:
    """The checkpoints of one work directory.

    Args:
        workdir: Directory of the run; "checkpoints" in it is created when something is saved.
        hosts: Processes of the run. None: this one.
        keep_last: Number of newest checkpoints kept, at least 1.
        keep_best: Number of checkpoints kept whose validation metric is the best, at least 0.
        best_metric: Name of that metric.
        lower_is_better: Direction of that metric.
        note: Function that gets a sentence when a damaged checkpoint is passed over.
        read_only: Change nothing in the directory, where another process may be training.
    """

    workdir: str | Path
    _: KW_ONLY
    hosts: Hosts | None = None
    keep_last: int = 2
    keep_best: int = 1
    best_metric: str = "loss"
    lower_is_better: bool = True
    note: Callable[[str], None] = say
    read_only: bool = False

    def __post_init__(self) -> None:
        self.directory = Path(self.workdir).absolute() / DIRECTORY
        self._manager: Any = None
        self._thread = ThreadPoolExecutor(1, "accelnet-checkpoint")
        self._writing: Future[None] | None = None

    def _open(self) -> Any:
        if self._manager is None:
            import orbax.checkpoint as ocp  # imported where it is needed: 0.3 s
            from orbax.checkpoint import checkpoint_managers as policies

            # Orbax reports every step of a save at this level; what matters comes as an exception.
            logging.getLogger("absl").setLevel(logging.ERROR)
            keep: list[Any] = [policies.LatestN(self.keep_last)]
            if self.keep_best:
                settings = {"n": self.keep_best, "reverse": True, "keep_checkpoints_without_metrics": False}
                keep.append(policies.BestN(get_metric_fn=self._score, **settings))
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(keep),
                    best_fn=self._score,  # without it Orbax writes no metrics
                    best_mode="min",
                    cleanup_tmp_directories=not self.read_only,
                    read_only=self.read_only,
                    create=not self.read_only,
                    enable_async_checkpointing=True,
                ),
                item_names=("state", "record"),
            )
        return self._manager

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that are complete, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.directory.iterdir() if entry.name.isdecimal())

    def _on_first(self, function: Callable[[], Any]) -> Any:
        # What a network file system shows may differ from host to host for a while.
        return function() if self.hosts is None else self.hosts.on_first(function)

    def best_step(self) -> int | None:
        """Return the step with the best validation metric, None if no checkpoint has one."""
        scored = {}
        for step in self._on_first(self.steps):
            metrics = self._open().metrics(step)
            if metrics and self.best_metric in metrics:
                scored[step] = self._score(metrics)
        return min(scored, key=scored.__getitem__, default=None)

    def _score(self, metrics: dict[str, float]) -> Any:
        """Return what is the smaller the better; of equals the earliest, which took less training."""
        return rank(metrics[self.best_metric], self.lower_is_better), metrics["step"]

    def save(self, state: Tree, record: Record, metrics: dict[str, float] | None = None) -> None:
        """Begin to write a checkpoint of the state as it is now.

        Args:
            state: Pytree of arrays with a scalar `step`.
            record: JSON values that belong to it.
            metrics: Validation metrics of this very state, if there are any.

        Raises:
            UserError: if it or the one before it cannot be written. All complete checkpoints stay.
        """
        import orbax.checkpoint as ocp

        self.wait()
        arrays, checksums = snapshot(dict(path_names(state)))

        def write() -> None:
            # To convert an array that is not ready would hold Python's lock, and with it the training.
            jax.block_until_ready((arrays, checksums))
            signatures = {
                name: {"shape": list(array.shape), "dtype": array.dtype.name, "checksum": int(checksums[name])}
                for name, array in arrays.items()
            }
            content = ocp.args.JsonSave(record | {"arrays": signatures})
            state_and_record = ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=content)
            scored = None if metrics is None else {**metrics, "step": step}
            self._open().save(step, metrics=scored, args=state_and_record, force=True)

        step = int(state.step)
        if jax.process_count() == 1 and is_on_cpu(arrays):
            # Orbax prepares a save for longer than it takes to copy a state of a few MB.
            self._writing = self._thread.submit(write)
        else:
            # With several processes Orbax synchronizes the devices, in an order that must be the same on all. And on
            # an accelerator it has to fetch the arrays before the next chunk of steps writes into them.
            with self._reporting():
                write()

    def wait(self) -> None:
        """Wait until what was saved is on the disk."""
        with self._reporting():
            if self._writing is not None:
                writing, self._writing = self._writing, None
                writing.result()
            if self._manager is not None:
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and stop the threads."""
        try:
            self.wait()
        finally:
            if self._manager is not None:
                self._manager.close()
                self._manager = None

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
        steps = self._on_first(self.steps)
        if step is not None:
            if step not in steps:
                raise UserError(f"{self.directory} has no checkpoint of step {step}, only of {steps or 'none'}")
            steps = [step]
        if not steps:
            return None
        damages = []
        for candidate in reversed(steps):
            try:
                state, record = self._read(candidate, abstract)
            except UserError:
                raise
            except Exception as error:  # Orbax, TensorStore and JSON each have their own
                damaged = f"checkpoint {self.directory / str(candidate)} is damaged ({first_line(error)})"
                if jax.process_count() > 1 and not isinstance(error, ChecksumError):
                    # Perhaps only this process has met it, and the others wait for it in Orbax.
                    raise UserError(f"{damaged}: move it away, and go on from the one before with --resume") from error
                damages.append(damaged)
                continue
            for damage in damages:
                self.note(f"{damage}: going on from step {candidate}")
            self._set_aside([s for s in steps if s > candidate])
            return state, record
        raise UserError("; ".join(damages) + ": none is whole, start again in another --workdir")

    def read_record(self, step: int) -> Record:
        """Return the JSON values of a checkpoint, with "arrays" that describe its arrays by path."""
        import orbax.checkpoint as ocp

        return self._open().restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record

    def read_arrays(self, step: int, shapes: dict[str, Any], stored: Record) -> dict[str, jax.Array]:
        """Return the arrays of a checkpoint by path.

        Args:
            step: Step of the checkpoint.
            shapes: Shapes of all its arrays by path, with shardings where they are not those of one device.
            stored: "arrays" of its record.

        Raises:
            ChecksumError: if one is not what was saved.
        """
        import orbax.checkpoint as ocp

        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=shape.sharding or here)
            for name, shape in shapes.items()
        }
        arrays = self._open().restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))).state
        return verified({name: arrays[name] for name in shapes}, {name: stored[name]["checksum"] for name in shapes})

    def _read(self, step: int, abstract: Tree) -> tuple[Tree, Record]:
        record = self.read_record(step)
        stored = record.pop("arrays")
        shapes = dict(path_names(abstract))
        if differing := sorted(set(shapes) ^ set(stored)):
            raise UserError(
                f"checkpoint {self.directory / str(step)} is of another model or optimizer: it and the "
                f"experiment differ in {', '.join(differing[:5])}{' …' if len(differing) > 5 else ''}"
            )
        for name, shape in shapes.items():
            before, now = (stored[name]["dtype"], stored[name]["shape"]), (shape.dtype.name, list(shape.shape))
            if before != now:
                raise UserError(
                    f"checkpoint {self.directory / str(step)} holds {name} as {before[0]}{before[1]}, the "
                    f"experiment as {now[0]}{now[1]}"
                )
        arrays = self.read_arrays(step, shapes, stored)
        return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in shapes]), record

    def _set_aside(self, steps: list[int]) -> None:
        """Rename damaged checkpoints: nothing is deleted, and their steps can be saved anew."""
        if self.read_only or not steps:
            return
        self.close()

        def rename() -> None:
            for step in steps:
                damaged = self.directory / str(step)
                damaged.rename(damaged.with_name(f"damaged-{step}-{time.time_ns()}"))

        self._on_first(rename)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn a failed write into one sentence."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore each have their own
            raise UserError(
                f"a checkpoint could not be written to {self.directory}: {first_line(error)}. The checkpoints "
                "that were complete are unharmed; make room or give another --workdir, and go on with --resume"
            ) from error


def first_line(error: BaseException) -> str:
    """Return the kind of an exception and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
