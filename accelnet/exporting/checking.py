"""An export beside the model it was made of: differences, metrics and latency, in its own runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from accelnet.errors import UserError
from accelnet.exporting.difference import Difference, compare, farthest, joined
from accelnet.exporting.example_rows import with_steps
from accelnet.exporting.formats import Format, Running
from accelnet.exporting.source import Answers, ExportedModel, batches
from accelnet.exporting.turns import in_turns, timer


def check(name: str, form: Format, folder: Path, source: ExportedModel) -> dict[str, Any]:
    """Run an export in its own runtime, and compare it with the model.

    Args:
        name: Name of the format.
        form: The format.
        folder: Folder that holds the files.
        source: What was exported, with rows.

    Returns:
        "runtime", "batch" and "steps" ("any", a number, or None where the model has no steps), "largest" and
        "differences" (shares of the largest output), "changed" (classes that are others), "metrics" (by name [the
        model's, the export's]), "latency" ("batch_size", "seconds", "accelnet_seconds").

    Raises:
        UserError: if the runtime refuses the files, or an output differs by more than rounding.
    """
    with form.running(folder, source) as running:
        found, answers = _differences(name, form, running, source)
        latency = [_latency(running, source, size) for size in source.sizes] if running.timed is not None else []
    return {
        "runtime": form.runtime(),
        "batch": "any" if running.batch is None else running.batch,
        "steps": _steps(source, running),
        "largest": found.largest,
        "differences": dict(found.outputs),
        "changed": dict(found.changed),
        "metrics": _metrics(source, answers),
        "latency": [one for one in latency if one],
    }


def _differences(name: str, form: Format, running: Running, source: ExportedModel) -> tuple[Difference, Answers]:
    """Compare all rows, in batches, then one row alone, and one of fewer steps, where the model takes these."""
    parts, answers = [], []
    cases = batches(source.rows, source.size)
    if source.model.schema["batch"] is None:
        cases.append(jax.tree.map(lambda one: one[:1], source.rows))
        if running.any_steps and (steps := _num_steps(source)) is not None:
            cases.append(with_steps(cases[-1], source.model.schema, max(1, steps // 2)))
    for number, inputs in enumerate(cases):
        got = _answers(running, inputs)
        expected = source.reference(inputs)
        parts.append(compare(expected, got, source.tolerance))
        if parts[-1].largest > source.tolerance:
            differing = _around(inputs, farthest(expected, got, parts[-1].worst), running.batch)
            raise UserError(_told(name, form, parts[-1], source, inputs, differing))
        if number < source.count // source.size:
            answers.append(got)
    return joined(parts), {key: np.concatenate([one[key] for one in answers]) for key in answers[0]}


def _answers(running: Running, inputs: Any) -> Answers:
    count = len(jax.tree.leaves(inputs)[0])
    if running.batch in (None, count):
        return running.answers(inputs)
    found = [running.answers(one) for one in batches(inputs, running.batch)]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _around(inputs: Any, row: int, batch: int | None) -> Any:
    """Return the inputs that are computed together with a row."""
    if batch is None:
        return inputs
    return jax.tree.map(lambda one: one[row // batch * batch :][:batch], inputs)


def _told(name: str, form: Format, found: Difference, source: ExportedModel, inputs: Any, differing: Any) -> str:
    where = "" if form.layer is None or source.answer is None else f"; {form.layer(source, differing)}"
    rows = f"{len(jax.tree.leaves(inputs)[0])} of the {source.count} rows of {source.told}"
    return (
        f"the {name} file differs from the model, and nothing is kept of it: {found.worst} by {found.largest:.1e} of "
        f"its largest number on {rows}, expected at most {source.tolerance:.0e}{where}"
    )


def _latency(running: Running, source: ExportedModel, size: int) -> dict[str, Any] | None:
    if running.batch not in (None, size) or running.timed is None:
        return None
    inputs = jax.tree.map(lambda one: one[:size], source.rows)
    found = in_turns({"export": running.timed(inputs), "accelnet": timer(lambda: source.reference(inputs))})
    return {"batch_size": size, "seconds": found["export"], "accelnet_seconds": found["accelnet"]}


def _metrics(source: ExportedModel, answers: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    if source.score is None:
        return {}
    after = source.score(answers)
    return {name: [before, after[name]] for name, before in source.own_score.items()}


def _num_steps(source: ExportedModel) -> int | None:
    """Return the steps of the rows; None where a model has none, or takes one number alone."""
    pairs = zip(jax.tree.leaves(source.shapes), jax.tree.leaves(source.rows), strict=True)
    return next((one.shape[1] for like, one in pairs if one.ndim > 1 and not isinstance(like.shape[1], int)), None)


def _steps(source: ExportedModel, running: Running) -> Any:
    steps = _num_steps(source)
    return steps if steps is None or not running.any_steps else "any"
