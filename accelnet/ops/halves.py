"""The two halves of a program: what its weights alone decide, and the rest, whose layers are chains."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from accelnet.ops.chain import LIGHT, ChainLayer, Ref, call
from accelnet.ops.layers import Layers, is_alias, source_of
from accelnet.ops.program import Constant, FlatProgram, Step, value_of


class Whole(NamedTuple):
    """A program whose late half is one chain, beside steps that compute the same every time.

    Attributes:
        layers: Layers of the chain.
        fixed: Function from what is computed early to the values that the chain reads beside inputs, by number.
        inputs: Numbers of the program's inputs.
        outputs: Number of each output's value, with its shape and dtype.
    """

    layers: list[ChainLayer]
    fixed: Callable[[Any], dict[int, Any]]
    inputs: list[int]
    outputs: list[tuple[int, Any]]


class Halves(NamedTuple):
    """The two halves of a program.

    Attributes:
        early: Function from the weights to a tree of arrays.
        late: Function from that tree and the list of inputs to the outputs.
        whole: The late half as one chain, if it is no more than that.
    """

    early: Callable[..., Any]
    late: Callable[[Any, list[Array]], list[Any]]
    whole: Whole | None


def split(program: FlatProgram, count: int) -> Halves:
    """Split a program into what its first operands alone decide, and the rest, whose layers are chains.

    Args:
        program: Flat program, whose kernels are steps.
        count: How many of its operands are weights.
    """
    program = _with_numbers(program)
    known = set(program.inputs[:count])
    early, late = list[Step](), list[Step]()
    for step in program.steps:
        refs = _values_of(step.inputs)
        is_early = bool(refs) and known.issuperset(refs) and not _enlarges(step)
        known.update(step.outputs if is_early else ())
        (early if is_early else late).append(step)
    aliases = {step.outputs[0]: step for step in late if is_alias(step)}
    late = [step for step in late if step.outputs[0] not in aliases]
    uses = Counter(
        source
        for refs in (*(step.inputs for step in late), program.outputs)
        for source in {source_of(ref, aliases) for ref in _values_of(refs)}
    )
    own_inputs = program.inputs[count:]
    found = Layers(uses, aliases, lambda ref: isinstance(ref, int) and ref in known, own_inputs)
    items = _grouped(late, found, aliases)
    layers = [layer for item in items if isinstance(item, list) for layer in item]
    read = {*_values_of(program.outputs), *(ref for item in items for ref in reads(item))}
    read.update(ref for step in aliases.values() for ref in _values_of(step.inputs))
    kept = [ref for ref in program.inputs[:count] + [ref for step in early for ref in step.outputs] if ref in read]
    avals = {ref: aval for step in program.steps for ref, aval in zip(step.outputs, step.out_avals, strict=True)}

    def run_early(*weights: Array) -> Any:
        values = dict(zip(program.inputs, weights, strict=False))
        for step in early:
            _run(step, values)
        made = [layer.early(lambda ref: jnp.asarray(value_of(values, ref))) for layer in layers]
        return [values[ref] for ref in kept], made

    def run_late(early: Any, inputs: list[Array]) -> list[Any]:
        values = _Values(zip([*kept, *own_inputs], [*early[0], *inputs], strict=True), aliases)
        own = iter(early[1])
        for place, item in enumerate(items):
            if isinstance(item, list):
                given = {ref: values[ref] for ref in reads(item)}
                later = [*_values_of(program.outputs), *(ref for one in items[place + 1 :] for ref in reads(one))]
                later = {source_of(ref, aliases) for ref in later}
                made = [ref for layer in item for ref, _ in layer.results if ref in later]
                wanted = {ref: jax.ShapeDtypeStruct(avals[ref].shape, avals[ref].dtype) for ref in made}
                values.update(call(item, [next(own) for _ in item], given, wanted))
            else:
                _run(item, values)
        return [value_of(values, ref) for ref in program.outputs]

    whole = _whole(items, program.outputs, own_inputs, kept, aliases, avals)
    return Halves(run_early, run_late, whole)


def _whole(
    items: Sequence[Step | list[ChainLayer]],
    outputs: Sequence[Ref],
    inputs: list[int],
    kept: Sequence[int],
    aliases: Mapping[int, Step],
    avals: Mapping[int, Any],
) -> Whole | None:
    """Return a program as one chain, if nothing else in it depends on the inputs."""
    fixed, steps, layers = set(kept), list[Step](), list[list[ChainLayer]]()
    for item in items:
        if isinstance(item, list):
            layers.append(item)
        elif fixed.issuperset(source_of(ref, aliases) for ref in _values_of(item.inputs)):
            steps.append(item)
            fixed.update(item.outputs)
        else:
            return None
    made = {ref for layer in layers[0] for ref, _ in layer.results} if len(layers) == 1 else set[int]()
    found = [(source_of(ref, aliases), avals[ref]) for ref in outputs if isinstance(ref, int) and ref in avals]
    if not found or len(found) < len(outputs) or any(source not in made for source, _ in found):
        return None
    read = [ref for ref in reads(layers[0]) if ref not in inputs]

    def values(early: Any) -> dict[int, Any]:
        values = _Values(zip(kept, early[0], strict=True), aliases)
        for step in steps:
            _run(step, values)
        return {ref: values[ref] for ref in read}

    return Whole(layers[0], jax.jit(values) if steps else values, inputs, found)


def _with_numbers(program: FlatProgram) -> FlatProgram:
    """Return a program whose single numbers of other types are constants."""
    numbers: dict[int, Constant] = {}
    steps = list[Step]()
    for step in program.steps:
        inputs = [numbers.get(ref, ref) if isinstance(ref, int) else ref for ref in step.inputs]
        if step.name == "convert_element_type" and isinstance(inputs[0], Constant) and step.out_avals[0].size == 1:
            (value,) = step.bind(inputs[0].value)
            numbers[step.outputs[0]] = Constant(np.asarray(value))
        else:
            steps.append(replace(step, inputs=inputs))
    outputs = [numbers.get(ref, ref) if isinstance(ref, int) else ref for ref in program.outputs]
    return replace(program, steps=steps, outputs=outputs)


class _Values(dict[int, Any]):
    """Values by number; those that are another one in another shape are made when they are read."""

    def __init__(self, values: Any, aliases: Mapping[int, Step]) -> None:
        super().__init__(values)
        self._aliases = aliases

    def __missing__(self, ref: int) -> Any:
        _run(self._aliases[ref], self)
        return self[ref]


def _grouped(steps: Sequence[Step], layers: Layers, aliases: Mapping[int, Step]) -> list[Step | list[ChainLayer]]:
    """Join layers to chains; a step that needs none of the layers before it goes in front of their chain."""
    items: list[Step | list[ChainLayer]] = []
    open_chain: list[ChainLayer] = []
    for step in steps:
        found = layers.take(step)
        if isinstance(found, ChainLayer):
            open_chain.append(found)
        if found:
            continue
        made = {ref for layer in open_chain for ref, _ in layer.results}
        if made.intersection(source_of(ref, aliases) for ref in _values_of(step.inputs)):
            items.append(open_chain)
            open_chain = []
        items.append(step)
    return list(itertools.chain.from_iterable(map(_worth_a_call, [*items, open_chain])))


def _worth_a_call(item: Step | list[ChainLayer]) -> list[Any]:
    """Return a chain, or the steps of one that has nothing but light layers."""
    if isinstance(item, Step) or not all(layer.kind in LIGHT for layer in item):
        return [item]
    return [step for layer in item for step in layer.made_of]


def reads(item: Step | Sequence[ChainLayer]) -> list[int]:
    """Return what a step, or a chain, reads of values from outside.

    Example:
        >>> from accelnet.ops.chain import Operand
        >>> reads([ChainLayer("add", [Operand(3, (1, 4)), Operand(5, (1, 4))], [(6, (1, 4))])])
        [3, 5]
    """
    if isinstance(item, Step):
        return _values_of(item.inputs)
    made = {ref for layer in item for ref, _ in layer.results}
    refs = (operand.ref for layer in item for operand in layer.operands)
    return [ref for ref in dict.fromkeys(refs) if ref is not None and ref not in made]


def _values_of(refs: Sequence[Ref]) -> list[int]:
    """Leave out constants."""
    return [ref for ref in refs if isinstance(ref, int)]


def _run(step: Step, values: dict[int, Any]) -> None:
    with jax.named_scope(step.scope):
        results = step.bind(*(value_of(values, ref) for ref in step.inputs))
    values.update(zip(step.outputs, results, strict=True))


def _enlarges(step: Step) -> bool:
    """Say whether results are far larger than what they are made of, so that they are better made where they are read.

    Weights of 4 bits that become floats, and the biases of a GRU, of which two thirds are zeros, are not.
    """
    return max(aval.size for aval in step.out_avals) > 4 * sum(aval.size for aval in step.in_avals)
