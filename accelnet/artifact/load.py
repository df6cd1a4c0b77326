"""Loading artifacts, and making their programs anew."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from accelnet.arguments import flags
from accelnet.arguments import path as checked_path
from accelnet.artifact.bundle import read_bundle
from accelnet.artifact.entries import PROGRAM, SUFFIX, WEIGHTS, versions, write_entries
from accelnet.artifact.model import Model
from accelnet.artifact.program import NotAccelnetsError, export_answer, reexport
from accelnet.artifact.schema import SHAPE, held_of, read_schema
from accelnet.artifact.tensors import unpack
from accelnet.errors import UserError
from accelnet.json_file import parse_json

LAST, BEST = f"model{SUFFIX}", f"best{SUFFIX}"
_RECIPE = {"step": int, "progress": float, "precision": str, "others": dict}
_SHAPES = {
    "schema": SHAPE,
    "metrics": {"step": int, "metrics": {str: {str: (float, None)}}, "intervals": dict},
    "config": {"experiment": str, "settings": dict, "data": str, "versions": dict},
    "model": ({**_RECIPE, "reason": str}, {**_RECIPE, "model": str, "arguments": dict, "prepare": str}),
}


def load(path: str | os.PathLike[str], *, best: bool = False) -> Model:
    """Load a trained model, which needs neither the script nor the data that made it.

    Args:
        path: File that `Run.save` wrote, or a work directory that holds one: the verb `predict` leaves it there.
        best: Whether to take, of a work directory, the weights with the best validation metric, not the last ones.

    Returns:
        The `Model`, whose `predict` takes raw inputs.

    Raises:
        UserError: if there is no artifact, it is damaged (with the entry's name), or of a newer version.

    Example:
        >>> load("/not/there.accelnet")
        Traceback (most recent call last):
        accelnet.errors.UserError: /not/there.accelnet is not there: expected a file that run.save(...) wrote, or a
        run's work directory
    """
    flags(best=best)
    path = _found(checked_path("path", path), best)
    entries = read_bundle(path)
    content = {name: _parsed(path, entries, f"{name}.json", shape) for name, shape in _SHAPES.items()}
    try:
        content = {**content, "schema": read_schema(content["schema"]), "recipe": content["model"]}
        held = jax.tree.leaves(held_of(content["schema"]["inputs"]))
        if not held or not all(hasattr(one, "fits") for one in held):
            raise ValueError("schema.json describes no inputs")
        weights = unpack(entries[WEIGHTS])
        return Model(path, weights, entries[PROGRAM], content)
    except KeyError as error:
        raise UserError(f"{path} is no artifact of a model: it has no {error.args[0]}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no artifact of a model: {error}") from None


def refresh(path: str | os.PathLike[str], to: str | os.PathLike[str] | None = None) -> str:
    """Make the program of an artifact anew with this version of jax, which reads those of the last six months.

    Args:
        path: The artifact.
        to: File to write. None: that of `path`.

    Returns:
        What it was made of: accelnet's own model, made again; of other models the program as it was.

    Raises:
        UserError: if this jax cannot read the program of a model that is not accelnet's.
    """
    model = load(path)
    schema = model.schema
    try:
        held, with_steps = held_of(schema["inputs"]), "steps" in str(schema["inputs"])
        exported = export_answer(model.rebuilt(), model.weights, held, with_steps)
        made_of = "accelnet's own model, made again"
    except NotAccelnetsError:
        exported, made_of = reexport(model.exported()), "the program as it was"
    content = read_bundle(model.path)
    config = {**model.config, "versions": versions()}
    write_entries(
        model.path if to is None else checked_path("to", to), content[WEIGHTS], bytes(exported.serialize(vjp_order=0)),
        schema, model.metrics, config, model.recipe,
    )  # fmt: skip
    return made_of


def _found(path: Path, best: bool) -> Path:
    if not path.exists():
        raise UserError(f"{path} is not there: expected a file that run.save(...) wrote, or a run's work directory")
    if not path.is_dir():
        if best:
            raise UserError(f"{path} is one model, and best=True chooses among those of a work directory: leave it out")
        return path
    found = path / (BEST if best else LAST)
    if found.exists():
        return found
    advice = f"of a run in hand, run{'.best' * best}.save({str(found)!r}) does"
    raise UserError(f"{path} holds no {found.name}: the verb predict writes one; {advice}")


def _parsed(path: Path, entries: Mapping[str, bytes], name: str, shape: Any) -> Any:
    if name not in entries:
        raise UserError(f"{path} is no artifact of a model: it has no {name}")
    try:
        return parse_json(entries[name].decode(), shape)
    except ValueError as error:
        raise UserError(f"{path} is no artifact of a model: {name} cannot be read ({error})") from None


def with_intervals(
    path: Path, split: str, values: Mapping[str, float | None], intervals: Mapping[str, Sequence[float]]
) -> None:
    """Add the metrics of a split, with their intervals, to an artifact.

    Args:
        path: The artifact.
        split: Name of the split.
        values: Metrics by name.
        intervals: The lower and the upper end by metric.

    Raises:
        UserError: if it cannot be read or written.
    """
    model, entries = load(path), read_bundle(path)
    found = model.metrics
    metrics = {
        **found,
        "metrics": {**found["metrics"], split: {**found["metrics"].get(split, {}), **values}},
        "intervals": {**found["intervals"], split: dict(intervals)},
    }
    write_entries(path, entries[WEIGHTS], model.program, model.schema, metrics, model.config, model.recipe)
