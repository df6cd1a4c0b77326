"""Programs of weights that stay: what the weights alone decide is computed once, and the rest is a program of its own.

A layer's kernel is laid out for the processor, or transformed for Winograd's products, each time that a program is
called; for one row that takes longer than the products. The same holds for what normalization makes of its statistics.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from accelnet.ops.chain import LIGHT, Layer, Ref, call, encode
from accelnet.ops.host_call import HostCall, as_read, takes
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
        self._programs: dict[Any, _Compiled] = {}
        self._kept: dict[Any, Array] = {}

    def __call__(self, inputs: Any) -> Any:
        """Compute the outputs for inputs, a tree of arrays.

        Where all layers are one chain and all inputs NumPy arrays, it is called without XLA, and outputs are NumPy
        arrays, too.
        """
        leaves, program = self._of(inputs)
        if program.host is not None and all(type(leaf) is np.ndarray for leaf in leaves):
            return program.host(leaves)
        return program.late(program.early, inputs)

    @property
    def num_programs(self) -> int:
        """How many programs there are, one per shape of the inputs."""
        return len(self._programs)

    def num_bytes(self, inputs: Any) -> int:
        """Count the memory of a call: prepared weights, inputs, outputs and what lies between, without the kernels'.

        Args:
            inputs: Inputs of the call, or their shapes.
        """
        leaves, program = self._of(inputs)
        if program.host is not None:
            weights = sum(leaf.nbytes for leaf in jax.tree.leaves(program.early))
            return weights + sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) + program.host.num_bytes
        memory: Any = program.late.lower(program.early, inputs).compile().memory_analysis()
        return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes

    def _of(self, inputs: Any) -> tuple[list[Any], "_Compiled"]:
        if type(inputs) is np.ndarray:
            leaves, key = [inputs], (inputs.shape, inputs.dtype)
        else:
            leaves, structure = jax.tree.flatten(inputs)
            key = (structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = self._made(inputs)
        return leaves, program

    def _made(self, inputs: Any) -> "_Compiled":
        closed, shapes = jax.make_jaxpr(self._function, return_shape=True)(self._weights, inputs)
        structure = jax.tree.structure(shapes)
        halves = split(flatten(closed, with_kernels=True), len(jax.tree.leaves(self._weights)))
        early = jax.tree.map(self._once, jax.jit(halves.early)(*jax.tree.leaves(self._weights)))

        @jax.jit
        def late(early: Any, inputs: Any) -> Any:
            return structure.unflatten(halves.late(early, jax.tree.leaves(inputs)))

        host, leaves = None, jax.tree.leaves(inputs)
        if halves.whole is not None and all(takes(leaf.dtype) for leaf in leaves):
            host = _OnHost(halves.whole, early, leaves, structure)
        return _Compiled(late, early, host)

    def _once(self, array: Array) -> Array:
        """Return the array that is kept of those that are alike: programs of other shapes prepare the same."""
        key = (array.shape, array.dtype, hashlib.blake2b(np.asarray(array).tobytes()).digest())
        return self._kept.setdefault(key, array)


class Halves(NamedTuple):
    """The two halves of a program.

    Attributes:
        early: Function from the weights to a tree of arrays.
        late: Function from that tree and the list of inputs to the outputs.
        whole: The late half as one chain, if it is no more than that.
    """

    early: Callable[..., Any]
    late: Callable[[Any, list[Array]], list[Any]]
    whole: "_Whole | None"


class _Whole(NamedTuple):
    """A program whose late half is one chain, beside steps that compute the same every time.

    Attributes:
        layers: Layers of the chain.
        fixed: Function from what is computed early to the values that the chain reads beside inputs, by number.
        inputs: Numbers of the program's inputs.
        outputs: Number of each output's value, with its shape and dtype.
    """

    layers: list[Layer]
    fixed: Callable[[Any], dict[int, Any]]
    inputs: list[int]
    outputs: list[tuple[int, Any]]


class _OnHost:
    """A whole program called from Python without XLA, with NumPy arrays."""

    def __init__(self, whole: _Whole, early: Any, leaves: Sequence[Any], structure: Any) -> None:
        given = _reads(whole.layers)
        fixed = {ref: np.asarray(value) for ref, value in whole.fixed(early).items()}
        dtypes = {ref: np.dtype(leaf.dtype) for ref, leaf in zip(whole.inputs, leaves, strict=True)}
        refs = {ref: aval for ref, aval in whole.outputs}
        shapes = [[array.shape for array in arrays] for arrays in early[1]]
        own = [np.asarray(array) for arrays in early[1] for array in arrays]
        self._call = HostCall(
            encode(whole.layers, shapes, given, list(refs)),
            [*(fixed[ref] if ref in fixed else dtypes[ref] for ref in given), *own],
            [(aval.shape, aval.dtype) for aval in refs.values()],
        )
        self._places = [whole.inputs.index(ref) for ref in given if ref not in fixed]
        numbers = list(refs)
        self._outputs = [(numbers.index(ref), aval.shape) for ref, aval in whole.outputs]
        self._structure = structure
        self.num_bytes = sum(aval.size * aval.dtype.itemsize for aval in refs.values())

    def __call__(self, leaves: Sequence[np.ndarray]) -> Any:
        results = self._call(*[as_read(leaves[place]) for place in self._places])
        return self._structure.unflatten([results[number].reshape(shape) for number, shape in self._outputs])


class _Compiled(NamedTuple):
    """The program of one shape of inputs.

    Attributes:
        late: Function from what is computed early and the inputs to the outputs.
        early: What is computed early.
        host: The same for NumPy arrays, without XLA, where there is one.
    """

    late: Any
    early: Any
    host: _OnHost | None


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
    own_inputs = program.inputs[count:]
    items = _grouped(late, Layers(uses, aliases, lambda ref: isinstance(ref, int) and ref in known, own_inputs), aliases)
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
        values = _Values(zip([*kept, *own_inputs], [*early[0], *inputs], strict=True), aliases)
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

    whole = _whole(items, program.outputs, own_inputs, kept, aliases, avals)
    return Halves(run_early, run_late, whole)


def _whole(
    items: Sequence[Step | list[Layer]],
    outputs: Sequence[Ref],
    inputs: list[int],
    kept: Sequence[int],
    aliases: Mapping[int, Step],
    avals: Mapping[int, Any],
) -> _Whole | None:
    """Return a program as one chain, if nothing else in it depends on the inputs."""
    fixed, steps, layers = set(kept), list[Step](), list[list[Layer]]()
    for item in items:
        if isinstance(item, list):
            layers.append(item)
        elif fixed.issuperset(source_of(ref, aliases) for ref in _values_of(item.inputs)):
            steps.append(item)
            fixed.update(item.outputs)
        else:
            return None
    made = {ref for layer in layers[0] for ref, _ in layer.results} if len(layers) == 1 else set[int]()
    found = [(source_of(ref, aliases), ref) for ref in outputs]
    if not found or any(source not in made or not isinstance(ref, int) for source, ref in found):
        return None
    read = [ref for ref in _reads(layers[0]) if ref not in inputs]

    def values(early: Any) -> dict[int, Any]:
        values = _Values(zip(kept, early[0], strict=True), aliases)
        for step in steps:
            _run(step, values)
        return {ref: values[ref] for ref in read}

    return _Whole(layers[0], jax.jit(values) if steps else values, inputs, [(source, avals[ref]) for source, ref in found])




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
    return list(itertools.chain.from_iterable(map(_worth_a_call, [*items, open_chain])))


def _worth_a_call(item: Step | list[Layer]) -> list[Any]:
    """Return a chain, or the steps of one that has nothing but light layers."""
    if isinstance(item, Step) or not all(layer.kind in LIGHT for layer in item):
        return [item]
    return [step for layer in item for step in layer.made_of]


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
