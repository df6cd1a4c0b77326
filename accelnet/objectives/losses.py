"""The losses, each as a whole objective with the metrics one usually wants beside it.

Every one takes `metrics=`: names to add or to replace, None to leave one out. All compute in float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from accelnet.errors import UserError
from accelnet.objectives.metric import Batch, Metric, example_weights
from accelnet.objectives.metrics import Accuracy, BitsPerCharacter, Perplexity
from accelnet.objectives.objective import LossFunction, Objective, Task
from accelnet.objectives.regression import R2, BinaryAccuracy, MeanAbsoluteError, paired

Metrics = Mapping[str, Metric | None]


def softmax_cross_entropy(
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | np.ndarray | None = None,
    metrics: Metrics | None = None,
) -> Objective:
    """Descend the cross-entropy of classes that exclude each other.

    `loss = -sum_c q_c log softmax(outputs)_c`, `q = (1 - s) onehot(target) + s / C`, and over examples
    `sum(w l) / sum(w)` with `w = mask * batch weight * class_weights[target]`. Outputs are logits [B, C],
    targets int[B]. With smoothing and class weights both, an example's whole smoothed loss is weighted by its
    target's class.

    Args:
        label_smoothing: s, in [0, 1).
        class_weights: C numbers, not negative, not all 0.
        metrics: beside or instead of `loss` and `accuracy`.

    Raises:
        UserError: an argument is out of its range, or, when used, shapes or dtypes do not fit.

    Example:
        >>> objective = softmax_cross_entropy(class_weights=(1.0, 3.0))
        >>> batch = {"targets": jnp.array([0, 1]), "mask": jnp.array([True, True])}
        >>> mean, states = objective.evaluate(jnp.array([[1.0, 0.0], [0.0, 0.0]]), batch)
        >>> round(float(mean), 4), float(objective.compute(states)["accuracy"])
        (0.5982, 0.5)

    Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016, section 7.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(f"label_smoothing is {label_smoothing}, expected a number in [0, 1)")
    table = None if class_weights is None else _class_weights(class_weights)

    def loss(outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        targets = batch["targets"]
        losses = _cross_entropy(outputs, targets, "[B, C]", label_smoothing)
        weights = example_weights(batch, losses.shape)
        if table is not None:
            if table.shape != outputs.shape[-1:]:
                raise UserError(f"{table.size} class_weights, {outputs.shape[-1]} classes: give one for each")
            weights = weights * jnp.take(jnp.asarray(table), targets.astype(jnp.int32), mode="clip")
        return losses, weights

    return _objective(loss, {"accuracy": Accuracy()}, metrics, "classes")


def token_cross_entropy(*, metrics: Metrics | None = None) -> Objective:
    """Descend the cross-entropy per token: `loss = -log softmax(outputs)[target]` at each step.

    Outputs are logits [B, T, V], targets int[B, T]. `batch["weights"]`, [B] or [B, T], is 0 where a series
    has ended. The mean is over tokens, not over series.

    Args:
        metrics: beside or instead of `loss`, `accuracy`, `perplexity` and `bits_per_character`.

    Raises:
        UserError: when used, shapes or dtypes do not fit.

    Example:
        >>> objective = token_cross_entropy()
        >>> batch = {"targets": jnp.array([[0, 1]]), "weights": jnp.array([[1.0, 0.0]])}
        >>> mean, states = objective.evaluate(jnp.zeros((1, 2, 4)), batch)
        >>> round(float(objective.compute(states)["bits_per_character"]), 4)
        2.0

    Source: Graves, "Generating sequences with recurrent neural networks", 2013, equation 6.
    """

    def loss(outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        losses = _cross_entropy(outputs, batch["targets"], "[B, T, V]", 0.0)
        return losses, example_weights(batch, losses.shape)

    defaults = {"accuracy": Accuracy(), "perplexity": Perplexity(), "bits_per_character": BitsPerCharacter()}
    return _objective(loss, defaults, metrics, "tokens")


def sigmoid_cross_entropy(*, metrics: Metrics | None = None) -> Objective:
    """Descend the cross-entropy of labels that do not exclude each other, or of one binary label.

    `loss = mean_k(-t_k log sigmoid(o_k) - (1 - t_k) log sigmoid(-o_k))`. Outputs are logits [B] or [B, K],
    targets of the same shape (or [B] and [B, 1]), numbers in [0, 1].

    Args:
        metrics: beside or instead of `loss` and `accuracy` (the share of labels that are right).

    Raises:
        UserError: when used, shapes do not fit.

    Example:
        >>> objective = sigmoid_cross_entropy()
        >>> mean, _ = objective.evaluate(jnp.array([[0.0], [0.0]]), {"targets": jnp.array([0, 1])})
        >>> round(float(mean), 4)
        0.6931

    Source: Bishop, "Pattern recognition and machine learning", 2006, equation 4.90.
    """

    def loss(outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits, targets = paired(outputs, batch["targets"])
        losses = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=1)
        return losses, example_weights(batch, losses.shape)

    return _objective(loss, {"accuracy": BinaryAccuracy()}, metrics, "labels")


def squared_error(*, num_outputs: int = 1, metrics: Metrics | None = None) -> Objective:
    """Descend the squared error: `loss = mean_k (o_k - t_k)^2`.

    Outputs and targets are [B] or [B, K]; [B] and [B, 1] are the same, nothing else is broadcast.

    Args:
        num_outputs: K.
        metrics: beside or instead of `loss`, `mean_absolute_error` and `r2`.

    Raises:
        UserError: when used, shapes do not fit.

    Example:
        >>> objective = squared_error()
        >>> mean, _ = objective.evaluate(jnp.array([[1.0], [2.0]]), {"targets": jnp.array([1.0, 4.0])})
        >>> float(mean)
        2.0

    Source: original.
    """

    def loss(outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        outputs, targets = paired(outputs, batch["targets"])
        return jnp.mean((outputs - targets) ** 2, axis=1), example_weights(batch, outputs.shape[:1])

    return _objective(loss, _regression(num_outputs), metrics, "numbers")


def huber(*, delta: float = 1.0, num_outputs: int = 1, metrics: Metrics | None = None) -> Objective:
    """Descend Huber's error: `e^2 / 2` where `|e| <= delta`, else `delta (|e| - delta / 2)`; `e = o - t`.

    Outputs and targets as for `squared_error`; an example's loss is the mean over its outputs.

    Args:
        delta: above 0.
        num_outputs: K.
        metrics: beside or instead of `loss`, `mean_absolute_error` and `r2`.

    Raises:
        UserError: delta is not above 0, or, when used, shapes do not fit.

    Example:
        >>> mean, _ = huber().evaluate(jnp.array([0.5, 3.0]), {"targets": jnp.array([0.0, 0.0])})
        >>> float(mean)
        1.3125

    Source: Huber, "Robust estimation of a location parameter", 1964.
    """
    if not delta > 0:
        raise UserError(f"huber: delta is {delta}, expected a number above 0")

    def loss(outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        outputs, targets = paired(outputs, batch["targets"])
        losses = jnp.mean(optax.huber_loss(outputs, targets, delta=delta), axis=1)
        return losses, example_weights(batch, losses.shape)

    return _objective(loss, _regression(num_outputs), metrics, "numbers")


def _regression(num_outputs: int) -> dict[str, Metric]:
    return {"mean_absolute_error": MeanAbsoluteError(), "r2": R2(num_outputs)}


def _objective(loss: LossFunction, defaults: Mapping[str, Metric], metrics: Metrics | None, task: Task) -> Objective:
    chosen = {**defaults, **(metrics or {})}
    return Objective(loss, {name: metric for name, metric in chosen.items() if metric is not None}, task)


def _class_weights(class_weights: Sequence[float] | np.ndarray) -> np.ndarray:
    table = np.asarray(class_weights, np.float32)
    if table.ndim != 1 or not np.all(np.isfinite(table)) or np.any(table < 0) or not np.any(table > 0):
        raise UserError(f"class_weights is {class_weights}, expected one number per class, none negative, not all 0")
    return table


def _cross_entropy(outputs: Any, targets: Any, expected: str, label_smoothing: float) -> jax.Array:
    """Compute `logsumexp(o) - (1 - s) o[target] - s mean(o)`; a target that is no class gives NaN."""
    num_axes = expected.count(",") + 1
    if jnp.ndim(outputs) != num_axes or jnp.shape(targets) != jnp.shape(outputs)[:-1]:
        raise UserError(
            f"outputs have shape {jnp.shape(outputs)} and targets {jnp.shape(targets)}: "
            f"expected outputs {expected} and one target for each of their rows of logits"
        )
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise UserError(f"targets have dtype {targets.dtype}, expected integers: the number of the class")
    logits, targets = outputs.astype(jnp.float32), targets.astype(jnp.int32)
    # A comparison instead of a gather: its gradient is elementwise, a gather's is a scatter.
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    own = jnp.sum(jnp.where(classes == targets[..., None], logits, 0.0), axis=-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - (1.0 - label_smoothing) * own
    if label_smoothing:
        losses = losses - label_smoothing * jnp.mean(logits, axis=-1)
    return jnp.where((targets >= 0) & (targets < logits.shape[-1]), losses, jnp.nan)
