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

from accelnet.ops import chain, kernels
from accelnet.ops.chain import Layer, Layers, Ref, is_alias
from accelnet.ops.program import Constant, Program, Step, flatten, value_of


class Prepared:
    """A function of weights and inputs, of which the weights are given once; called with the inputs.

    Each shape of the inputs is compiled when it is first met, to the CPU's program with kernels, which must be there.

    Args:
        function: Function of weights and inputs, trees of arrays.
        weights: The weights.

    Example:
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
        refs = [ref for ref in step.inputs if isinstance(ref, int)]
        is_early = bool(refs) and known.issuperset(refs) and not _enlarges(step)
        known.update(step.outputs if is_early else ())
        (early if is_early else late).append(step)
    aliases = {step.outputs[0]: step for step in late if is_alias(step)}
    late = [step for step in late if step.outputs[0] not in aliases]
    uses = Counter(
        source
        for refs in (*(step.inputs for step in late), program.outputs)
        for source in {chain.source_of(ref, aliases) for ref in refs if isinstance(ref, int)}
    )
    items = _grouped(late, Layers(uses, aliases, lambda ref: isinstance(ref, int) and ref in known), aliases)
    layers = [layer for item in items if isinstance(item, list) for layer in item]
    read = {ref for refs in (*map(_reads, items), program.outputs) for ref in refs if isinstance(ref, int)}
    read |= {ref for step in aliases.values() for ref in step.inputs if isinstance(ref, int)}
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
                later = {ref for refs in (*map(_reads, items[place + 1 :]), program.outputs) for ref in refs
                         if isinstance(ref, int)}  # fmt: skip
                later |= {chain.source_of(ref, aliases) for ref in later}
                wanted = {ref: jax.ShapeDtypeStruct(avals[ref].shape, avals[ref].dtype)
                          for layer in item for ref, _ in layer.results if ref in later}  # fmt: skip
                values.update(chain.call(item, [next(own) for _ in item], given, wanted))
            else:
                _run(item, values)
        return [value_of(values, ref) for ref in program.outputs]

    return Halves(run_early, run_late)


def _with_numbers(program: Program) -> Program:
    """Return a program whose single numbers of other types are constants."""
    numbers: dict[int, Constant] = {}
    steps = list[Step]()
    for step in program.steps:
        step = replace(step, inputs=[numbers.get(ref, ref) if isinstance(ref, int) else ref for ref in step.inputs])  # noqa: PLW2901
        if step.name == "convert_element_type" and isinstance(step.inputs[0], Constant) and step.out_avals[0].size == 1:
            (value,) = step.bind(step.inputs[0].value)
            numbers[step.outputs[0]] = Constant(np.asarray(value))
        else:
            steps.append(step)
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
        if found is True:
            continue
        if isinstance(found, Layer):
            open_chain.append(found)
            continue
        made = {ref for layer in open_chain for ref, _ in layer.results}
        if made.intersection(chain.source_of(ref, aliases) for ref in step.inputs if isinstance(ref, int)):
            items.append(open_chain)
            open_chain = []
        items.append(step)
    return [*items, open_chain] if open_chain else items


def _reads(item: Step | Sequence[Layer]) -> list[Ref]:
    """Return what a step, or a chain, reads of values from outside."""
    if isinstance(item, Step):
        return list(item.inputs)
    made = {ref for layer in item for ref, _ in layer.results}
    refs = (operand.ref for layer in item for operand in layer.operands)
    return [ref for ref in dict.fromkeys(refs) if ref is not None and ref not in made]


def _run(step: Step, values: dict[int, Any]) -> None:
    with jax.named_scope(step.scope):
        results = step.bind(*(value_of(values, ref) for ref in step.inputs))
    values.update(zip(step.outputs, results, strict=True))


def _enlarges(step: Step) -> bool:
    """Say whether results are larger than what they are made of, so that they are better made where they are read."""
    return max(aval.size for aval in step.out_avals) > max(aval.size for aval in step.in_avals)
