"""A model with random weights on a few rows, run to see which of its weights belong together."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.artifact.recipe import flattened, unflattener
from accelnet.compressing.origins import Use, origin_of
from accelnet.compressing.products import Inputs, Value, Watcher
from accelnet.experiment import Experiment
from accelnet.models.pure import PureModel
from accelnet.parallel.rules import path_names
from accelnet.training.step import prepared

Weights = Mapping[str, Any]
_ROWS = 16


class Probe:
    """Hold a model, random weights for it, and rows that it is called on.

    Args:
        experiment: Experiment of the model.
        touched: Names of those variables of the model's state that are made random: what else there is may be a table
            or a mask. Parameters are all random, since an initial zero would hide what it stands for.
        seed: Seed of the weights and of the choice of rows.

    Attributes:
        weights: Weights by name, "params.layers.0.linear.kernel" or "state....", as NumPy arrays.
    """

    def __init__(self, experiment: Experiment, touched: Sequence[str], seed: int = 0) -> None:
        self.experiment, self._rng = experiment, np.random.default_rng(seed)
        made = jax.device_get(experiment.pure_model.init(jax.random.key(seed), experiment.sample_inputs()))
        self.weights = {
            name: self._random(name, leaf) if name.startswith("params.") or name in touched else leaf
            for name, leaf in flattened(made).items()
        }
        rows = experiment.data.splits["train"]
        chosen = rows.start + np.sort(self._rng.permutation(len(rows))[:_ROWS])
        batch = {**experiment.data.take(chosen), "mask": np.ones(len(chosen), bool)}
        self.inputs = prepared(experiment, batch)["inputs"]
        self._unflattened = unflattener(made)
        self._gradient = jax.jit(jax.grad(self._summed, allow_int=True))

    def _random(self, name: str, leaf: Any) -> Any:
        if not np.issubdtype(np.asarray(leaf).dtype, np.floating):
            return leaf
        noise = self._rng.normal(size=np.shape(leaf)).astype(leaf.dtype)
        size = float(np.sqrt(np.mean(np.square(leaf)))) or 0.5
        # A variance stays positive.
        return leaf * (1 + 0.1 * noise) + 0.3 * size * (noise if name.startswith("params.") else np.abs(noise))

    def outputs(self, weights: Weights, model: PureModel | None = None) -> np.ndarray:
        """Return all numbers of the outputs in one row, of the model or of another one of the same inputs."""
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
    def contracted(self) -> frozenset[tuple[str, int]]:
        """Names of weights and those of their axes that products sum over."""
        seen = _Seen()

        def watched() -> None:
            params, state = self._unflattened(self.weights)
            values = [Value(leaf, origin_of(path, leaf.shape), fixed=True) for path, leaf in path_names(params)]
            values += [Value(jnp.asarray(leaf), fixed=True) for leaf in jax.tree.leaves(state)]
            values += [Value(leaf) for leaf in jax.tree.leaves(self.inputs)]
            apply = functools.partial(_joined, self.experiment.pure_model)
            Watcher(seen).run(jax.make_jaxpr(apply)(params, state, self.inputs), values)

        jax.eval_shape(watched)
        return frozenset((f"params.{path}", axis) for path, axes in seen.found for axis in axes)


class _Seen:
    """Note which axes of parameters products sum over."""

    def __init__(self) -> None:
        self.found: set[tuple[str, tuple[int, ...]]] = set()

    def see(self, use: Use, inputs: Inputs, *, stride: int) -> None:  # noqa: ARG002
        self.found.add((use.path, use.axes))

    def inner(self) -> "_Seen":
        return self

    def arrays(self) -> tuple[Any, Any]:
        return {}, {}

    def take(self, body: Any, total: Any, stacked: Any) -> None:
        """Take nothing: the body's sink is this one."""


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
