"""TrainState: all that changes during a run, as one pytree of plain arrays."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

from accelnet.data.order import mix
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.parallel.layout import Layout
from accelnet.parallel.rules import Placement, followers, path_names

# Random numbers for different purposes come from different keys: folded in before the step.
INIT, NOISE, AUGMENT, UPDATE, EVALUATION = range(5)

_FIRST_LOSS_SCALE = 2.0**15
_LOSS_SCALE_GROWTH_STEPS = 2000


class LossScale(flax.struct.PyTreeNode):
    """Dynamic scale of the loss, so that float16 gradients neither vanish nor overflow.

    Attributes:
        scale: Power of two, float32 scalar.
        good_steps: Steps since the scale changed, int32 scalar.

    Source: Micikevicius et al., "Mixed Precision Training", 2018, section 3.2.
    """

    scale: jax.Array
    good_steps: jax.Array

    @classmethod
    def first(cls) -> "LossScale":
        """Return the scale before the first step."""
        return cls(jnp.float32(_FIRST_LOSS_SCALE), jnp.int32(0))

    def adjust(self, finite: jax.Array) -> "LossScale":
        """Halve the scale after an overflow (down to 1); double it after 2,000 good steps in a row."""
        grow = finite & (self.good_steps + 1 >= _LOSS_SCALE_GROWTH_STEPS)
        scale = jnp.where(finite, jnp.where(grow, self.scale * 2, self.scale), jnp.maximum(self.scale / 2, 1.0))
        return LossScale(scale, jnp.where(finite & ~grow, self.good_steps + 1, 0))


class TrainState(flax.struct.PyTreeNode):
    """What a step reads and writes. Nothing else decides what the next step does.

    Attributes:
        step: Updates so far, int32 scalar.
        seed: Seed of the order and all noise, uint32 scalar.
        params: Parameters that are trained, nested dict of float32 arrays.
        model_state: Whatever else the model keeps, such as batch statistics, nested dict of arrays.
        opt_state: State of the Optax chain.
        metrics: Metric states since they were last recorded, by name.
        loss_scale: `LossScale` in float16, else None.
        frozen: Parameters that are not trained, nested dict of float32 arrays.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    metrics: Any
    loss_scale: LossScale | None
    frozen: Any = flax.struct.field(default_factory=dict)


def random_key(seed: Any, purpose: int, step: Any, part: Any = 0) -> jax.Array:
    """Return the key of a purpose at a step, so that no key has to be carried or saved.

    The key's two words are a hash of (seed, purpose, part) and the step itself: Threefry is a keyed function, so
    different words give unrelated streams, and nothing has to be drawn to get there. Folding in four numbers one by
    one would add 0.4 s to every compilation on a CPU.

    Args:
        seed: Seed of the run, uint32 scalar.
        purpose: INIT, NOISE, AUGMENT, UPDATE or EVALUATION.
        step: Number of the step, int32 scalar.
        part: Number of the microbatch in the step, int32 scalar.
    """
    word = mix(jnp.asarray(seed, jnp.uint32) + jnp.uint32(0x9E3779B9))
    word = mix(mix(word ^ jnp.uint32(purpose)) ^ jnp.asarray(part, jnp.uint32))
    words = jnp.stack([word, jnp.asarray(step, jnp.uint32)])
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def init_state(experiment: Experiment, seed: Any, initial: Mapping[str, Any] | None = None) -> TrainState:
    """Make the state before the first step. Pure; jit it, or `jax.eval_shape` it for its shapes.

    Args:
        experiment: What is trained.
        seed: Seed of the run, uint32 scalar; an operand, so that members of a population can have one each.
        initial: Arrays by the path of a parameter or of the model's state, which take the place of new ones.
    """
    params, model_state = experiment.pure_model.init(random_key(seed, INIT, 0), experiment.sample_inputs())
    if initial:
        params, model_state = replaced(params, initial), replaced(model_state, initial)
    scale = LossScale.first() if experiment.precision == "float16" else None
    params, frozen = separated(params, experiment.frozen)
    return TrainState(
        step=jnp.int32(0),
        seed=jnp.asarray(seed, jnp.uint32),
        params=params,
        model_state=model_state,
        opt_state=experiment.transformation.init(params),
        metrics=experiment.objective.empty(),
        loss_scale=scale,
        frozen=frozen,
    )


def replaced(tree: Any, values: Mapping[str, Any]) -> Any:
    """Return nested dicts with other leaves at some paths, which are joined by dots.

    Example:
        >>> replaced({"a": {"b": 1, "c": 2}}, {"a.b": 3})
        {'a': {'b': 3, 'c': 2}}
    """
    flat = flatten_dict(tree)
    return unflatten_dict({path: values.get(".".join(path), leaf) for path, leaf in flat.items()})


def separated(params: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """Separate parameters that are trained from those that are frozen.

    Args:
        params: Nested dict.
        patterns: Regular expressions of whole paths, joined by dots.

    Returns:
        (trained, frozen), nested dicts.

    Raises:
        UserError: if a pattern matches nothing, or all parameters are frozen.

    Example:
        >>> separated({"body": {"kernel": 1}, "head": {"kernel": 2}}, ["body.*"])
        ({'head': {'kernel': 2}}, {'body': {'kernel': 1}})
    """
    if not patterns:
        return params, {}
    flat = {".".join(path): (path, leaf) for path, leaf in flatten_dict(params).items()}
    for pattern in patterns:
        if not any(re.fullmatch(pattern, path) for path in flat):
            raise UserError(
                f"frozen has {pattern!r}, which matches none of the {len(flat)} parameters: {', '.join(list(flat)[:8])}"
                f"{', …' if len(flat) > 8 else ''}. It has to match a whole path, as 'backbone.*' does"
            )
    frozen = {name for name in flat if any(re.fullmatch(pattern, name) for pattern in patterns)}
    if len(frozen) == len(flat):
        raise UserError(f"frozen matches all {len(flat)} parameters: nothing would be trained")
    trained, kept = (
        unflatten_dict({path: leaf for name, (path, leaf) in flat.items() if (name in frozen) == wanted})
        for wanted in (False, True)
    )
    return trained, kept


def make_init(experiment: Experiment) -> Callable[..., TrainState]:
    """Return `init_state` as a function of a seed, and of initial arrays where there are some."""

    def init(seed: jax.Array, initial: Mapping[str, Any] | None = None) -> TrainState:
        return init_state(experiment, seed, initial)

    return init


def abstract_state(experiment: Experiment) -> TrainState:
    """Return the shapes of an experiment's `TrainState`."""
    return jax.eval_shape(make_init(experiment), jax.ShapeDtypeStruct((), np.uint32))


def num_parameters(params: Any) -> int:
    """Count the numbers in a pytree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def state_placements(layout: Layout, state: TrainState) -> TrainState:
    """Return the `Placement` of every array of a state of shapes."""
    params = layout.placements(state.params)
    everywhere = jax.tree.map(lambda _: Placement(PartitionSpec(), "the same on every device"), state)
    return everywhere.replace(
        params=params,
        model_state=layout.placements(state.model_state),
        frozen=layout.placements(state.frozen),
        opt_state=followers(state.opt_state, state.params, params),
    )


def placed(layout: Layout, state: TrainState) -> TrainState:
    """Return a state of shapes with their shardings.

    Raises:
        UserError: if the sharding rules do not fit the model or the mesh.
    """
    layout.check([path for tree in (state.params, state.frozen, state.model_state) for path, _ in path_names(tree)])
    if layout.mesh is None:
        return state
    return jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=layout.sharding(where.spec)),
        state,
        state_placements(layout, state),
    )
