"""Checkpoints: state and record of a run as one unit, read with checksums of everything.

A checkpoint is a directory `checkpoints/STEP`: `state/`, a flat dict of arrays by Orbax, to which every process wrote
what lay on its own devices, and from which any other layout reads; `record.json`, which describes the arrays; and the
manifest of both. So what was damaged is found when a run resumes, and not in its results.
"""

import contextlib
import functools
import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from accelnet.errors import UserError
from accelnet.parallel.memory import is_exhaustion
from accelnet.parallel.rules import path_names
from accelnet.terminal import say
from accelnet.training.hosts import Hosts
from accelnet.training.manifest import DamagedError, check_seal
from accelnet.training.snapshot import verified

Tree = Any
Record = dict[str, Any]

DIRECTORY = "checkpoints"
RECORD = "record.json"
# Orbax's own files, and the arrays of a checkpoint: a future of TensorStore that Orbax no longer waits for has an error
# without a frame, whose text names the array's file.
_OF_ORBAX = re.compile(rf"[/\\](orbax|{DIRECTORY}[/\\](\.saving-)?\d+[/\\]state[^/\\]*)[/\\]")


def on_first(hosts: Hosts | None, function: Callable[[], Any]) -> Any:
    """Call a function on the first process: what a network file system shows may differ from host to host for a while.

    Args:
        hosts: Processes of the run. None: this one.
        function: Function that returns JSON values.
    """
    return function() if hosts is None else hosts.on_first(function)


@functools.cache
def orbax() -> Any:
    """Return Orbax, imported where it is needed: 0.3 s."""
    import orbax.checkpoint as ocp

    # It reports every step of a save, and every failure with a traceback; what matters comes as an exception.
    logging.getLogger("absl").addFilter(_is_not_orbax)
    logging.getLogger("asyncio").addFilter(_is_not_orbax)
    _drop_late_futures()
    return ocp


def _drop_late_futures() -> None:
    """Say nothing where TensorStore's threads find the event loop closed, which Orbax ends at the first failure."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _is_not_orbax(record: logging.LogRecord) -> bool:
    trace = traceback.format_exception(record.exc_info[1]) if record.exc_info and record.exc_info[1] else []
    return not any(_OF_ORBAX.search(text) for text in (record.pathname, *trace))


@dataclass(eq=False)
class Checkpoints:
    """Read the checkpoints of one work directory, where a process may be training.

    Args:
        workdir: Directory of the run.
        hosts: Processes of the run. None: this one.
        note: Function that gets a sentence when a damaged checkpoint is passed over.
        complete: Function that returns a record with what else belongs to it. It raises `DamagedError` if that is not
            whole; but where no checkpoint is, it is called again, with True, and returns what there is.
    """

    workdir: str | Path
    _: KW_ONLY
    hosts: Hosts | None = None
    note: Callable[[str], None] = say
    complete: Callable[[Record, bool], Record] = lambda record, _: record

    def __post_init__(self) -> None:
        self.directory = Path(self.workdir).absolute() / DIRECTORY

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that are complete, ascending.

        Raises:
            UserError: if the directory is there and cannot be read.
        """
        try:
            return sorted(int(entry.name) for entry in self.directory.iterdir() if entry.name.isdecimal())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(
                f"{self.directory} cannot be read: {error.strerror or error}. Give another --workdir"
            ) from error

    def path(self, step: int) -> Path:
        """Return the directory of a checkpoint."""
        return self.directory / str(step)

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
                if is_exhaustion(error):
                    raise
                damage = self._damage(candidate, error)
                if self.hosts is not None and jax.process_count() > 1 and not isinstance(error, DamagedError):
                    self.hosts.watch.explain(error)
                    # Perhaps only this process has met it, and the others wait for it in Orbax.
                    raise UserError(f"{damage}: move it away, and go on from the one before with --resume") from error
                damages[candidate] = damage
                continue
            for damage in damages.values():
                self.note(f"{damage}: going on from step {candidate}")
            return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in shapes]), record
        self._refuse(damages)
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
            for damage in damages.values():
                self.note(f"{damage}: taking that of step {found[0]}")
            return found
        self._refuse(damages)
        return None

    def outline(self) -> Record | None:
        """Return the newest record that is whole, whether or not the arrays beside it are; None if there is none."""
        for step in reversed(self.steps()):
            with contextlib.suppress(DamagedError, OSError):
                check_seal(self.path(step), [RECORD])
                return json.loads((self.path(step) / RECORD).read_text())
        return None

    def read_arrays(self, step: int, shapes: dict[str, Any], stored: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Return the arrays of a checkpoint by path.

        Args:
            step: Step of the checkpoint.
            shapes: Shapes of all its arrays by path, with shardings where they are not those of one device.
            stored: "arrays" of its record.

        Raises:
            DamagedError: if one is not what was saved.
        """
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=shape.sharding or here)
            for name, shape in shapes.items()
        }
        with contextlib.closing(orbax().Checkpointer(orbax().StandardCheckpointHandler())) as reader:
            arrays = reader.restore(self.path(step) / "state", args=orbax().args.StandardRestore(wanted))
        return verified({name: arrays[name] for name in shapes}, {name: stored[name]["checksum"] for name in shapes})

    def _refuse(self, damages: Mapping[int, str]) -> None:
        """Say what is damaged where nothing whole was found, if anything was there."""
        if damages:
            others = sorted(set(on_first(self.hosts, self.steps)) - set(damages))
            advice = f"there are also those of the steps {others}" if others else "none is whole, start again elsewhere"
            raise UserError(f"{'; '.join(damages.values())}: {advice}")

    def _whole(self, step: int | None, damages: dict[int, str]) -> Iterator[tuple[int, Record]]:
        """Give step and record of checkpoints, the newest first; add a sentence for each that is damaged."""
        steps = on_first(self.hosts, self.steps)
        if step is not None:
            if step not in steps:
                raise UserError(f"{self.directory} has no checkpoint of step {step}, only of {steps or 'none'}")
            steps = [step]
        incomplete: list[tuple[int, Record]] = []
        for candidate in reversed(steps):
            record, damage = on_first(self.hosts, partial(self._examine, candidate))
            if damage is not None:
                damages[candidate] = damage
                if record is not None:
                    incomplete.append((candidate, record))
            elif record is not None:
                yield candidate, record
        for candidate, record in incomplete:
            yield candidate, on_first(self.hosts, partial(self.complete, record, True))

    def _examine(self, step: int) -> tuple[Record | None, str | None]:
        """Return the record of a checkpoint, and what is damaged about it; neither if it was deleted meanwhile."""
        record = None
        try:
            if (self.path(step) / "record").is_dir():
                raise DamagedError("it was written by an earlier version of accelnet, which alone can read it")
            check_seal(self.path(step))
            record = json.loads((self.path(step) / RECORD).read_text())
            return self.complete(record, False), None
        except (DamagedError, OSError) as error:
            return record, self._damage(step, error) if self.path(step).exists() else None

    def _damage(self, step: int, error: Exception) -> str:
        why = str(error) if isinstance(error, DamagedError) else first_line(error)
        return f"checkpoint {self.path(step)} is damaged ({why})"

    def _check_fit(self, step: int, abstract: Tree, stored: Mapping[str, Any]) -> None:
        shapes = dict(path_names(abstract))
        if differing := sorted(set(shapes) ^ set(stored)):
            raise UserError(
                f"checkpoint {self.path(step)} is of another model or optimizer: it and the experiment differ in "
                f"{', '.join(differing[:5])}{' …' if len(differing) > 5 else ''}"
            )
        for name, shape in shapes.items():
            before, now = (stored[name]["dtype"], stored[name]["shape"]), (shape.dtype.name, list(shape.shape))
            if before != now:
                raise UserError(
                    f"checkpoint {self.path(step)} holds {name} as {before[0]}{before[1]}, the experiment as "
                    f"{now[0]}{now[1]}"
                )


def first_line(error: BaseException) -> str:
    """Return the kind of an exception and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
