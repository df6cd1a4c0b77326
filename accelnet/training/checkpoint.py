"""Checkpoints: state, record and configuration of a run as one unit, asynchronous and atomic, by Orbax.

The only file that knows Orbax. A checkpoint is a directory `checkpoints/STEP` with a flat dict of arrays and
one JSON document; Orbax writes it under another name and renames it when it is complete. The JSON holds a
CRC-32 of every array, so damage is found when a run resumes and not in its results.
"""

import logging
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.errors import UserError
from accelnet.training.events import is_lower_better

Tree = Any
Record = dict[str, Any]

DIRECTORY = "checkpoints"


class Checkpoints:
    """The checkpoints of one work directory.

    Args:
        workdir: directory of the run; "checkpoints" in it is created when something is saved.
        keep_last: newest checkpoints kept, at least 1.
        keep_best: checkpoints kept whose validation metric is the best, at least 0.
        best_metric: name of that metric.
        note: called with a sentence when a damaged checkpoint is passed over.
        read_only: change nothing in the directory, where another process may be training.

    Source: original.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        best_metric: str = "loss",
        note: Callable[[str], None] = print,
        read_only: bool = False,
    ) -> None:
        self.directory = Path(workdir).absolute() / DIRECTORY
        self.best_metric = best_metric
        self.note = note
        self.read_only = read_only
        self._keep = keep_last, keep_best
        self._manager: Any = None

    def _open(self) -> Any:
        if self._manager is None:
            import orbax.checkpoint as ocp  # imported where it is needed: 0.3 s
            from orbax.checkpoint import checkpoint_managers as policies

            # Orbax reports every step of a save at this level; what matters comes as an exception.
            logging.getLogger("absl").setLevel(logging.ERROR)
            last, best = self._keep
            lower = is_lower_better(self.best_metric)

            def score(metrics: dict[str, float]) -> float:
                return metrics[self.best_metric]

            keep: list[Any] = [policies.LatestN(last)]
            if best:
                keep.append(
                    policies.BestN(get_metric_fn=score, reverse=lower, n=best, keep_checkpoints_without_metrics=False)
                )
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(keep),
                    best_fn=score,  # without it Orbax writes no metrics
                    best_mode="min" if lower else "max",
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

    def best_step(self) -> int | None:
        """Return the step with the best validation metric, None if no checkpoint has one."""
        scored = {}
        for step in self.steps():
            metrics = self._open().metrics(step)
            if metrics and self.best_metric in metrics:
                scored[step] = metrics[self.best_metric]
        if not scored:
            return None
        return (min if is_lower_better(self.best_metric) else max)(scored, key=scored.__getitem__)

    def save(self, state: Tree, record: Record, metrics: dict[str, float] | None = None) -> None:
        """Begin to write a checkpoint; the arrays are copied before this returns.

        Args:
            state: pytree of arrays with a scalar `step`.
            record: JSON values that belong to it.
            metrics: validation metrics of this very state, if there are any.

        Raises:
            UserError: if it or the one before it cannot be written. All complete checkpoints stay.
        """
        import orbax.checkpoint as ocp

        # A copy, since the next chunk of steps writes into the very buffers.
        arrays = {name: np.array(leaf) for name, leaf in _flat(state).items()}
        record = record | {"arrays": {name: _signature(array) for name, array in arrays.items()}}
        with self._reporting():
            self._open().save(
                int(state.step),
                metrics=metrics,
                args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record)),
                force=True,
            )

    def wait(self) -> None:
        """Wait until what was saved is on the disk."""
        if self._manager is not None:
            with self._reporting():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and stop the threads."""
        if self._manager is not None:
            try:
                self.wait()
            finally:
                self._manager.close()
                self._manager = None

    def restore(self, abstract: Tree, step: int | None = None) -> tuple[Tree, Record] | None:
        """Read the newest checkpoint that is whole.

        Args:
            abstract: pytree of `jax.ShapeDtypeStruct`, the state's shapes.
            step: read this one and no other.

        Returns:
            (state, record), or None if there is no checkpoint.

        Raises:
            UserError: if the checkpoint does not fit `abstract`, `step` is not there, or none is whole.
        """
        steps = self.steps()
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
            except Exception as error:  # noqa: BLE001, Orbax, TensorStore and JSON each have their own
                damages.append(f"checkpoint {self.directory / str(candidate)} is damaged ({_first_line(error)})")
                continue
            for damage in damages:
                self.note(f"{damage}: going on from step {candidate}")
            self._set_aside([s for s in steps if s > candidate])
            return state, record
        raise UserError("; ".join(damages) + ": none is whole, start again in another --workdir")

    def _read(self, step: int, abstract: Tree) -> tuple[Tree, Record]:
        import orbax.checkpoint as ocp

        restore = self._open().restore
        record = restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
        stored = record.pop("arrays")
        shapes = _flat(abstract)
        if differing := sorted(set(shapes) ^ set(stored)):
            raise UserError(
                f"checkpoint {self.directory / str(step)} is of another model or optimizer: it and the "
                f"experiment differ in {', '.join(differing[:5])}{' …' if len(differing) > 5 else ''}"
            )
        for name, shape in shapes.items():
            before, now = (
                (stored[name]["dtype"], stored[name]["shape"]),
                (shape.dtype.name, list(shape.shape)),
            )
            if before != now:
                raise UserError(
                    f"checkpoint {self.directory / str(step)} holds {name} as {before[0]}{before[1]}, the "
                    f"experiment as {now[0]}{now[1]}"
                )
        empty = {name: np.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
        arrays = restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(empty))).state
        for name in shapes:
            if _signature(arrays[name]) != stored[name]:
                raise ValueError(f"the checksum of {name} is wrong")
        leaves = [jnp.array(arrays[name]) for name in shapes]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves), record

    def _set_aside(self, steps: list[int]) -> None:
        """Rename damaged checkpoints: nothing is deleted, and their steps can be saved anew."""
        if self.read_only or not steps:
            return
        self.close()
        for step in steps:
            damaged = self.directory / str(step)
            damaged.rename(damaged.with_name(f"damaged-{step}-{time.time_ns()}"))

    def _reporting(self) -> Any:
        return _Reporting(self.directory)


class _Reporting:
    """Turn a failed write into one sentence."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise UserError(
                f"a checkpoint could not be written to {self.directory}: {_first_line(error)}. The checkpoints "
                "that were complete are unharmed; make room or give another --workdir, and go on with --resume"
            ) from error


def _flat(tree: Tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _signature(array: np.ndarray) -> dict[str, Any]:
    array = np.asarray(array)
    crc32 = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return {"shape": list(array.shape), "dtype": array.dtype.name, "crc32": crc32}


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
