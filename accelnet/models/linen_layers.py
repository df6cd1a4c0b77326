"""Layers of nnx in the places of a Linen module's own, which make their parameters where they are called.

Flax's Dense, DenseGeneral, Conv and Embed of Linen have twins in nnx, whose parameters have the same names and shapes.
What is made of a layer, of low rank or of few bits, is made of its twin, and computes in its place.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import linen, nnx
from flax.linen.dtypes import promote_dtype
from flax.traverse_util import unflatten_dict

from accelnet.models.nnx_modules import abstract_split
from accelnet.models.replacing import Change, changed

_TWINS: dict[type, Any] = {
    linen.Dense: nnx.Linear,
    linen.DenseGeneral: nnx.LinearGeneral,
    linen.Conv: nnx.Conv,
    linen.Embed: nnx.Embed,
}


class Twin(NamedTuple):
    """Describe the nnx layer that computes in the place of one of a Linen module.

    Attributes:
        make: Function from a source of keys to the layer of nnx that is the same.
        changes: What is made of it then, by paths below it.
    """

    make: Callable[[nnx.Rngs], nnx.Module]
    changes: Sequence[Change]

    def layer(self, rngs: nnx.Rngs) -> Any:
        """Make it."""
        return changed(self.make(rngs), self.changes, rngs)

    def untrained(self) -> list[tuple[str, ...]]:
        """Return the paths below it of what is no parameter.

        A Linen module has it among its parameters all the same: loops hand these on, and no collection that is not
        theirs.
        """
        flat = nnx.to_flat_state(abstract_split(self.layer)[1])
        return [tuple(map(str, path)) for path, leaf in flat if not isinstance(leaf, nnx.Param)]

    def filled(self, values: Mapping[tuple[str, ...], Any]) -> Any:
        """Make it with values by path; None where they have other shapes, those of a stack of layers."""
        graphdef, state = abstract_split(self.layer)
        flat = nnx.to_flat_state(state)
        found = [(path, leaf, values.get(tuple(map(str, path)))) for path, leaf in flat]
        if any(value is None or value.shape != leaf.get_value().shape for _, leaf, value in found):
            return None
        return nnx.merge(graphdef, nnx.from_flat_state([(path, leaf.replace(value)) for path, leaf, value in found]))


def twin_of(layer: linen.Module, inputs: Any) -> Callable[[nnx.Rngs], nnx.Module] | None:
    """Return what makes the nnx layer that computes the same; None where none is known to.

    Args:
        layer: Layer of Linen.
        inputs: What it is called on, an array or the shape of one.

    Example:
        >>> import jax.numpy as jnp
        >>> twin_of(linen.Dense(3), jnp.ones((2, 5)))(nnx.Rngs(0)).kernel.shape
        (5, 3)
    """
    kind = _TWINS.get(type(layer))
    given = {name: getattr(layer, name) for name in layer.__dataclass_fields__ if name not in ("parent", "name")}
    if kind is None or given.pop("promote_dtype") is not promote_dtype or getattr(inputs, "ndim", 0) < 1:
        return None
    others = [given.pop(name, None) for name in ("dot_general_cls", "conv_general_dilated_cls", "batch_dims")]
    if any(others):
        return None
    shape = inputs.shape
    if kind is nnx.LinearGeneral:
        axes = (given["axis"],) if isinstance(given["axis"], int) else tuple(given["axis"])
        given["axis"] = tuple(axis % len(shape) - len(shape) for axis in axes)
        given |= {"in_features": tuple(shape[axis] for axis in given["axis"]), "out_features": given.pop("features")}
    elif kind is not nnx.Embed:
        given |= {"in_features": shape[-1], "out_features": given.pop("features")}
    known = inspect.signature(kind.__init__).parameters
    own = {name: value for name, value in given.items() if name in known and value is not None}
    return lambda rngs: kind(**own, rngs=rngs)


def replacing(changes: Sequence[Change], found: dict[str, Twin] | None = None) -> Callable[..., Any]:
    """Return an interceptor, as of `flax.linen.intercept_methods`, that puts layers in the places of others.

    Args:
        changes: Paths of layers of a Linen module, or of parts of their replacements, and what makes the new ones.
        found: Dict that gets every layer that could be replaced, by path. None: nobody asks.
    """

    def intercept(next_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, ".".join(context.module.path)
        if type(module) not in _TWINS or context.method_name not in ("__call__", "attend", "setup"):
            return next_call(*args, **kwargs)
        own = below(changes, path)
        inputs: Any = args[0] if args else next(iter(kwargs.values()), None)
        is_table = isinstance(module, linen.Embed)  # whose `setup` makes the parameter
        make = twin_of(module, jax.ShapeDtypeStruct((1,), "int32") if is_table else inputs)
        if make is None:
            return next_call(*args, **kwargs)
        twin = Twin(make, own)
        if found is not None:
            found[path] = twin
        if not own:
            return next_call(*args, **kwargs)
        layer = _bound(module.scope, twin)
        if context.method_name == "setup":
            module.embedding = layer.embedding[...]
            return None
        return getattr(layer, context.method_name)(*args, **kwargs)

    return intercept


def below(changes: Sequence[Change], path: str) -> list[Change]:
    """Return the changes of a layer and its parts, by paths below it.

    Example:
        >>> below([("Dense_0", 1), ("Dense_0.down", 2), ("Dense_1", 3)], "Dense_0")
        [('', 1), ('down', 2)]
    """
    return [(name[len(path) :].lstrip("."), make) for name, make in changes if is_below(name, path)]


def is_below(name: str, path: str) -> bool:
    """Say whether a path is a layer's own, or of a part of it.

    Example:
        >>> is_below("Dense_0.down", "Dense_0"), is_below("Dense_01", "Dense_0")
        (True, False)
    """
    return not path or name == path or name.startswith(f"{path}.")


def _bound(scope: Any, twin: Twin) -> Any:
    """Return a layer with the variables of a scope, which it makes where there are none yet."""
    graphdef, state = abstract_split(twin.layer)
    flat = nnx.to_flat_state(state)
    if not all(scope.has_variable("params", str(path[0])) for path, _ in flat):
        made = nnx.to_flat_state(nnx.split(twin.layer(nnx.Rngs(scope.make_rng("params"))))[1])
        tree: Any = {tuple(map(str, path)): leaf.get_value() for path, leaf in made}
        for name, part in unflatten_dict(tree).items():
            scope.put_variable("params", name, part)
    filled = []
    for path, leaf in flat:
        value = scope.get_variable("params", str(path[0]))
        for name in path[1:]:
            value = value[str(name)]
        filled.append((path, leaf.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(filled), copy=True)
