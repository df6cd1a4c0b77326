"""Which kernels are layers of a chain: those of which the weights are known."""

import math
from collections.abc import Callable

from accelnet.ops import kernels
from accelnet.ops.chain import LAYERS, RECURRENCES, ROUNDED, ChainLayer, Operand, Ref
from accelnet.ops.program import Step

_LSTM = 1  # of `Cell` in recurrence.h
_OF_ROWS = ("accelnet_softmax", "accelnet_argmax")


def layer_of_kernel(step: Step, source: Callable[[Ref], Ref], is_known: Callable[[Ref], bool]) -> ChainLayer | None:
    """Return the layer of a step that is a kernel, if there is one and its weights are known.

    Args:
        step: The step.
        source: Function that follows a value through steps that only give it another shape.
        is_known: Whether a value is made of weights alone.
    """
    kernel = step.params["kernel"]
    kind, numbers = kernel.target, tuple(kernel.numbers)
    shapes = [tuple(aval.shape) for aval in step.in_avals]
    if kind not in LAYERS or any(shape[0] != 1 for shape in shapes) or isinstance(kernel.meaning, kernels.Rounding):
        return None
    results = list(zip(step.outputs, (tuple(aval.shape) for aval in step.out_avals), strict=True))
    places, prepares, features = range(1, 2), None, shapes[1][-1] if len(shapes) > 1 else 0
    if kind == "accelnet_multiply":
        if numbers[0]:
            return None
        _, rows, columns = shapes[1]
        features = rows if numbers[1] else columns
        prepares, numbers = (0, numbers[1], *((columns, rows) if numbers[1] else (rows, columns))), (*numbers, 0)
    elif kind == "accelnet_convolve":
        prepares = (1, *shapes[0], *results[0][1], *numbers)
    elif kind in RECURRENCES:
        is_rounded, with_bias = kind in ROUNDED, bool(numbers[4])
        if numbers[2] and not is_rounded:
            return None
        first = 2 + numbers[3] + (numbers[0] == _LSTM)  # behind inputs, tokens, state and memory
        places, features = range(first, first + 1 + is_rounded + with_bias), 0
        if not is_rounded:
            prepares, numbers = (0, 0, *shapes[first][1:]), (*numbers, 0)
    elif kind in ROUNDED:
        places, features = range(1, len(shapes)), shapes[2][-1]
    else:
        places = range(0)
    refs = [source(ref) for ref in step.inputs]
    if not all(is_known(refs[place]) for place in places):
        return None
    # A table, of which tokens choose the rows, is made of weights.
    tables = (0,) if kind in RECURRENCES and numbers[3] else ()
    others = [ref for place, ref in enumerate(refs) if place not in places and place not in tables]
    if any(not isinstance(ref, int) or is_known(ref) for ref in others):
        return None
    if any(not isinstance(refs[place], int) for place in tables):
        return None
    weights = [step.inputs[place] for place in places]
    operands = [
        Operand(None if place in places else number_of(ref), shape)
        for place, (ref, shape) in enumerate(zip(refs, shapes, strict=True))
    ]
    if kind in _OF_ROWS:
        operands = [Operand(operands[0].ref, (math.prod(shapes[0][:-1]), shapes[0][-1]))]
    layer = ChainLayer(kind, operands, results, numbers, weights, prepares, features)
    if kind in ROUNDED and features and len(weights) > 2:
        # A bias is joined as any other is.
        layer.steps.append(("add", layer.weights.pop()))
        layer.operands.pop()
    return layer


def number_of(ref: Ref) -> int:
    """Return the number of a value that a layer reads.

    Example:
        >>> number_of(3)
        3
    """
    assert isinstance(ref, int), "a layer reads what is made before it"
    return ref
