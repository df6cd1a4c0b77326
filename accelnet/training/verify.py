"""What of a work directory is whole."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from accelnet.errors import UserError
from accelnet.training.checkpoint import DIRECTORY, Checkpoints, first_line
from accelnet.training.manifest import DamagedError
from accelnet.training.rows import read_rows, row_files
from accelnet.training.stored import CONFIG


def verify(workdir: str | Path) -> list[dict[str, Any]]:
    """Read everything that a run has written, and compare it with its checksums. Nothing is changed.

    Args:
        workdir: Directory of a run, or of one that is training.

    Returns:
        One dict for each part: "part" (such as "checkpoints/400"), "whole" and "says".

    Raises:
        UserError: if there is no run.

    Example:
        >>> import tempfile
        >>> verify(tempfile.mkdtemp())
        Traceback (most recent call last):
        accelnet.errors.UserError: ... holds no run: name the --workdir of a training
    """
    workdir = Path(workdir).absolute()
    checkpoints = Checkpoints(workdir, read_only=True)
    steps = checkpoints.steps()
    if not steps and not (workdir / CONFIG).exists():
        raise UserError(f"{workdir} holds no run: name the --workdir of a training")
    parts: list[dict[str, Any]] = []

    def add(part: str, whole: bool, says: str) -> None:
        parts.append({"part": part, "whole": whole, "says": says})

    try:
        for step in steps:
            add(f"{DIRECTORY}/{step}", *_checkpoint(checkpoints, step))
    finally:
        checkpoints.close()
    newest = checkpoints.outline()
    for path in row_files(workdir):
        name = path.relative_to(workdir).as_posix()
        if newest is not None and "rows" in newest:
            add(name, *_rows(path, newest["rows"]))
    for name in (CONFIG, "result.json"):
        if (workdir / name).exists():
            add(name, *_json(workdir / name))
    for path in sorted((workdir / DIRECTORY).glob("damaged-*")):
        add(
            f"{DIRECTORY}/{path.name}",
            False,
            "set aside by a run that went on from an earlier step; delete it as you like",
        )
    return parts


def _checkpoint(checkpoints: Checkpoints, step: int) -> tuple[bool, str]:
    try:
        found = checkpoints.read_record(step)
        if found is None:
            return True, "deleted meanwhile, as a run does with what it does not keep"
        stored = found[1]["arrays"]
        shapes = {name: jax.ShapeDtypeStruct(one["shape"], jnp.dtype(one["dtype"])) for name, one in stored.items()}
        checkpoints.read_arrays(step, shapes, stored)
    except UserError as error:
        return False, str(error).partition(" is damaged ")[2] or str(error)
    except Exception as error:  # noqa: BLE001, Orbax and TensorStore each have their own
        return False, first_line(error)
    values = sum(array.size for array in shapes.values())
    return True, f"{len(shapes)} arrays with {values:,} values"


def _rows(path: Path, position: dict[str, Any]) -> tuple[bool, str]:
    try:
        return True, f"{len(read_rows(position, [path])):,} rows up to the newest checkpoint"
    except DamagedError:
        return (
            False,
            "not what was written up to the newest checkpoint; a run that goes on mends it from the other copy",
        )


def _json(path: Path) -> tuple[bool, str]:
    try:
        json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        return False, first_line(error)
    return True, f"{path.stat().st_size:,} bytes"
