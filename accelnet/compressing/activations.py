"""The second moments of what every parameter is multiplied by, over training rows."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from accelnet.arguments import check_patterns, integer
from accelnet.compressing.inputs import Inputs
from accelnet.compressing.origins import Use, origin_of
from accelnet.compressing.products import TracedValue, Watcher
from accelnet.data.order import mix
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.parallel.rules import path_names
from accelnet.training.batch import prepared

Key = tuple[str, tuple[int, ...]]

# Inputs of a product, for each feature and in all: more of a convolution's millions of patches say little that is new.
_INPUTS_PER_FEATURE = 32
_FEWEST_INPUTS = 4096


@dataclass(frozen=True, eq=False)
class Moments:
    """Hold the moments of the inputs x of a product with a parameter, x' W.

    Attributes:
        path: Path of the parameter, joined by dots.
        axes: Axes of the parameter that the product contracts. Their elements, row by row, are the features.
        indices: Elements of the parameter, by number, as matrices W: int [groups, features, outputs]. There is one
            group, but for a convolution of several groups of channels and for parameters that are stacks of kernels.
        gram: Sums of x x', float64 [groups, features, features].
        total: Sums of x, float64 [groups, features].
        count: Number of inputs x, float64 [groups].
        per_example: Products of one example: pixels of a convolution's outputs, steps of a sequence.
    """

    path: str
    axes: tuple[int, ...]
    indices: np.ndarray
    gram: np.ndarray
    total: np.ndarray
    count: np.ndarray
    per_example: float

    @property
    def mean(self) -> np.ndarray:
        """Means of x, float64 [groups, features]."""
        return self.total / self.count[:, None]

    @property
    def second(self) -> np.ndarray:
        """Means of x x', float64 [groups, features, features]."""
        return self.gram / self.count[:, None, None]

    def matrices(self, parameter: Any) -> np.ndarray:
        """Return a parameter as the matrices that its inputs are multiplied by, float64 [groups, features, outputs].

        Example:
            >>> whole = np.arange(6).reshape(1, 2, 3)
            >>> moments = Moments("kernel", (0,), whole, np.eye(2)[None], np.zeros((1, 2)), np.ones(1), 1)
            >>> moments.matrices([[1, 2, 3], [4, 5, 6]]).shape
            (1, 2, 3)
        """
        return np.asarray(parameter, np.float64).ravel()[self.indices]

    def parameter(self, matrices: np.ndarray, like: Any) -> np.ndarray:
        """Return a parameter with other matrices in it; what the product does not read stays as in `like`."""
        flat = np.array(like).ravel()
        flat[self.indices] = matrices
        return flat.reshape(np.shape(like))


def input_moments(
    experiment: Experiment,
    params: Any,
    model_state: Any,
    *,
    rows: int = 4000,
    seed: int = 0,
    paths: Sequence[str] = (".*",),
    say: Callable[[str], None] = lambda _: None,
) -> dict[Key, Moments]:
    """Compute the moments of the inputs of every product with a parameter, over rows of the training split.

    The forward pass is that of evaluation, in the types of the parameters. Dense layers, convolutions (whose inputs are
    patches), recurrent cells (their states) and attention's products are all found in the traced program, whoever wrote
    the layer. Steps behind a sequence's length count as zeros in products of inputs, and not at all in those of
    accelnet's recurrent kernels. Where a product has more inputs than help, patches of a convolution or steps of a
    sequence, they are drawn at random. Not found: kernels that are computed from others, products in a `while` loop or
    in a branch that the data chooses, and parts of an axis.

    Args:
        experiment: What was trained.
        params: Parameters, nested dict, frozen ones among them.
        model_state: State of the model.
        rows: Rows of the training split, drawn by the seed; all of a smaller one. Of more rows than an evaluation batch
            whole batches are taken.
        seed: Seed of the draw.
        paths: Regular expressions of whole paths of parameters: the memory is that of their moments.
        say: Function that is told what is being done.

    Returns:
        `Moments` by (path, axes). A parameter that is contracted in two ways, as a tied embedding is, is there twice;
        one that is used in several places has the sums over all of them.

    Raises:
        UserError: if the inputs of a layer are not finite, or an argument is out of range.

    Example:
        >>> import accelnet as an
        >>> experiment = an.Experiment(
        ...     data=an.data.xor(),
        ...     model=lambda rngs: an.models.MLP(2, (8,), 1, rngs=rngs),
        ...     batch_size=4,
        ...     steps=1,
        ...     optimizer=an.optim.adam(1e-2),
        ...     objective=an.objectives.sigmoid_cross_entropy(),
        ... )
        >>> params, state = experiment.pure_model.init(jax.random.key(0))
        >>> moments = input_moments(experiment, params, state)
        >>> [(path, axes, one.gram.shape) for (path, axes), one in sorted(moments.items())]
        [('head.kernel', (0,), (1, 8, 8)), ('layers.0.linear.kernel', (0,), (1, 2, 2))]
        >>> moments["layers.0.linear.kernel", (0,)].gram[0].tolist()
        [[2.0, 1.0], [1.0, 2.0]]
    """
    check_patterns("paths", paths)
    numbers = drawn_rows(experiment, integer("rows", rows, 1), seed)
    size = min(experiment.resolved_eval_batch_size, len(numbers))
    num_batches = len(numbers) // size

    def batch_of(index: int) -> dict[str, Any]:
        return {**experiment.data.take(numbers[index * size : (index + 1) * size]), "mask": np.ones(size, bool)}

    uses: dict[Key, Use] = {}

    def program(params: Any, model_state: Any, batch: Any, seed: Array) -> Any:
        sink = _Sums(seed, size, num_batches)
        _watch(experiment, params, model_state, batch, sink, paths)
        uses.update(sink.uses)
        return sink.sums

    compiled, found = jax.jit(program), {}
    for index in range(num_batches):
        say(f"activations: {index * size:,} of {num_batches * size:,} rows")
        sums = jax.device_get(compiled(params, model_state, batch_of(index), np.uint32(seed + index)))
        for name, parts in sums.items():
            if name not in found:
                found[name] = [part.astype(np.float64) for part in parts]
            else:
                for total, part in zip(found[name], parts, strict=True):
                    total += part
    for name, (gram, *_) in found.items():
        if not np.isfinite(gram).all():
            raise UserError(f"the inputs of {name[0]} are not finite: the weights cannot be used")
    return {
        (path, axes): Moments(path, axes, uses[path, axes].indices, gram, total, count, rows[0] / (num_batches * size))
        for (path, axes), (gram, total, count, rows) in found.items()
    }


def drawn_rows(experiment: Experiment, rows: int, seed: int) -> np.ndarray:
    """Draw numbers of training rows in the data's arrays, rising; all of a smaller split.

    Example:
        >>> import accelnet as an
        >>> experiment = an.Experiment(
        ...     data=an.data.xor(),
        ...     model=lambda rngs: an.models.MLP(2, (8,), 1, rngs=rngs),
        ...     batch_size=4,
        ...     steps=1,
        ...     optimizer=an.optim.adam(1e-2),
        ...     objective=an.objectives.sigmoid_cross_entropy(),
        ... )
        >>> drawn_rows(experiment, 9, 0)
        array([0, 1, 2, 3])
    """
    train = experiment.data.splits["train"]
    stream = experiment.data.stream
    known = train if stream is None else range(stream.batch_size)  # rows of a stream come once
    chosen = np.random.default_rng(seed).permutation(len(known))[:rows]
    return known.start + np.sort(chosen)


def _watch(
    experiment: Experiment, params: Any, model_state: Any, batch: Any, sink: "_Sums", paths: Sequence[str]
) -> None:
    batch = prepared(experiment, batch)
    step, key = jnp.int32(experiment.total_steps), jax.random.key(0)

    def forward(params: Any, model_state: Any, inputs: Any) -> Any:
        offered = {"step": step, "progress": experiment.progress(step)}
        outputs, _ = experiment.pure_model.apply(params, model_state, inputs, key=key, train=False, **offered)
        return [leaf for leaf in jax.tree.leaves(outputs) if hasattr(leaf, "dtype")]

    operands = params, model_state, batch["inputs"]
    values = []
    for path, leaf in path_names(params):
        wanted = any(re.fullmatch(pattern, path) for pattern in paths)
        values.append(TracedValue(leaf, origin_of(path, leaf.shape) if wanted else None, fixed=True))
    values += [TracedValue(leaf, fixed=True) for leaf in jax.tree.leaves(model_state)]
    values += [TracedValue(leaf) for leaf in jax.tree.leaves(batch["inputs"])]
    Watcher(sink).run(jax.make_jaxpr(forward)(*operands), values)


class _Sums:
    """Sum the moments of what a watcher shows; all that is kept is by path and axes."""

    def __init__(self, seed: Array, batch_size: int, num_batches: int) -> None:
        self._settings = seed, batch_size, num_batches
        self.uses: dict[Key, Use] = {}
        self.sums: dict[Key, tuple[Array, ...]] = {}
        self._strides: dict[Key, int] = {}

    def see(self, inputs: Inputs) -> None:
        name = inputs.use.path, inputs.use.axes
        if self._know(inputs.use):
            self._add(name, self._moments(inputs, inputs.use.indices.shape[1]))
            self._strides |= {name: inputs.stride} if inputs.stride else {}

    def _know(self, use: Use) -> bool:
        """Note which elements of a parameter are used; False where they are in other groups than elsewhere."""
        before = self.uses.setdefault((use.path, use.axes), use)
        if before.indices.shape[:2] != use.indices.shape[:2]:
            return False
        new = ~np.isin(use.indices[0, 0], before.indices[0, 0])
        indices = np.concatenate([before.indices, use.indices[..., new]], axis=-1)
        self.uses[use.path, use.axes] = use._replace(indices=indices)
        return True

    def _add(self, name: Key, sums: tuple[Array, ...]) -> None:
        self.sums[name] = jax.tree.map(jnp.add, self.sums[name], sums) if name in self.sums else sums

    def _moments(self, inputs: Inputs, num_features: int) -> tuple[Array, ...]:
        seed, batch_size, num_batches = self._settings
        wanted = max(_FEWEST_INPUTS, _INPUTS_PER_FEATURE * num_features)
        most = max(4 * batch_size, -(-wanted // num_batches))
        chosen = None
        if inputs.num_rows > most:
            # One of each of as many neighbouring stretches: no row is drawn twice, and none is more likely.
            words = mix(mix(seed + jnp.uint32(len(self.sums))) ^ jnp.arange(most, dtype=jnp.uint32))
            places = jnp.arange(most) + words / 2.0**32
            chosen = jnp.minimum((places * (inputs.num_rows / most)).astype(jnp.int32), inputs.num_rows - 1)
        x = inputs.rows(chosen).astype(jnp.float32)
        weights = jnp.ones(inputs.num_rows) if inputs.weights is None else inputs.weights
        weights = (weights if chosen is None else weights[chosen])[None, :, None]
        x = jnp.where(weights > 0, x, 0.0)  # what does not count may be anything, NaN included
        gram = jnp.einsum("grk,grl->gkl", x * weights, x, precision=lax.Precision.HIGHEST)
        counts = (jnp.full(len(x), number, jnp.float32) for number in (weights.sum(), inputs.num_rows))
        return gram, (x * weights).sum(1), *counts

    def inner(self) -> "_Sums":
        return _Sums(*self._settings)

    def arrays(self) -> tuple[dict[Key, Any], dict[Key, Any]]:
        stacked = {name: sums for name, sums in self.sums.items() if name in self._strides}
        return {name: sums for name, sums in self.sums.items() if name not in stacked}, stacked

    def take(self, body: "_Sums", total: dict[Key, Any], stacked: dict[Key, Any]) -> None:
        for name, sums in total.items():
            if self._know(body.uses[name]):
                self._add(name, sums)
        for name, sums in stacked.items():
            # A parameter [layers, ...]: the inputs of every layer are a group of their own.
            use, starts = body.uses[name], body._strides[name] * np.arange(len(sums[0]))
            indices = starts[:, None, None, None] + use.indices
            if self._know(use._replace(indices=indices.reshape(-1, *use.indices.shape[1:]))):
                self._add(name, jax.tree.map(lambda one: one.reshape(-1, *one.shape[2:]), sums))
