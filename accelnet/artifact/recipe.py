"""How a model of accelnet's own is made again: its class, the arguments, and what prepares its inputs, as JSON."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from accelnet import models, ops
from accelnet.artifact.program import Forward, NotAccelnetsError
from accelnet.artifact.schema import held_of
from accelnet.data.dataset import Data, unchanged
from accelnet.data.fitted import plain
from accelnet.data.normalize import standardize, with_cast_targets
from accelnet.data.series import standardize_series
from accelnet.data.variant import own_prepare
from accelnet.data.windows import with_cast_tokens
from accelnet.errors import UserError
from accelnet.models.adapter import adapt
from accelnet.models.compressed import Compressed, Compression, made_by
from accelnet.models.nnx_modules import NnxModel
from accelnet.models.precision import Precision
from accelnet.models.pure import PureModel
from accelnet.signature import wants

# Functions that an argument may be, by where they are found. Nothing else is ever imported for an artifact.
_PLACES = {"jax.nn": jax.nn, "jax.numpy": jnp, "jax.lax": jax.lax, "flax.nnx": nnx, "accelnet.ops": ops}
_OWN_PREPARES = (standardize, standardize_series, unchanged, with_cast_targets, with_cast_tokens)
_PREPARES = {one.__name__: one for one in _OWN_PREPARES}
_MODELS = {name: kind for name, kind in vars(models).items() if isinstance(kind, type) and issubclass(kind, nnx.Module)}


def recipe_of(model: PureModel, data: Data) -> dict[str, Any]:
    """Return how a model and its `prepare` are made again.

    Args:
        model: Model of the run.
        data: Its data.

    Returns:
        "model" (the class), "arguments", "prepare" and, where it is compressed, "compression"; or "reason", why it
        cannot be made again.

    Example:
        >>> import accelnet as an
        >>> recipe_of(adapt(lambda rngs: models.MLP(2, (4,), 1, rngs=rngs)), an.data.xor())["arguments"]["norm"] is None
        True
    """
    try:
        kind, arguments, more = _built_by(model)
        prepare = own_prepare(data)
        if prepare not in _PREPARES.values():
            raise NotAccelnetsError("the data has a prepare of its own")
        return {"model": kind.__name__, "arguments": _described(arguments), "prepare": prepare.__name__} | more
    except NotAccelnetsError as error:
        return {"reason": str(error)}


def forward_of(recipe: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[Forward, dict[str, Any]]:
    """Return the way from inputs to outputs, made again, and the shapes of its weights by name.

    Args:
        recipe: As of `recipe_of`, with "others", "precision", "step" and "progress" of the run's `Forward`.
        schema: Schema of the artifact: "fitted" and "coding".

    Raises:
        NotAccelnetsError: if the recipe gives a reason, or names what is not accelnet's.
    """
    if "reason" in recipe:
        raise NotAccelnetsError(recipe["reason"])
    if recipe["model"] not in _MODELS or recipe["prepare"] not in _PREPARES:
        raise NotAccelnetsError(f"this accelnet has no {recipe['model']}, or no {recipe['prepare']}")
    if recipe["precision"] not in get_args(Precision):
        raise NotAccelnetsError(f"this accelnet knows no precision {recipe['precision']}")
    arguments = {name: _read(value) for name, value in recipe["arguments"].items()}
    model = partial(_MODELS[recipe["model"]], **arguments)
    small = recipe.get("compression")
    pure = adapt(model if small is None else Compressed(model, Compression.from_json(small)))
    function = _PREPARES[recipe["prepare"]]
    given = {"fitted": schema["fitted"], "coding": schema["coding"]}
    named = {name: value for name, value in given.items() if name in wants(function).names}
    shapes = jax.eval_shape(lambda: pure.init(jax.random.key(0)))
    others = {name: held_of(one) for name, one in recipe["others"].items()}
    settings = recipe["precision"], recipe["step"], recipe["progress"]
    return Forward(pure.apply, unflattener(shapes), partial(function, **named), others, *settings), flattened(shapes)


def flattened(weights: tuple[Any, Any]) -> dict[str, Any]:
    """Return the params and the state of a model by name.

    Example:
        >>> flattened(({"layer": {"kernel": 1}}, {"mean": 2}))
        {'params.layer.kernel': 1, 'state.mean': 2}
    """
    named = {}
    for first, tree in zip(("params", "state"), weights, strict=True):
        for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            named[".".join((first, *(str(key.key) for key in keys)))] = leaf
    return named


def unflattener(weights: tuple[Any, Any]) -> Callable[[Mapping[str, Any]], tuple[Any, Any]]:
    """Return the function that undoes `flattened` for a model."""
    return partial(_unflattened, weights)


def _unflattened(like: tuple[Any, Any], named: Mapping[str, Any]) -> tuple[Any, Any]:
    return jax.tree.unflatten(jax.tree.structure(like), [named[name] for name in flattened(like)])


def _built_by(model: PureModel) -> tuple[type, Mapping[str, Any], dict[str, Any]]:
    source = model.source
    if not isinstance(model, NnxModel) or isinstance(source, nnx.Module):
        raise NotAccelnetsError("the model is no function that makes an nnx.Module")
    more = {"compression": source.compression.as_json()} if isinstance(source, Compressed) else {}
    try:
        made = source.made if isinstance(source, Compressed) else made_by(source)
    except UserError as error:
        raise NotAccelnetsError(str(error)) from error
    if made.kind not in _MODELS.values():
        raise NotAccelnetsError("the model is none of accelnet's own")
    return made.kind, made.arguments, more


def _described(arguments: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in arguments.items():
        if callable(value):
            place = next((f"{place}:{word}" for place, word in _names_of(value)), None)
            if place is None:
                raise NotAccelnetsError(f"the argument {name} of the model is a function of the user's")
            found[name] = {"function": place}
        else:
            try:
                found[name] = plain(value)
            except ValueError:
                raise NotAccelnetsError(f"the argument {name} of the model is no plain value") from None
    return found


def _names_of(function: Any) -> list[tuple[str, str]]:
    word = getattr(function, "__name__", "")
    return [(place, word) for place, module in _PLACES.items() if word and getattr(module, word, None) is function]


def _read(value: Any) -> Any:
    if isinstance(value, Mapping):
        place, _, word = str(value.get("function")).partition(":")
        if not hasattr(_PLACES.get(place), word):
            raise NotAccelnetsError(f"this accelnet knows no function {place}.{word}")
        return getattr(_PLACES[place], word)
    return tuple(map(_read, value)) if isinstance(value, list) else value
