"""Describe a model layer by layer, without allocating its parameters."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import rich.box
import rich.table
from flax import linen, nnx
from flax.traverse_util import flatten_dict

from accelnet.models.adapter import adapt
from accelnet.models.nnx_modules import abstract_split
from accelnet.models.pure import PureModel, at_start, call_arguments
from accelnet.ops.flops import Flops, count_jaxpr_flops
from accelnet.terminal import rendered

_SCOPE = "accelnet-layer-"
_TAG = "_accelnet_layer"

Path = tuple[str, ...]


@dataclass
class Layer:
    """Describe one module of a model; parameters and FLOPs are its own, without those of its submodules.

    Attributes:
        path: Where the module hangs in the model, joined by dots; "" is the model itself.
        type: Name of its class.
        output: Shape and dtype of each output of its last call, `((shape, dtype), ...)`; empty if not called.
        parameters: Number of trainable numbers.
        state: Number of other numbers (batch statistics); random number state is left out.
        bytes: Memory of both.
        flops: Floating-point operations of all its calls in one forward pass.
        calls: In how many places of the program it is called; the body of a loop is one place.

    Example:
        >>> Layer("", "Linear", (((1, 2), "float32"),), parameters=8).parameters
        8
    """

    path: str
    type: str
    output: tuple[tuple[tuple[int, ...], str], ...] = ()
    parameters: int = 0
    state: int = 0
    bytes: int = 0
    flops: int = 0
    calls: int = 0


@dataclass(frozen=True)
class Summary:
    """Hold a model's layers and totals; `str` gives a table at most 100 columns wide.

    Attributes:
        layers: The modules that were called, in the order of their first call, and those that only hold
            variables. Their numbers add up to the totals.
        parameters: Trainable numbers; shared ones count once.
        state: Other numbers, without random number state.
        bytes: Memory of both.
        flops: Floating-point operations of one forward pass in evaluation mode on the given inputs, shared
            layers for every use. For what counts see `accelnet.ops.flops.count_flops`.
        unknown_loops: Where it is not zero, FLOPs are a lower bound.

    Example:
        >>> Summary((), parameters=0, state=0, bytes=0, flops=0, unknown_loops=0).to_dict()["layers"]
        []
    """

    layers: tuple[Layer, ...]
    parameters: int
    state: int
    bytes: int
    flops: int
    unknown_loops: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dicts, lists, strings and integers, ready for JSON."""
        values = asdict(self)
        values["layers"] = [
            {**layer, "output": [{"shape": list(shape), "dtype": dtype} for shape, dtype in layer["output"]]}
            for layer in values["layers"]
        ]
        return values

    def __str__(self) -> str:
        table = rich.table.Table(box=rich.box.SIMPLE, show_footer=True, show_edge=False, pad_edge=False)
        total = [f"{self.parameters:,}", _amount(self.bytes, "B"), _amount(self.flops, "")]
        table.add_column("layer", "total", overflow="fold")
        table.add_column("type", overflow="fold")
        table.add_column("output", overflow="fold")
        for name, footer in zip(("parameters", "bytes", "FLOPs"), total, strict=True):
            table.add_column(name, footer, justify="right", no_wrap=True)
        for layer in self.layers:
            calls = f" x{layer.calls}" if layer.calls > 1 else ""
            output = "\n".join(f"{dtype}[{','.join(map(str, shape))}]" for shape, dtype in layer.output)
            numbers = f"{layer.parameters:,}" if layer.parameters else ""
            size = _amount(layer.bytes, "B") if layer.bytes else ""
            flops = _amount(layer.flops, "") if layer.flops else ""
            table.add_row(layer.path or "(model)", layer.type + calls, output, numbers, size, flops)
        text = rendered(table)
        notes = f"\n{self.parameters:,} trainable, {self.state:,} in other state; FLOPs of one forward pass"
        if self.unknown_loops:
            notes += f", at least: {self.unknown_loops} loop(s) of unknown length counted once"
        return text + notes


def summary(model: Any, inputs: Any) -> Summary:
    """Describe a model layer by layer: output, parameters, bytes and FLOPs of a forward pass.

    The model is traced in evaluation mode on abstract arrays; nothing is allocated or run.

    Args:
        model: A callable `model(rngs=nnx.Rngs) -> nnx.Module`, an `nnx.Module`, or a Linen module.
        inputs: An array or `jax.ShapeDtypeStruct` [batch, ...], or a dict of the model's keyword arguments.

    Returns:
        The `Summary`.

    Raises:
        UserError: If `model` is none of these.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> print(summary(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), jnp.ones((5, 3))))
        layer     type     output         parameters   bytes   FLOPs
        ────────────────────────────────────────────────────────────
        (model)   Linear   float32[5,2]            8    32 B      70
        ────────────────────────────────────────────────────────────
        total                                      8    32 B      70
        8 trainable, 0 in other state; FLOPs of one forward pass
    """
    if isinstance(model, PureModel):
        model = model.source
    if isinstance(model, linen.Module):
        layers, entries, flops = _describe_linen(model if model.scope is None else model.unbind()[0], inputs)
    else:
        adapt(model)  # says what is wrong with it
        layers, entries, flops = _describe_nnx(*abstract_split(model), inputs)
    seen: set[int] = set()
    for scope, count in flops.scopes.items():
        calls = [int(name.removeprefix(_SCOPE)) for name in scope if name.startswith(_SCOPE)]
        layers[entries[calls[-1]] if calls else 0].flops += count
        seen.update(calls)
    # Some transformations trace a call more than once: only those that the program kept count, where one did.
    kept = [index for call, index in enumerate(entries) if call in seen]
    for index, layer in enumerate(layers):
        layer.calls = kept.count(index) or entries.count(index)
    order = dict.fromkeys([*entries, *range(len(layers))])
    shown = tuple(layers[index] for index in order if layers[index].calls or layers[index].bytes)
    return Summary(
        layers=shown,
        parameters=sum(layer.parameters for layer in shown),
        state=sum(layer.state for layer in shown),
        bytes=sum(layer.bytes for layer in shown),
        flops=flops.total,
        unknown_loops=flops.unknown_loops,
    )


def _describe_nnx(graphdef: Any, state: nnx.State, inputs: Any) -> tuple[list[Layer], list[int], Flops]:
    layers: list[Layer] = []
    entries: list[int] = []
    classes: set[type] = set()

    def forward(state: Any, arrays: Any) -> Any:
        module = nnx.merge(graphdef, state, copy=True)
        for path, submodule in sorted(nnx.iter_modules(module), key=lambda item: _natural(item[0])):
            # A static attribute: it survives the split and merge of nnx.jit, nnx.scan and their like.
            setattr(submodule, _TAG, len(layers))
            layers.append(Layer(".".join(map(str, path)), type(submodule).__name__))
            classes.add(type(submodule))
        module.eval()
        with _patched_calls(classes, layers, entries):
            given, named = _arguments(module.__call__, arrays, bound=True)
            return module(*given, **named)

    flops = _trace(forward, inputs, state)
    paths = {tuple(layer.path.split(".")) if layer.path else (): layer for layer in layers}
    for path, variable in nnx.to_flat_state(state):
        if not isinstance(variable, nnx.RngState):
            owner = next(paths[p] for p in _prefixes(tuple(map(str, path))) if p in paths)
            value = variable.get_value() if isinstance(variable, nnx.Variable) else variable
            _add_variable(owner, value, trainable=isinstance(variable, nnx.Param))
    return layers, entries, flops


@contextlib.contextmanager
def _patched_calls(classes: set[type], layers: list[Layer], entries: list[int]) -> Iterator[None]:
    """Let every call of a tagged module of these classes run in a scope of its own; undone on every exit."""
    # Resolved before any class is patched, so that a class which inherits its call is not wrapped twice.
    calls = {cls: call for cls in classes if (call := _call_of(cls))}
    originals = {cls: vars(cls).get("__call__") for cls in calls}
    active: list[int] = []

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            index = getattr(self, _TAG, None)
            # Already inside this module's call: a call of super() is no second use.
            if index is None or (active and active[-1] == index):
                return call(self, *args, **kwargs)
            active.append(index)
            try:
                with _scope(index, entries):
                    outputs = call(self, *args, **kwargs)
            finally:
                active.pop()
            _record(layers[index], outputs)
            return outputs

        return wrapped

    try:
        for cls, call in calls.items():
            setattr(cls, "__call__", wrap(call))  # noqa: B010 - pyright refuses the plain assignment
        yield
    finally:
        for cls, original in originals.items():
            if original is not None:
                setattr(cls, "__call__", original)  # noqa: B010
            elif "__call__" in cls.__dict__:
                delattr(cls, "__call__")


def _call_of(cls: type) -> Callable[..., Any] | None:
    return next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)


def _describe_linen(model: linen.Module, inputs: Any) -> tuple[list[Layer], list[int], Flops]:
    call = type(model).__call__
    arrays, rebuild = _split_arrays(inputs)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

    def init(arrays: Any) -> Any:
        given, named = _arguments(call, rebuild(arrays), bound=False)
        return model.init(keys, *given, **named)

    variables = jax.eval_shape(init, arrays)
    layers = [Layer("", type(model).__name__)]
    indices: dict[Path, int] = {(): 0}
    entries: list[int] = []

    def index_of(path: Path, kind: str) -> int:
        if path not in indices:
            indices[path] = len(layers)
            layers.append(Layer(".".join(path), kind))
        return indices[path]

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        index = index_of(context.module.path, type(context.module).__name__)
        with _scope(index, entries):
            outputs = call(*args, **kwargs)
        _record(layers[index], outputs)
        return outputs

    def forward(variables: Any, arrays: Any) -> Any:
        with linen.intercept_methods(intercept):
            given, named = _arguments(call, arrays, bound=False)
            return model.apply(variables, *given, rngs=keys, mutable=True, **named)[0]

    flops = _trace(forward, inputs, variables)
    for (collection, *path), value in flatten_dict(linen.meta.unbox(variables)).items():
        owner = next(indices[p] for p in _prefixes(tuple(path)) if p in indices)
        _add_variable(layers[owner], value, trainable=collection == "params")
    return layers, entries, flops


def _scope(index: int, entries: list[int]) -> contextlib.AbstractContextManager[Any]:
    """Enter a named scope for one call of layer `index`; scopes are numbered by call."""
    entries.append(index)
    return jax.named_scope(f"{_SCOPE}{len(entries) - 1}")


def _trace(forward: Callable[..., Any], inputs: Any, variables: Any) -> Flops:
    arrays, rebuild = _split_arrays(inputs)

    def traced(variables: Any, arrays: Any) -> Any:
        outputs = forward(variables, rebuild(arrays))
        return [leaf for leaf in jax.tree.leaves(outputs) if hasattr(leaf, "dtype")]

    return count_jaxpr_flops(jax.make_jaxpr(traced)(variables, arrays).jaxpr)


def _split_arrays(inputs: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """Split inputs into abstract arrays and the rest, which stays as it is (a bool flag, None)."""
    leaves, structure = jax.tree.flatten(inputs)
    is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x, yes in zip(leaves, is_array, strict=True) if yes]

    def rebuild(arrays: list[Any]) -> Any:
        remaining = iter(arrays)
        mixed = [next(remaining) if yes else x for x, yes in zip(leaves, is_array, strict=True)]
        return jax.tree.unflatten(structure, mixed)

    return arrays, rebuild


def _arguments(call: Callable[..., Any], inputs: Any, *, bound: bool) -> tuple[list[Any], dict[str, Any]]:
    return call_arguments(call, inputs, at_start(jax.random.key(0)), bound=bound)


def _record(layer: Layer, outputs: Any) -> None:
    arrays = [leaf for leaf in jax.tree.leaves(outputs) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
    layer.output = tuple((tuple(array.shape), str(array.dtype)) for array in arrays)


def _add_variable(layer: Layer, value: Any, *, trainable: bool) -> None:
    for array in jax.tree.leaves(value):
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            continue
        layer.bytes += array.size * array.dtype.itemsize
        if trainable:
            layer.parameters += array.size
        else:
            layer.state += array.size


def _prefixes(path: Path) -> Iterator[Path]:
    for end in range(len(path), -1, -1):
        yield path[:end]


def _natural(path: tuple[Any, ...]) -> list[tuple[int, int, str]]:
    """Order paths as a person would: the model first, layers.2 before layers.10."""
    return [(0, int(key), "") if re.fullmatch(r"\d+", str(key)) else (1, 0, str(key)) for key in path]


def _amount(number: int, unit: str) -> str:
    for prefix, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {prefix}{unit}"
    return f"{number} {unit}".rstrip()
