"""A model's layers, by tracing one forward pass in evaluation mode: what each puts out, holds and computes."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.traverse_util import flatten_dict

from accelnet.models.effects import intercept_calls
from accelnet.models.linen_layers import replacing
from accelnet.models.nnx_modules import abstract_split
from accelnet.models.pure import at_start, call_arguments
from accelnet.models.replacing import Change
from accelnet.ops.flops import Flops, count_jaxpr_flops

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

    def hold(self, value: Any, *, trainable: bool) -> None:
        """Count the arrays of a variable, but random number state."""
        for array in jax.tree.leaves(value):
            if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
                continue
            self.bytes += array.size * array.dtype.itemsize
            self.parameters += array.size if trainable else 0
            self.state += 0 if trainable else array.size


@dataclass
class LayerTrace:
    """The layers of one traced pass.

    Attributes:
        layers: One for every module.
        entries: For every call, the number of its layer.
        flops: Operations of the pass; scopes are numbered by call.
    """

    layers: list[Layer] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    flops: Flops = field(default_factory=Flops)

    def enter(self, index: int, run: Callable[[], Any]) -> Any:
        """Call layer `index` in a named scope of its own and note its outputs."""
        self.entries.append(index)
        with jax.named_scope(f"{_SCOPE}{len(self.entries) - 1}"):
            outputs = run()
        arrays = [leaf for leaf in jax.tree.leaves(outputs) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
        self.layers[index].output = tuple((tuple(array.shape), str(array.dtype)) for array in arrays)
        return outputs

    def run(self, forward: Callable[..., Any], variables: Any, inputs: Any) -> None:
        """Trace `forward(variables, inputs)` and give every layer the operations of its calls."""
        arrays, rebuild = _split_arrays(inputs)

        def traced(variables: Any, arrays: Any) -> Any:
            outputs = forward(variables, rebuild(arrays))
            return [leaf for leaf in jax.tree.leaves(outputs) if hasattr(leaf, "dtype")]

        self.flops = count_jaxpr_flops(jax.make_jaxpr(traced)(variables, arrays).jaxpr)
        seen: set[int] = set()
        for scope, count in self.flops.scopes.items():
            calls = [int(name.removeprefix(_SCOPE)) for name in scope if name.startswith(_SCOPE)]
            self.layers[self.entries[calls[-1]] if calls else 0].flops += count
            seen.update(calls)
        # Some transformations trace a call more than once: only those that the program kept count, where one did.
        kept = [index for call, index in enumerate(self.entries) if call in seen]
        for index, layer in enumerate(self.layers):
            layer.calls = kept.count(index) or self.entries.count(index)

    def shown(self) -> tuple[Layer, ...]:
        """Return the layers that are called, in the order of their first call, and those that hold variables."""
        order = dict.fromkeys([*self.entries, *range(len(self.layers))])
        return tuple(self.layers[index] for index in order if self.layers[index].calls or self.layers[index].bytes)


_current: ContextVar[LayerTrace] = ContextVar("layer_trace")


def trace_nnx(model: Any, inputs: Any) -> LayerTrace:
    """Trace an nnx module, or what a callable makes."""
    graphdef, state = abstract_split(model)
    trace = LayerTrace()

    def forward(state: Any, inputs: Any) -> Any:
        module: Any = nnx.merge(graphdef, state, copy=True)
        given, named = _arguments(module.__call__, inputs, bound=True)
        for path, submodule in sorted(nnx.iter_modules(module), key=lambda item: _natural(item[0])):
            # A static attribute: it survives the split and merge of nnx.jit, nnx.scan and their like.
            setattr(submodule, _TAG, len(trace.layers))
            trace.layers.append(Layer(".".join(map(str, path)), type(submodule).__name__))
            if callable(submodule):
                intercept_calls(submodule, _enter)
        module.eval()
        token = _current.set(trace)
        try:
            return module(*given, **named)
        finally:
            _current.reset(token)

    trace.run(forward, state, inputs)
    paths = {tuple(layer.path.split(".")) if layer.path else (): layer for layer in trace.layers}
    for path, variable in nnx.to_flat_state(state):
        if not isinstance(variable, nnx.RngState):
            owner = next(paths[p] for p in _prefixes(tuple(map(str, path))) if p in paths)
            value = variable.get_value() if isinstance(variable, nnx.Variable) else variable
            owner.hold(value, trainable=isinstance(variable, nnx.Param))
    return trace


def _enter(layer: Any, run: Callable[[], Any], _args: Any, _kwargs: Any) -> Any:
    return _current.get().enter(getattr(layer, _TAG), run)


def trace_linen(model: linen.Module, inputs: Any, changes: Sequence[Change] = ()) -> LayerTrace:
    """Trace a Linen module, with other layers in the places of its own."""
    model = model if model.scope is None else model.unbind()[0]
    call = type(model).__call__
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    arrays, rebuild = _split_arrays(inputs)

    def init(arrays: Any) -> Any:
        given, named = _arguments(call, rebuild(arrays), bound=False)
        with linen.intercept_methods(replacing(changes)):
            return model.init(keys, *given, **named)

    variables = jax.eval_shape(init, arrays)
    trace = LayerTrace([Layer("", type(model).__name__)])
    indices: dict[Path, int] = {(): 0}

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        path = context.module.path
        if path not in indices:
            indices[path] = len(trace.layers)
            trace.layers.append(Layer(".".join(path), type(context.module).__name__))
        return trace.enter(indices[path], lambda: call(*args, **kwargs))

    def forward(variables: Any, inputs: Any) -> Any:
        with linen.intercept_methods(intercept), linen.intercept_methods(replacing(changes)):
            given, named = _arguments(call, inputs, bound=False)
            return model.apply(variables, *given, rngs=keys, mutable=True, **named)[0]

    trace.run(forward, variables, inputs)
    for (collection, *path), value in flatten_dict(linen.meta.unbox(variables)).items():
        owner = next(indices[p] for p in _prefixes(tuple(path)) if p in indices)
        trace.layers[owner].hold(value, trainable=collection == "params")
    return trace


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


def _prefixes(path: Path) -> Iterator[Path]:
    for end in range(len(path), -1, -1):
        yield path[:end]


def _natural(path: tuple[Any, ...]) -> list[tuple[int, int, str]]:
    """Order paths as a person would: the model first, layers.2 before layers.10."""
    return [(0, int(key), "") if re.fullmatch(r"\d+", str(key)) else (1, 0, str(key)) for key in path]
