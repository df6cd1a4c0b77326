"""Other layers in the place of a module's own."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from accelnet.errors import UserError

# The dotted path of a layer, and a function from it and a source of keys to the layer that takes its place.
Change = tuple[str, Callable[[Any, nnx.Rngs], Any]]


def changed(module: Any, changes: Sequence[Change], rngs: nnx.Rngs) -> Any:
    """Return a module with other layers; it is changed itself, but where it is the layer that is replaced.

    Args:
        module: The module.
        changes: Paths below it, "" for the module itself, and what makes the new layers, in the order of making.
        rngs: Source of keys.

    Raises:
        UserError: if there is no layer of a path.

    Example:
        >>> pair = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Linear(2, 2, rngs=nnx.Rngs(1)))
        >>> smaller = lambda old, rngs: nnx.Linear(2, 1, rngs=rngs)
        >>> changed(pair, [("layers.1", smaller)], nnx.Rngs(2)).layers[1].out_features
        1
    """
    for path, make in changes:
        if path:
            replace_layer(module, path, lambda old, make=make: make(old, rngs))
        else:
            module = make(module, rngs)
    return module


def replace_layer(module: nnx.Module, path: str, make: Callable[[Any], nnx.Module]) -> None:
    """Put another layer in the place of one, wherever the module holds it.

    Args:
        module: Module that is changed.
        path: Dotted path of the layer, as in the names of its parameters: "layers.0.linear".
        make: Function from the layer to that which replaces it.

    Raises:
        UserError: if there is no layer of this path.

    Example:
        >>> from accelnet.models import MLP
        >>> model = MLP(4, (16,), 2, rngs=nnx.Rngs(0))
        >>> replace_layer(model, "layers.0.linear", lambda old: nnx.Linear(4, 16, use_bias=False, rngs=nnx.Rngs(1)))
        >>> model.layers[0].linear.bias is None
        True
    """
    places = {".".join(map(str, names)): layer for names, layer in nnx.iter_modules(module) if names}
    if path not in places:
        raise UserError(f"the model has no layer {path}: it has {', '.join(sorted(places))}")
    old = places[path]
    new = make(old)
    for _, holder in list(nnx.iter_modules(module)):
        _put(holder, old, new)


def _put(holder: Any, old: Any, new: Any) -> None:
    if isinstance(holder, nnx.List):
        for i, one in enumerate(holder):
            if one is old:
                holder[i] = new
        return
    for name, one in list(vars(holder).items()):
        if one is old:
            setattr(holder, name, new)
