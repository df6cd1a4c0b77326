"""Which layer of a model is the first to give other results in another runtime."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from accelnet.exporting.difference import of_array
from accelnet.ops.program import Step, evaluate, trace
from accelnet.scopes import classes

Function = Callable[[Any], dict[str, Any]]


def first_difference(
    function: Callable[[Any], Any], rows: Any, run: Callable[[Function, Any], Mapping[str, Any]], tolerance: float
) -> str:
    """Name the first operation whose results differ: every result is an output of what the other runtime runs.

    Args:
        function: Function of inputs, traceable by JAX, with its weights inside.
        rows: Inputs that the outputs differ for, arrays [B, ...].
        run: Function of a function of such inputs, which gives arrays by name, and of the inputs; it returns what the
            other runtime gives.
        tolerance: Share of the largest number within which results count as equal.

    Returns:
        The words, for a message.

    Example:
        >>> def run(function, rows):  # a runtime whose sine is wrong
        ...     return {name: array + (name == "result1") for name, array in function(rows).items()}
        >>> told = first_difference(lambda x: jax.numpy.sin(x + 1) * 2, np.zeros(3, np.float32), run, 1e-4)
        >>> told.partition(" of ")[0], told.rpartition(" by ")[2]
        ('the first to differ is sin', '1.2e+00')
    """
    structure = jax.tree.structure(rows)

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(function(jax.tree.unflatten(structure, leaves)))

    leaves = jax.tree.leaves(rows)
    program = trace(flat, *(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in leaves))

    def results_of(inputs: Any) -> dict[str, Any]:
        _, found = evaluate(program, jax.tree.leaves(inputs))
        floats = [one for step, results in found for _, one in _floats(step, results)]
        return {f"result{number}": one for number, one in enumerate(floats)}

    watched = [step for step in program.steps for _ in _floats(step, step.out_avals)]
    expected, got = results_of(rows), run(results_of, rows)
    for step, (name, one) in zip(watched, expected.items(), strict=True):
        if (difference := of_array(np.asarray(one), np.asarray(got[name]))) > tolerance:
            layer = f"the layer {classes(step.scope)}, " if step.scope else ""
            return f"the first to differ is {layer}{step.name} of {step.line or 'a library'}, by {difference:.1e}"
    return (
        "with every result kept, and with the sizes of these rows, no layer differs: what is wrong is a size that may "
        "be any number, or what the runtime makes of several layers together"
    )


def _floats(step: Step, results: Any) -> list[tuple[Any, Any]]:
    """Return which results of a step are floats, beside others given in the same order."""
    pairs = zip(step.out_avals, results, strict=True)
    return [(aval, one) for aval, one in pairs if jax.numpy.issubdtype(aval.dtype, np.floating)]
