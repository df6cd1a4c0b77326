"""From a model's outputs to answers: what is added to them by their kind, within the program."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.ops.classes import argmax, softmax

OUTPUTS = "outputs"
KINDS = ("classes", "labels", "tokens", "numbers", "other")


def kind_of(task: str, outputs: Any) -> str:
    """Return what outputs are: the objective's task, or "other" where they have no form of it.

    Args:
        task: Task of the objective.
        outputs: Outputs of the model, a pytree of arrays or of their shapes.

    Example:
        >>> kind_of("classes", jax.ShapeDtypeStruct((5, 3), np.float32)), kind_of("classes", {"a": 0})
        ('classes', 'other')
    """
    rank = len(outputs.shape) if hasattr(outputs, "shape") else 0
    ranks = {"classes": range(2, 6), "labels": (1, 2), "tokens": (3,), "numbers": (1, 2)}.get(task, ())
    return task if rank in ranks else "other"


def answered(kind: str, outputs: Any, target: Mapping[str, Any] | None) -> dict[str, jax.Array]:
    """Return outputs, and what follows from them.

    Args:
        kind: As of `kind_of`.
        outputs: Outputs of the model.
        target: Mean, deviation and whether a logarithm was taken, where numbers were standardized.

    Returns:
        "outputs", or "outputs.x" for each of a dict; and of classes "probabilities" [B, ..., C] and "classes" [B, ...],
        of labels "probabilities", of tokens the likeliest "tokens" [B, T], of standardized numbers "numbers" in the
        units of the file.

    Example:
        >>> found = answered("classes", jnp.array([[0.0, 1.0]]), None)
        >>> sorted(found), found["classes"].tolist()
        (['classes', 'outputs', 'probabilities'], [1])
    """
    if kind == "other":
        return {name: jnp.asarray(one) for name, one in named_outputs(outputs).items()}
    found = {OUTPUTS: outputs}
    if kind == "classes":
        found["probabilities"] = softmax(outputs)
        found["classes"] = argmax(outputs)
    elif kind == "labels":
        found["probabilities"] = jax.nn.sigmoid(outputs)
    elif kind == "tokens":
        found["tokens"] = argmax(outputs)
    elif target is not None:
        numbers = outputs * np.float32(target["std"]) + np.float32(target["mean"])
        found["numbers"] = jnp.exp(numbers) if target["log"] else numbers
    return found


def named_outputs(outputs: Any) -> dict[str, Any]:
    """Name the arrays of outputs by their place: "outputs", or "outputs.x" for each of a dict.

    Args:
        outputs: Outputs of the model, a pytree of arrays or of their shapes.

    Example:
        >>> named_outputs({"mean": 1, "parts": [2]})
        {'outputs.mean': 1, 'outputs.parts.0': 2}
    """
    leaves = jax.tree_util.tree_flatten_with_path(outputs)[0]
    words = ((jax.tree_util.keystr(keys, simple=True, separator="."), leaf) for keys, leaf in leaves)
    return {f"{OUTPUTS}.{word}" if word else OUTPUTS: leaf for word, leaf in words}
