"""The graph that is being written, and how arrays lie in its tensors."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.exporting.onnx.sizes import is_known, same, terms


@dataclass(frozen=True)
class Value:
    """An array of the program, and the tensor that holds it.

    Transposing and repeating cost nothing until an operation needs them done: an image [N, H, W, C] may lie in its
    tensor as [N, C, H, W], and a bias of every example as [1, features].

    Attributes:
        name: Name of the tensor, "" while a constant is not stored.
        shape: Sizes of the array, symbolic ones among them.
        dtype: Type of its numbers.
        layout: The array's axis that each axis of the tensor holds.
        thin: Axes that have one element in the tensor, which stands for all of them.
        constant: The numbers, where they are known: in the array's own order, thin axes with one element.
    """

    name: str
    shape: tuple[Any, ...]
    dtype: Any
    layout: tuple[int, ...]
    thin: frozenset[int] = frozenset()
    constant: Any = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def axes(self, axes: Sequence[int]) -> list[int]:
        """Return the tensor's axes that hold these of the array."""
        return [self.layout.index(axis) for axis in axes]

    def full(self) -> Any:
        """Return the constant with thin axes repeated."""
        if not self.thin:
            return self.constant
        return np.broadcast_to(self.constant, self.shape)


def constant(array: Any, shape: tuple[Any, ...] | None = None) -> Value:
    """Make a constant of an array; of a `shape` that is larger, its axes of one element are thin."""
    if not jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = np.asarray(array)
    sizes: tuple[Any, ...] = array.shape if shape is None else shape
    thin = frozenset(i for i, (a, b) in enumerate(zip(array.shape, sizes, strict=True)) if a == 1 and not same(b, 1))
    return Value("", sizes, array.dtype, tuple(range(len(sizes))), thin, array)


@dataclass
class Node:
    """One operation of the graph; `bodies` are attributes that are graphs."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    scope: str
    bodies: dict[str, "Graph"] = field(default_factory=dict)


class Graph:
    """Operations in order, and the constants they read.

    Args:
        parent: The graph in which this one is the body of a loop.

    Attributes:
        write: Function of a program, its operands and a graph that writes the program and returns its outputs; the
            root's.
        scope: Layers that the nodes added next belong to.
        splits: By the tensor that a reshape made, what was reshaped, and which of its axes became two: the new axis of
            each one's inner part.
    """

    def __init__(self, parent: "Graph | None" = None) -> None:
        self.nodes: list[Node] = []
        self.root: Graph = self if parent is None else parent.root
        self.scope = "" if parent is None else parent.scope
        self.write: Callable[[Any, Sequence[Value], Graph], list[Value]] | None = None
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[tuple[str, Any, tuple[Any, ...]]] = []
        self.outputs: list[tuple[str, Any, tuple[Any, ...]]] = []
        self.splits: dict[str, tuple[Value, dict[int, int]]] = {}
        self._unsqueezed: dict[str, tuple[Value, frozenset[int]]] = {}
        self._stored: dict[Any, str] = {}
        self._made: dict[Any, str] = {}
        self._sizes: dict[str, str] = {}
        self._count = 0
        self._num_sizes = 0

    def new(self, stem: str) -> str:
        """Return a name that no tensor has yet."""
        self.root._count += 1
        return f"{stem.lower()}_{self.root._count}"

    def add(
        self, op: str, *inputs: str, outputs: int = 1, bodies: dict[str, "Graph"] | None = None, **settings: Any
    ) -> Any:
        """Add an operation and return the name of its result, or with several outputs a list of names."""
        names = [self.new(op) for _ in range(outputs)]
        self.nodes.append(Node(op, list(inputs), names, settings, self.scope, bodies or {}))
        return names[0] if outputs == 1 else names

    def store(self, array: Any) -> str:
        """Store a constant tensor, small equal ones once, and return its name."""
        array = np.asarray(array)
        key = array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest()
        root = self.root
        if key not in root._stored:
            name = root.new("constant")
            root.constants[name] = np.ascontiguousarray(array).reshape(array.shape)
            root._stored[key] = name
        return root._stored[key]

    def ints(self, numbers: Sequence[int]) -> str:
        """Store whole numbers as the axes, starts or shapes that operations read."""
        return self.store(np.array(numbers, np.int64))

    def tensor(self, value: Value, layout: Sequence[int] | None = None, *, spread: bool = True) -> str:
        """Return the tensor that holds a value in a layout, its own order if None.

        Args:
            value: The value.
            layout: The array's axis that each axis of the tensor shall hold.
            spread: Whether thin axes get all their elements.
        """
        layout = tuple(range(value.rank)) if layout is None else tuple(layout)
        thin = value.thin if spread else frozenset()
        if value.constant is not None:
            array, known = value.constant, all(is_known(value.shape[axis]) for axis in thin)
            if thin and known:
                array, thin = np.broadcast_to(array, value.shape), frozenset()
            name = self.store(np.transpose(array, layout))
        else:
            name = value.name
            if value.layout != layout:
                name = self._once("Transpose", name, perm=[value.layout.index(axis) for axis in layout])
        if thin:
            name = self.add("Expand", name, self.shape([value.shape[axis] for axis in layout]))
        return name

    def aligned(self, values: Sequence[Value]) -> tuple[list[str], tuple[int, ...], frozenset[int]]:
        """Lay operands of an elementwise operation alike.

        Returns:
            Their tensors, the layout, and the axes that are thin in all of them.
        """
        rank = max(value.rank for value in values)
        full = [value for value in values if value.rank == rank]
        lead = min(full, key=lambda value: (value.constant is not None, len(value.thin)))
        layout = tuple(range(rank)) if lead.constant is not None else lead.layout
        tensors = [self.tensor(v, layout if v.rank == rank else (), spread=False) for v in values]
        thin = frozenset.intersection(*(value.thin for value in full))
        return tensors, layout, thin

    def squeeze(self, value: Value, axes: Sequence[int]) -> Value:
        """Drop axes of one element, or thin ones of which one is meant."""
        if not axes:
            return value
        kept = [axis for axis in range(value.rank) if axis not in axes]
        shape = tuple(value.shape[axis] for axis in kept)
        thin = frozenset(kept.index(axis) for axis in value.thin & set(kept))
        before, added = self._unsqueezed.get(value.name, (value, frozenset()))
        if added == set(axes):
            return replace(before, shape=shape, thin=thin)
        if value.constant is not None:
            return replace(constant(np.squeeze(value.constant, tuple(axes))), shape=shape, thin=thin)
        name = self.add("Squeeze", value.name, self.ints(sorted(value.axes(axes))))
        layout = tuple(kept.index(axis) for axis in value.layout if axis in kept)
        return Value(name, shape, value.dtype, layout, thin)

    def unsqueeze(self, value: Value, axes: Sequence[int]) -> Value:
        """Add axes of one element at these places of the result."""
        if not axes:
            return value
        rank = value.rank + len(axes)
        kept = [axis for axis in range(rank) if axis not in axes]
        shape = [1] * rank
        for axis, size in zip(kept, value.shape, strict=True):
            shape[axis] = size
        thin = frozenset(kept[axis] for axis in value.thin)
        if value.constant is not None:
            return replace(constant(np.expand_dims(value.constant, tuple(axes))), shape=tuple(shape), thin=thin)
        plain = value.layout == tuple(range(value.rank))
        places = sorted(axes) if plain else list(range(value.rank, rank))
        name = self.add("Unsqueeze", value.name, self.ints(places))
        self._unsqueezed[name] = value, frozenset(axes)
        layout = tuple(range(rank)) if plain else (*(kept[axis] for axis in value.layout), *sorted(axes))
        return Value(name, tuple(shape), value.dtype, layout, thin)

    def reshape(self, tensor: str, shape: Sequence[Any]) -> str:
        """Reshape a tensor; one unknown size follows from the others."""
        unknown = [axis for axis, size in enumerate(shape) if not is_known(size)]
        if len(unknown) == 1 and 0 not in [size for size in shape if is_known(size)]:
            return self.add("Reshape", tensor, self.ints([size if is_known(size) else -1 for size in shape]))
        return self.add("Reshape", tensor, self.shape(shape))

    def shape(self, sizes: Sequence[Any]) -> str:
        """Return the tensor int64[len(sizes)] of sizes."""
        if all(is_known(size) for size in sizes):
            return self.ints([int(size) for size in sizes])
        parts = [self.size(size) for size in sizes]
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=0)

    def size(self, size: Any) -> str:
        """Return the tensor int64[1] of a size, computed from the shapes of the graph's inputs."""
        if is_known(size):
            return self.ints([int(size)])
        root, key = self.root, str(size)
        if key not in root._sizes:
            start = len(root.nodes)
            root._sizes[key] = terms(key, root._variable, root.ints, root.add)
            # Before all else, where bodies of loops can see it too.
            made = root.nodes[start:]
            del root.nodes[start:]
            root.nodes[root._num_sizes : root._num_sizes] = made
            root._num_sizes += len(made)
        return root._sizes[key]

    def _variable(self, name: str) -> str:
        """Read the size of this name from the shape of an input."""
        for tensor, _, shape in self.inputs:
            for axis, size in enumerate(shape):
                if str(size) == name:
                    return self.add("Shape", tensor, start=axis, end=axis + 1)
        raise KeyError(name)

    def _once(self, op: str, tensor: str, **settings: Any) -> str:
        key = op, tensor, str(settings)
        if key not in self._made:
            self._made[key] = self.add(op, tensor, **settings)
        return self._made[key]
