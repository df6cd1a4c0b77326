"""Which schedule an optimizer follows, read from what it does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from accelnet.errors import UserError
from accelnet.optim import adapt_optimizer, hyperparams, learning_rates, uses_progress
from accelnet.optim.schedules import Schedule

# Float32 updates of the same size by another rate, over the largest.
_TOLERANCE = 1e-4
# What these do with their first gradient says nothing about the schedule within; opaque SAM keeps no cache.
_DELAYED = (optax.MultiStepsState, optax.contrib.SAMState, optax.ApplyEvery)


def schedule_of(optimizer: Any, num_steps: int, params: Any = None) -> Schedule:
    """Return the schedule of the learning rate that an optimizer follows, as a table.

    Where the state shows the rate, it is read from there. A plain Optax chain shows its schedule by its effect alone:
    the same first update is made at every step's count, all else being equal, and the sizes are compared.

    Args:
        optimizer: Any Optax transformation.
        num_steps: Updates of the run.
        params: Arrays or their shapes, as the optimizer's masks and labels expect; only names and axes matter.

    Returns:
        A function of progress if the optimizer uses that, else of the step, to a factor, float32 scalar. The largest
        factor is 1 where the peak of the rate is not known otherwise.

    Raises:
        UserError: parts of the optimizer follow different schedules, or its updates do not show the schedule.

    Example:
        >>> schedule = schedule_of(optax.adam(optax.cosine_decay_schedule(0.01, 100)), 100)
        >>> [round(float(schedule(step)), 4) for step in (0, 50, 99)]
        [1.0, 0.5, 0.0002]
    """
    params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)} if params is None else params
    with jax.ensure_compile_time_eval():
        table = _table(optimizer, num_steps, _small(params))
    if uses_progress(optimizer, _small(params)):

        def of_progress(progress: Any) -> jax.Array:
            return jnp.asarray(table)[jnp.clip(jnp.round(progress * num_steps), 0, num_steps - 1).astype(jnp.int32)]

        return of_progress
    return lambda step: jnp.asarray(table)[jnp.clip(step, 0, num_steps - 1)]


def _small(params: Any) -> Any:
    """Return params of the same names and axes, each at most 2 long, of numbers that are all different."""
    generator = np.random.default_rng(0)

    def drawn(leaf: Any) -> jax.Array:
        return jnp.asarray(generator.uniform(0.5, 1.5, [min(size, 2) for size in leaf.shape]), jnp.float32)

    return jax.tree.map(drawn, params)


def _table(optimizer: Any, num_steps: int, params: Any) -> np.ndarray:
    adapted = adapt_optimizer(optimizer)
    state = adapted.init(params)
    shown = bool(learning_rates(state))
    by_steps = bool(_nodes(state, optax.ScaleByScheduleState))
    scheduled = by_steps or uses_progress(optimizer, params)
    scheduled = scheduled or bool(_nodes(state, optax.InjectStatefulHyperparamsState))
    delayed = [node for node in _nodes(state, _DELAYED) if getattr(node, "cache", state) is not None]
    if scheduled and delayed:
        raise UserError(
            "the schedule of an optimizer within MultiSteps, sam or apply_every cannot be told: compare without these, "
            "by microbatch_size= or opaque_mode=True"
        )
    if not scheduled:
        return np.ones(num_steps, np.float32)
    gradients = jax.tree.map(lambda p: 2.0 - p, params)

    def loss(params: Any) -> jax.Array:
        return jnp.asarray(optax.tree.vdot(gradients, params), jnp.float32)

    def after(number: Any) -> tuple[Any, Any]:
        updates, new = adapted.update(
            gradients, _with_counts(state, number), params,
            value=loss(params), grad=gradients, value_fn=loss, obj_fn=loss, grad_fn=lambda *_: gradients,
            key=jax.random.key(0), step=number, progress=number.astype(jnp.float32) / num_steps,
        )  # fmt: skip
        return updates, learning_rates(new)

    steps = jnp.arange(num_steps, dtype=jnp.int32)
    if shown and not by_steps:
        rates = jax.jit(lambda: jax.lax.map(lambda number: after(number)[1], steps))()
        return _agreed(state, {name: np.asarray(values) for name, values in rates.items()})
    return _effect(lambda number: after(number)[0], steps)


def _agreed(state: Any, rates: dict[str, np.ndarray]) -> np.ndarray:
    """Return the factors of rates that are shown."""
    scaled = {name: values / (np.max(np.abs(values)) or 1.0) for name, values in rates.items()}
    first, *others = scaled.values()
    if any(np.max(np.abs(first - other)) > _TOLERANCE for other in others):
        raise UserError(
            f"the optimizer has groups that follow different schedules ({', '.join(rates)}): give one schedule to all"
        )
    peak = hyperparams(state).get("learning_rate")
    if others or peak is None or peak == 0:
        return first
    return next(iter(rates.values())) / np.float32(peak)


def _effect(update: Any, steps: jax.Array) -> np.ndarray:
    """Return the factors between updates that differ by their step alone."""
    sizes = np.asarray(jax.jit(lambda: jax.lax.map(lambda number: optax.tree.norm(update(number)), steps))())
    if not np.all(np.isfinite(sizes)) or np.ptp(sizes) <= _TOLERANCE * np.max(sizes):
        raise UserError(
            "the optimizer has a schedule that its updates do not show: give an accelnet optimizer and schedule=, as "
            "in accelnet.optim.adamw(rate, schedule=...)"
        )
    largest = update(steps[int(np.argmax(sizes))])
    norm = optax.tree.norm(largest, squared=True)
    highest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(largest))

    def compare(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        updates = update(number)
        factor = jnp.asarray(optax.tree.vdot(updates, largest) / norm, jnp.float32)
        off = jax.tree.map(lambda one, other: jnp.max(jnp.abs(one - factor * other)), updates, largest)
        return factor, jnp.max(jnp.stack(jax.tree.leaves(off)))

    factors, off = jax.jit(lambda: jax.lax.map(compare, steps))()
    if float(jnp.max(off)) > _TOLERANCE * highest:
        raise UserError(
            "parts of the optimizer follow different schedules, expected one for all: give an accelnet optimizer and "
            "schedule=, as in accelnet.optim.adamw(rate, schedule=...)"
        )
    return np.asarray(factors, np.float32)


def _with_counts(state: Any, number: jax.Array) -> Any:
    """Return the state in which every schedule of the step is at this one."""

    def change(node: Any) -> Any:
        if isinstance(node, optax.ScaleByScheduleState):
            return node._replace(count=number)
        if isinstance(node, optax.InjectStatefulHyperparamsState):
            schedules = jax.tree.map(lambda _: number, node.hyperparams_states)
            return node._replace(hyperparams_states=schedules, inner_state=_with_counts(node.inner_state, number))
        return node

    kinds = (optax.ScaleByScheduleState, optax.InjectStatefulHyperparamsState)
    return jax.tree.map(change, state, is_leaf=lambda node: isinstance(node, kinds))


def _nodes(state: Any, kinds: Any) -> list[Any]:
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    return [leaf for leaf in leaves if isinstance(leaf, kinds)]
