"""The table of rules: how each primitive is written."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from accelnet.exporting.onnx.graph import Graph, Value

Rule = Callable[..., Value | list[Value]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Declare a function `(graph, step, *operands) -> result or results` as the rule of primitives."""

    def declare(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return declare


class UnsupportedError(Exception):
    """Report what a rule cannot write; the writer names the line that made it."""


def made(name: str, aval: Any, layout: Sequence[int] | None = None, thin: frozenset[int] = frozenset()) -> Value:
    """Return the value of shape and dtype `aval` that a tensor holds."""
    order = tuple(range(len(aval.shape))) if layout is None else tuple(layout)
    return Value(name, tuple(aval.shape), aval.dtype, order, thin)


def cast(graph: Graph, tensor: str, dtype: Any) -> str:
    """Convert a tensor to a dtype."""
    return graph.add("Cast", tensor, to=np.dtype(dtype))


def scalar(graph: Graph, number: Any, dtype: Any) -> str:
    """Store a number."""
    return graph.store(np.asarray(number, dtype))


def elementwise(graph: Graph, step: Any, values: Sequence[Value], write: Callable[..., str]) -> Value:
    """Write an elementwise operation on operands that are laid alike."""
    tensors, layout, thin = graph.aligned(values)
    return made(write(*tensors), step.out_avals[0], layout, thin)
