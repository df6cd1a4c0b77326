"""Make one kind of optimizer of all that Optax has: each gets what it accepts, and a loop can carry its state."""

import contextlib
import inspect
import logging
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from accelnet.errors import UserError
from accelnet.optim.averages import SlowParamsState
from accelnet.optim.declare import PROGRESS, is_read
from accelnet.optim.plain import check_shapes, plain, shapes, with_keys

# What a training step has for an optimizer's update.
EXTRAS: tuple[str, ...] = ("value", "grad", "value_fn", "grad_fn", "obj_fn", "key", "step", "progress")

# How Python, and Optax's line searches, name the keyword arguments that they do not take or that they miss.
_REFUSED = re.compile(r"unexpected keyword argument '(\w+)'|not consumed by `value_fn`: \[([^]]*)\]")
_MISSING = re.compile(r"missing \d+ required keyword-only arguments?: (.*)")


def adapt_optimizer(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """Make a transformation that takes all `EXTRAS` in update and passes on those that the optimizer accepts.

    What it accepts is found at the first `init` or `update`, on shapes alone. The state holds plain arrays whose types
    no update changes: keys of `jax.random.key` are kept as their words, and where an optimizer's update gives wider
    types than its `init`, the state has these from the start. An `optax.lookahead` gets its slow weights from the
    state. An adapted transformation can be part of a chain; adapting it again changes nothing.

    Args:
        optimizer: `optax.GradientTransformation`, or an object with `gradient_transformation()`, as `optax.MultiSteps`.

    Returns:
        The transformation. It needs the params in update, and takes value (float32 scalar), grad (gradients like the
        params), value_fn and obj_fn (from params to the loss), grad_fn (from params, and more that it ignores, to
        gradients), key, step (int32 scalar), progress (float32 scalar in [0, 1]).

    Raises:
        UserError: this is no optimizer; or, when used, it needs an argument that a step does not have, or its state
            changes its shape.

    Example:
        >>> optimizer, params = adapt_optimizer(optax.polyak_sgd()), jnp.array([2.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params, value=jnp.float32(4.0), step=0)
        >>> float(updates[0])
        -2.0
    """
    inner = _transformation(optimizer)
    if isinstance(getattr(inner.init, "__self__", None), _Adapted):
        return inner
    adapted = _Adapted(inner)
    return optax.GradientTransformationExtraArgs(adapted.init, adapted.update)


def uses_progress(optimizer: Any, params: Any) -> bool:
    """Say whether an optimizer's updates depend on the progress of the run, and so on its length.

    Args:
        optimizer: what `adapt_optimizer` takes.
        params: pytree of arrays or of their shapes.

    Example:
        >>> from accelnet.optim import adam, schedules
        >>> [uses_progress(one, jnp.ones(2)) for one in (adam(0.1, schedule=schedules.cosine()), optax.adam(0.1))]
        [True, False]
    """
    init: Any = adapt_optimizer(optimizer).init
    jax.eval_shape(init, shapes(params))
    return init.__self__.reads_progress


class _Adapted:
    """An optimizer, and what tracing its update has shown."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.accepted = _named(inner.update)
        self.reads_progress = False
        self.looked_at: dict[Any, list[Any]] = {}

    def init(self, params: Any) -> Any:
        with _without_lookaheads_warning():
            state = plain(self.inner.init(params))
        leaves, structure = jax.tree.flatten(state)
        dtypes = self._stable_dtypes(shapes(params), shapes(state))
        buffers = {id(leaf) for leaf in jax.tree.leaves(params)}
        for index, (leaf, dtype) in enumerate(zip(leaves, dtypes, strict=True)):
            # One buffer at two places could not be donated, and one of the caller's, such as a key, would be lost.
            shared = id(leaf) in buffers or not isinstance(leaf, Tracer)
            leaves[index] = jnp.array(leaf, dtype, copy=True) if shared else leaf.astype(dtype)
            buffers.add(id(leaf))
        state = jax.tree.unflatten(structure, leaves)
        if not _has_lookahead(state):
            return state
        return SlowParamsState(jax.tree.map(lambda p: jnp.array(p, copy=True), params), state)

    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        slow = state.slow if isinstance(state, SlowParamsState) else None
        inner = state if slow is None else state.inner
        if params is not None:
            self._stable_dtypes(shapes(params), shapes(inner))
        if slow is None:
            return self._update(updates, inner, params, extra_args)
        assert params is not None
        updates, inner = self._update(updates, inner, optax.LookaheadParams(params, slow), extra_args)
        return updates.fast, SlowParamsState(optax.apply_updates(slow, updates.slow), inner)

    def _update(self, updates: Any, state: Any, params: Any, extra_args: Any) -> tuple[Any, Any]:
        given = {name: value for name, value in extra_args.items() if name in self.accepted or name not in EXTRAS}
        progress = PROGRESS.set(extra_args.get("progress", PROGRESS.get()))
        try:
            updates, state = self.inner.update(updates, with_keys(state), params, **given)
        except TypeError as error:
            if missing := _MISSING.search(str(error)):
                raise UserError(_needs(missing[1].replace("'", ""), given, set(EXTRAS) - self.accepted)) from error
            raise
        finally:
            PROGRESS.reset(progress)
        return updates, plain(state)

    def _stable_dtypes(self, params: Any, state: Any) -> list[Any]:
        """Return the dtypes of the state's leaves that no update changes."""
        known = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)), jax.tree.structure(params)
        first = state
        for _ in range(4):
            if known in self.looked_at:
                break
            after = self._look(params, state)
            check_shapes(state, after)
            wider = jax.tree.map(
                lambda old, new: jax.ShapeDtypeStruct(old.shape, jnp.promote_types(old.dtype, new.dtype)), state, after
            )
            if jax.tree.leaves(wider) == jax.tree.leaves(state):
                self.looked_at[known] = [leaf.dtype for leaf in jax.tree.leaves(state)]
            state = wider
        else:
            raise UserError(f"the optimizer's update changes the types of its state again and again: {first}")
        return self.looked_at[known]

    def _look(self, params: Any, state: Any) -> Any:
        """Trace an update on shapes, and leave out what it refuses; return the new state's shapes."""
        both = optax.LookaheadParams(params, params) if _has_lookahead(state) else params
        arrays, functions = _examples(params)

        def update(updates: Any, state: Any, params: Any, arrays: Any) -> Any:
            return self._update(updates, state, params, arrays | functions)

        while True:
            try:
                traced, (updates, after) = jax.make_jaxpr(update, return_shape=True)(params, state, both, arrays)
                break
            except TypeError as error:
                refused = _refused(error) & self.accepted
                if not refused:
                    raise _failed(error, state) from error
                self.accepted -= refused
            except UserError:
                raise
            except Exception as error:
                raise _failed(error, state) from error
        if both is not params and not isinstance(updates, optax.LookaheadParams):
            raise UserError(f"the optimizer's updates do not come from its lookahead: {_LOOKAHEAD}")
        # The arrays are the last arguments, in the order of their names.
        progress = traced.jaxpr.invars[len(traced.jaxpr.invars) - len(arrays) + sorted(arrays).index("progress")]
        self.reads_progress |= is_read(progress, traced.jaxpr)
        return after


_LOOKAHEAD = "let optax.lookahead be the outermost transformation, with the whole chain as its fast optimizer"


def _transformation(optimizer: Any) -> Any:
    if not isinstance(optimizer, type):
        if callable(getattr(optimizer, "gradient_transformation", None)):
            optimizer = optimizer.gradient_transformation()
        if type(optimizer).__module__.startswith("flax."):
            raise UserError(
                f"optimizer is a {type(optimizer).__module__}.{type(optimizer).__name__}, expected its Optax "
                "transformation, without the model: optimizer=tx"
            )
        if callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None)):
            return optimizer
    if callable(optimizer):
        name = getattr(optimizer, "__name__", type(optimizer).__name__)
        raise UserError(f"optimizer is the function {name} itself, expected what it returns: call it, as {name}(...)")
    raise UserError(f"optimizer is {optimizer!r:.80}, expected an Optax transformation such as optax.adam(1e-3)")


def _named(update: Any) -> set[str]:
    """Return which of the extras an update's signature accepts."""
    try:
        parameters = inspect.signature(update).parameters.values()
    except (TypeError, ValueError):  # a builtin, without a signature
        return set(EXTRAS)
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return set(EXTRAS)
    return {one.name for one in parameters if one.kind is not one.POSITIONAL_ONLY} & set(EXTRAS)


def _examples(params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return extras that suit the params: shapes, and functions."""

    def value_fn(params: Any) -> jax.Array:
        return sum((jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(params)), jnp.float32(0))

    def grad_fn(params: Any, *_: Any) -> Any:
        return jax.tree.map(jnp.ones_like, params)

    scalars = {"value": jnp.float32, "step": jnp.int32, "progress": jnp.float32}
    arrays = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in scalars.items()}
    arrays |= {"grad": params, "key": jax.eval_shape(lambda: jax.random.key(0))}
    return arrays, {"value_fn": value_fn, "obj_fn": value_fn, "grad_fn": grad_fn}


def _refused(error: TypeError) -> set[str]:
    found = _REFUSED.search(str(error))
    return set(re.findall(r"\w+", found[1] or found[2])) if found else set()


def _needs(missing: str, given: Any, refused: set[str]) -> str:
    there = ", ".join(name for name in EXTRAS if name in given) or "nothing"
    if missing not in EXTRAS:
        return f"the optimizer's update needs {missing}, and a training step has only {', '.join(EXTRAS)}"
    if missing not in refused:
        return f"the optimizer's update needs {missing}, and got {there}: call optimizer.update(..., {missing}=...)"
    return (
        f"one part of the optimizer needs {missing} and another part refuses it: wrap that part in "
        "accelnet.optim.adapt_optimizer(...) within the chain"
    )


def _failed(error: Exception, state: Any) -> UserError:
    first = str(error).strip().partition("\n")[0]
    hint = f" ({_LOOKAHEAD})" if _has_lookahead(state) else ""
    return UserError(f"the optimizer's update fails with {type(error).__name__}: {first}{hint}")


def _has_lookahead(state: Any) -> bool:
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, optax.LookaheadState))
    return any(isinstance(leaf, optax.LookaheadState) for leaf in leaves)


@contextlib.contextmanager
def _without_lookaheads_warning() -> Iterator[None]:
    """Keep quiet that `optax.lookahead` is given the fast params alone: its slow ones are in the state."""
    logger, quiet = logging.getLogger("absl"), lambda record: "fast" not in record.getMessage()
    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)
