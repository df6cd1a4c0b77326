"""A model with random weights on a few rows, run to see which of its weights belong together."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.artifact.recipe import flattened, unflattener
from accelnet.compressing.inputs import Inputs
from accelnet.compressing.origins import origin_of
from accelnet.compressing.products import TracedValue, Watcher
from accelnet.experiment import Experiment
from accelnet.models.pure import PureModel
from accelnet.parallel.rules import path_names
from accelnet.training.batch import prepared

Weights = Mapping[str, Any]
_ROWS = 16


class Probe:
    """Hold a model, random weights for it, and rows that it is called on.

    Parameters are random, since an initial zero would hide what it stands for, and so are running averages.

    Args:
        experiment: Experiment of the model.
        seed: Seed of the weights and of the choice of rows.

    Attributes:
        weights: Weights by name, "params.layers.0.linear.kernel" or "state....", as NumPy arrays.
    """

    def __init__(self, experiment: Experiment, seed: int = 0) -> None:
        self.experiment, self._rng = experiment, np.random.default_rng(seed)
        init, inputs = experiment.pure_model.init, experiment.sample_inputs()
        made = jax.eval_shape(init, jax.random.key(seed), inputs)
        kept = flattened(({}, jax.device_get(jax.jit(lambda key: init(key, inputs)[1])(jax.random.key(seed)))))
        self.weights = {
            name: kept[name] if name in kept and not _is_statistic(kept[name]) else self._random(leaf, name not in kept)
            for name, leaf in flattened(made).items()
        }
        rows = experiment.data.splits["train"]
        chosen = rows.start + np.sort(self._rng.permutation(len(rows))[:_ROWS])
        batch = {**experiment.data.take(chosen), "mask": np.ones(len(chosen), bool)}
        self.inputs = prepared(experiment, batch)["inputs"]
        self._unflattened = unflattener(made)
        self._gradient = jax.jit(jax.grad(self._summed, allow_int=True))

    def _random(self, like: Any, signed: bool) -> np.ndarray:
        noise = self._rng.normal(size=like.shape)
        if not signed:  # a variance is positive
            noise = 0.5 + np.abs(noise)
        elif noise.ndim > 1:
            noise /= np.sqrt(noise[..., 0].size)
        return noise.astype(like.dtype)

    def outputs(self, weights: Weights, model: PureModel | None = None) -> np.ndarray:
        """Return all outputs of the model, or of another one with the same inputs, as one row of numbers."""
        if model is None:
            return np.asarray(self._outputs(weights))
        like = jax.eval_shape(lambda: model.init(jax.random.key(0), self.inputs))
        params, state = unflattener(like)(weights)
        return np.asarray(jax.jit(functools.partial(_joined, model))(params, state, self.inputs))

    @functools.cached_property
    def _outputs(self) -> Any:
        return jax.jit(self._joined)

    def _joined(self, weights: Weights) -> Any:
        return _joined(self.experiment.pure_model, *self._unflattened(weights), self.inputs)

    def _summed(self, weights: Weights) -> Any:
        outputs = self._joined(weights)
        return jnp.vdot(outputs, jax.random.normal(jax.random.key(1), outputs.shape))

    def gradients(self, weights: Weights) -> dict[str, np.ndarray]:
        """Return the derivatives of a random sum of the outputs by the weights of floating-point numbers."""
        found = jax.device_get(self._gradient(weights))
        return {name: one for name, one in found.items() if np.issubdtype(one.dtype, np.floating)}

    @functools.cached_property
    def contracted(self) -> dict[tuple[str, int], int]:
        """Axes that products sum over, by the names of their weights, and how many inputs such a product has."""
        seen = _Seen()

        def watched() -> None:
            params, state = self._unflattened(self.weights)
            values = [TracedValue(leaf, origin_of(path, leaf.shape), fixed=True) for path, leaf in path_names(params)]
            values += [TracedValue(jnp.asarray(leaf), fixed=True) for leaf in jax.tree.leaves(state)]
            values += [TracedValue(leaf) for leaf in jax.tree.leaves(self.inputs)]
            apply = functools.partial(_joined, self.experiment.pure_model)
            Watcher(seen).run(jax.make_jaxpr(apply)(params, state, self.inputs), values)

        jax.eval_shape(watched)
        shapes = {name: np.shape(leaf) for name, leaf in self.weights.items()}
        return {
            (name, axis): math.prod(shapes[name][one] for one in axes)
            for name, axes in sorted((f"params.{path}", axes) for path, axes in seen.found)
            for axis in axes
        }


class _Seen:
    """Note which axes of parameters products sum over."""

    def __init__(self) -> None:
        self.found: set[tuple[str, tuple[int, ...]]] = set()

    def see(self, inputs: Inputs) -> None:
        self.found.add((inputs.use.path, inputs.use.axes))

    def inner(self) -> "_Seen":
        return self

    def arrays(self) -> tuple[Any, Any]:
        return {}, {}

    def take(self, body: Any, total: Any, stacked: Any) -> None:
        """Do nothing: the body of a loop writes into this sink itself."""


def _is_statistic(value: Any) -> bool:
    """Say whether a variable begins at one number, as running averages do, and tables and masks do not."""
    return np.issubdtype(value.dtype, np.floating) and np.ndim(value) > 0 and bool((value == value.flat[0]).all())


def _joined(model: PureModel, params: Any, state: Any, inputs: Any) -> Any:
    offered = {"step": jnp.int32(0), "progress": jnp.float32(0)}
    with jax.default_matmul_precision("highest"):
        outputs, _ = model.apply(params, state, inputs, key=jax.random.key(0), train=False, **offered)
    leaves = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.concatenate([leaf.astype(jnp.float32).ravel() for leaf in leaves])


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference of two outputs, relative to the largest output.

    Example:
        >>> round(difference(np.array([2.0, -4.0]), np.array([2.0, -3.0])), 3)
        0.25
    """
    if one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("inf")
    return float(np.abs(one - other).max(initial=0.0) / max(np.abs(one).max(initial=0.0), 1e-30))
