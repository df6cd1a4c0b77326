"""Programs of weights that stay: what the weights alone decide is computed once, and the rest is a program of its own.

A layer's kernel is laid out for the processor, or transformed for Winograd's products, each time that a program is
called; for one row that takes longer than the products. The same holds for what normalization makes of its statistics.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from accelnet.ops.chain import Layer, Ref, call
from accelnet.ops.layers import Layers, is_alias, source_of
from accelnet.ops.program import Constant, Program, Step, flatten, value_of


class Prepared:
    """A function of weights and inputs, of which the weights are given once; called with the inputs.

    Each shape of the inputs is compiled when it is first met, to the CPU's program with kernels, which must be there.

    Args:
        function: Function of weights and inputs, trees of arrays.
        weights: The weights.

    Example:
        >>> from accelnet.ops import kernels
        >>> if kernels.load():
        ...     double = Prepared(lambda weights, x: x @ (2 * weights), jnp.eye(3))
        ...     assert double(jnp.ones((1, 3))).tolist() == [[2.0, 2.0, 2.0]]
    """

    def __init__(self, function: Callable[[Any, Any], Any], weights: Any) -> None:
        self._function, self._weights = function, weights
        self._programs: dict[Any, tuple[Callable[..., Any], Any]] = {}
        self._kept: dict[Any, Array] = {}

    def __call__(self, inputs: Any) -> Any:
        """Compute the outputs for inputs, a tree of arrays."""
        leaves, structure = jax.tree.flatten(inputs)
        key = (structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
        if key not in self._programs:
            self._programs[key] = self._made(inputs)
        late, early = self._programs[key]
        return late(early, inputs)

    @property
    def num_programs(self) -> int:
        """How many programs there are, one per shape of the inputs."""
        return len(self._programs)

    def _made(self, inputs: Any) -> tuple[Callable[..., Any], Any]:
        closed, shapes = jax.make_jaxpr(self._function, return_shape=True)(self._weights, inputs)
        structure = jax.tree.structure(shapes)
        halves = split(flatten(closed, with_kernels=True), len(jax.tree.leaves(self._weights)))
        early = jax.jit(halves.early)(*jax.tree.leaves(self._weights))

        @jax.jit
        def late(early: Any, inputs: Any) -> Any:
            return structure.unflatten(halves.late(early, jax.tree.leaves(inputs)))

        return late, jax.tree.map(self._once, early)

    def _once(self, array: Array) -> Array:
        """Return the array that is kept of those that are alike: programs of other shapes prepare the same."""
        key = (array.shape, array.dtype, hashlib.blake2b(np.asarray(array).tobytes()).digest())
        return self._kept.setdefault(key, array)


class Halves(NamedTuple):
    """The two halves of a program.

    Attributes:
        early: Function from the weights to a tree of arrays.
        late: Function from that tree and the list of inputs to the outputs.
    """

    early: Callable[..., Any]
    late: Callable[[Any, list[Array]], list[Any]]


def split(program: Program, count: int) -> Halves:
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
    items = _grouped(late, Layers(uses, aliases, lambda ref: isinstance(ref, int) and ref in known), aliases)
    layers = [layer for item in items if isinstance(item, list) for layer in item]
    read = {*_values_of(program.outputs), *(ref for item in items for ref in _reads(item))}
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
        values = _Values(zip([*kept, *program.inputs[count:]], [*early[0], *inputs], strict=True), aliases)
        own = iter(early[1])
        for place, item in enumerate(items):
            if isinstance(item, list):
                given = {ref: values[ref] for ref in _reads(item)}
                later = [*_values_of(program.outputs), *(ref for one in items[place + 1 :] for ref in _reads(one))]
                later = {source_of(ref, aliases) for ref in later}
                made = [ref for layer in item for ref, _ in layer.results if ref in later]
                wanted = {ref: jax.ShapeDtypeStruct(avals[ref].shape, avals[ref].dtype) for ref in made}
                values.update(call(item, [next(own) for _ in item], given, wanted))
            else:
                _run(item, values)
        return [value_of(values, ref) for ref in program.outputs]

    return Halves(run_early, run_late)


def _with_numbers(program: Program) -> Program:
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


def _grouped(steps: Sequence[Step], layers: Layers, aliases: Mapping[int, Step]) -> list[Step | list[Layer]]:
    """Join layers to chains; a step that needs none of the layers before it goes in front of their chain."""
    items: list[Step | list[Layer]] = []
    open_chain: list[Layer] = []
    for step in steps:
        found = layers.take(step)
        if isinstance(found, Layer):
            open_chain.append(found)
        if found:
            continue
        made = {ref for layer in open_chain for ref, _ in layer.results}
        if made.intersection(source_of(ref, aliases) for ref in _values_of(step.inputs)):
            items.append(open_chain)
            open_chain = []
        items.append(step)
    return [*items, open_chain] if open_chain else items


def _reads(item: Step | Sequence[Layer]) -> list[int]:
    """Return what a step, or a chain, reads of values from outside."""
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
    """Say whether results are larger than what they are made of, so that they are better made where they are read."""
    return max(aval.size for aval in step.out_avals) > max(aval.size for aval in step.in_avals)
