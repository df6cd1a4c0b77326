"""From a trained model to its artifact."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from accelnet.arguments import path as checked_path
from accelnet.artifact.entries import SUFFIX, versions, write_entries
from accelnet.artifact.outputs import kind_of
from accelnet.artifact.program import Forward, export_answer, with_steps_in
from accelnet.artifact.recipe import flattened, recipe_of, unflattener
from accelnet.artifact.schema import described_arrays, schema_of
from accelnet.artifact.tensors import pack
from accelnet.data.dataset import Data
from accelnet.errors import UserError
from accelnet.models.precision import Precision
from accelnet.models.pure import PureModel


def save_model(
    path: str | os.PathLike[str],
    *,
    model: PureModel,
    weights: tuple[Any, Any],
    data: Data,
    task: str,
    precision: Precision,
    progress: float,
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Path:
    """Write the artifact of a trained model: one zip with weights, program, schema, metrics, settings and a card.

    The same run gives the same bytes.

    Args:
        path: File to write, whose name ends in ".accelnet".
        model: The model.
        weights: Its params and its state.
        data: Data that it was trained on.
        task: Task of the objective.
        precision: That of the run.
        progress: Share of the run that is done.
        metrics: "step", "metrics" by split, and "intervals" by split.
        config: "experiment", "settings", and the "data"'s fingerprint.

    Raises:
        UserError: if jax cannot export the model, or the file cannot be written.
    """
    path = checked_path("path", path)
    if path.suffix != SUFFIX:
        raise UserError(f"path is {str(path)!r}, expected a file that ends in {SUFFIX}, as model{SUFFIX}")
    named = {name: np.asarray(one) for name, one in flattened(jax.device_get(weights)).items()}
    forward = forward_in(model, weights, data, precision, metrics["step"], progress)
    held = jax.tree.map(_shape, data.arrays["inputs"])
    answer = forward.answer(task, data.fitted.get("target"))
    exported = export_answer(answer, named, held, with_steps_in(held, task))
    answers = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    schema = schema_of(data, exported, kind_of(task, answers.get("outputs")))
    recipe = {
        **recipe_of(model, data), "others": described_arrays(forward.others), "precision": precision,
        "step": metrics["step"], "progress": progress,
    }  # fmt: skip
    config = {**config, "versions": versions()}
    write_entries(path, pack(named), bytes(exported.serialize(vjp_order=0)), schema, metrics, config, recipe)
    return path


def forward_in(
    model: PureModel, weights: tuple[Any, Any], data: Data, precision: Precision, step: int, progress: float
) -> Forward:
    """Return the way from encoded inputs to outputs in a run: that of its model, its data and its weights' structure.

    Args:
        model: The model.
        weights: Its params and its state.
        data: Data that it was trained on.
        precision: That of the run.
        step: Updates made.
        progress: Share of the run that is done.
    """
    others = {name: one for name, one in data.arrays.items() if name not in ("inputs", "weights")}
    shapes = jax.tree.map(_shape, others)
    return Forward(model.apply, unflattener(weights), data.prepare, shapes, precision, step, progress)


def _shape(one: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(one.shape, one.dtype)
