"""The losses, each as a whole objective with the metrics one usually wants beside it.

Every one takes `metrics=`: names to add or to replace, None to leave one out. All compute in float32.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from accelnet.arguments import number
from accelnet.errors import UserError
from accelnet.objectives.metric import Metric
from accelnet.objectives.metrics import Accuracy, BitsPerCharacter, Perplexity
from accelnet.objectives.objective import Objective, Task, check_metrics
from accelnet.objectives.regression import R2, BinaryAccuracy, MeanAbsoluteError, paired
from accelnet.objectives.weights import Batch, safe_ratio
from accelnet.wording import shown

Metrics = Mapping[str, Metric | None]


def softmax_cross_entropy(
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | np.ndarray | None = None,
    focal: float = 0.0,
    metrics: Metrics | None = None,
) -> Objective:
    """Descend the cross-entropy of classes that exclude each other.

    `loss = -sum_c q_c (1 - p_c)^f log p_c`, `p = softmax(outputs)`, `q = (1 - s) target + s / C`, and over examples
    `sum(w l) / sum(w)` with `w = mask * batch weight * class_weights[target]`. Outputs are logits [B, ..., C], such as
    [B, C] or, of every pixel, [B, H, W, C]. Targets are the numbers of the classes, int[B, ...], or shares of them that
    sum to 1, [B, ..., C]: one-hot, or soft as mixing examples makes them. With smoothing and class weights both, an
    example's whole smoothed loss is weighted by its target's class. An example of soft targets counts as one of each
    class, in parts: of `class_weights` it has `w = sum_c target_c w_c`, and the target `target_c w_c / w`.

    Args:
        label_smoothing: s, in [0, 1).
        class_weights: C numbers, not negative, not all 0.
        focal: f, at least 0: how much less the examples count that are right already; 2 is usual.
        metrics: beside or instead of `loss` and `accuracy`.

    Raises:
        UserError: an argument is out of its range, or, when used, shapes or dtypes do not fit.

    Example:
        >>> objective = softmax_cross_entropy(class_weights=(1.0, 3.0))
        >>> batch = {"targets": jnp.array([0, 1]), "mask": jnp.array([True, True])}
        >>> mean, states = objective.evaluate(jnp.array([[1.0, 0.0], [0.0, 0.0]]), batch)
        >>> round(float(mean), 4), float(objective.compute(states)["accuracy"])
        (0.5982, 0.5)

    Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016, section 7; Lin et al.,
    "Focal loss for dense object detection", 2017, equation 4.
    """
    number("label_smoothing", label_smoothing, 0, below=1, varies=True)
    focal = number("focal", focal, 0)
    table = None if class_weights is None else _class_weights(class_weights)

    def loss(outputs: Any, batch: Batch) -> Any:
        targets, expected = batch["targets"], "[B, ..., C]"
        if table is None or jnp.ndim(outputs) < 2:
            return _cross_entropy(outputs, targets, expected, label_smoothing, focal)
        if table.shape != outputs.shape[-1:]:
            raise UserError(f"{table.size} class_weights, {outputs.shape[-1]} classes: give one for each")
        weights = jnp.asarray(table)
        if targets.shape == outputs.shape:
            shares = targets.astype(jnp.float32) * weights.reshape((1,) * (targets.ndim - 1) + (-1,))
            own = jnp.sum(shares, axis=-1)
            shares = safe_ratio(shares, own[..., None])
            return _cross_entropy(outputs, shares, expected, label_smoothing, focal), own
        losses = _cross_entropy(outputs, targets, expected, label_smoothing, focal)
        return losses, jnp.take(weights, targets.astype(jnp.int32), mode="clip")

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

    def loss(outputs: Any, batch: Batch) -> jax.Array:
        if jnp.ndim(outputs) != 3:
            raise UserError(
                f"outputs have shape {jnp.shape(outputs)} and targets {jnp.shape(batch['targets'])}: expected outputs "
                "[B, T, V] and one target for each of their rows of logits"
            )
        return _cross_entropy(outputs, batch["targets"], "[B, T, V]")

    defaults = {"accuracy": Accuracy(), "perplexity": Perplexity(), "bits_per_character": BitsPerCharacter()}
    return _objective(loss, defaults, metrics, "tokens")


def sigmoid_cross_entropy(*, focal: float = 0.0, metrics: Metrics | None = None) -> Objective:
    """Descend the cross-entropy of labels that do not exclude each other, or of one binary label.

    `loss = mean_k(-t_k (1 - p_k)^f log p_k - (1 - t_k) p_k^f log(1 - p_k))`, `p = sigmoid(outputs)`. Outputs are logits
    [B] or [B, K], targets of the same shape (or [B] and [B, 1]), numbers in [0, 1].

    Args:
        focal: f, at least 0: how much less the examples count that are right already; 2 is usual.
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
    focal = number("focal", focal, 0)

    def loss(outputs: Any, batch: Batch) -> jax.Array:
        logits, targets = paired(outputs, batch["targets"])
        if focal:
            yes, no = (_focused(jax.nn.log_sigmoid(one), focal) for one in (logits, -logits))
            losses = -targets * yes - (1.0 - targets) * no
        else:
            losses = optax.sigmoid_binary_cross_entropy(logits, targets)
        return jnp.mean(losses, axis=1)

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
    """

    def loss(outputs: Any, batch: Batch) -> jax.Array:
        outputs, targets = paired(outputs, batch["targets"])
        return jnp.mean((outputs - targets) ** 2, axis=1)

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
    number("huber: delta", delta, above=0, varies=True)

    def loss(outputs: Any, batch: Batch) -> jax.Array:
        outputs, targets = paired(outputs, batch["targets"])
        return jnp.mean(optax.huber_loss(outputs, targets, delta=delta), axis=1)

    return _objective(loss, _regression(num_outputs), metrics, "numbers")


def _regression(num_outputs: int) -> dict[str, Metric]:
    return {"mean_absolute_error": MeanAbsoluteError(), "r2": R2(num_outputs)}


def _objective(
    loss: Callable[..., Any], defaults: Mapping[str, Metric], metrics: Metrics | None, task: Task
) -> Objective:
    chosen = {**defaults, **({} if metrics is None else check_metrics(metrics))}
    return Objective(loss, {name: metric for name, metric in chosen.items() if metric is not None}, task)


def _class_weights(class_weights: Sequence[float] | np.ndarray) -> np.ndarray:
    try:
        table = np.asarray(class_weights, np.float32)
    except (TypeError, ValueError):
        table = np.zeros(())
    if table.ndim != 1 or not np.all(np.isfinite(table)) or np.any(table < 0) or not np.any(table > 0):
        raise UserError(
            f"class_weights is {shown(class_weights)}, expected one number per class, none negative, not all 0"
        )
    return table


def _cross_entropy(
    outputs: Any, targets: Any, expected: str, label_smoothing: float = 0.0, focal: float = 0.0
) -> jax.Array:
    """Compute `logsumexp(o) - (1 - s) o[target] - s mean(o)`; a target that is no class gives NaN."""
    soft = jnp.shape(targets) == jnp.shape(outputs)
    if jnp.ndim(outputs) < 2 or not (soft or jnp.shape(targets) == jnp.shape(outputs)[:-1]):
        raise UserError(
            f"outputs have shape {jnp.shape(outputs)} and targets {jnp.shape(targets)}: "
            f"expected outputs {expected} and one target for each of their rows of logits"
        )
    logits = outputs.astype(jnp.float32)
    if soft:
        shares = targets.astype(jnp.float32)
        if label_smoothing:
            shares = (1.0 - label_smoothing) * shares + label_smoothing / logits.shape[-1]
        return -jnp.sum(shares * _focused(jax.nn.log_softmax(logits), focal), axis=-1)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise UserError(f"targets have dtype {targets.dtype}, expected integers: the number of the class")
    targets = targets.astype(jnp.int32)
    # A comparison instead of a gather: its gradient is elementwise, a gather's is a scatter.
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    if focal:
        logs = _focused(jax.nn.log_softmax(logits), focal)
        losses = -(1.0 - label_smoothing) * jnp.sum(jnp.where(classes == targets[..., None], logs, 0.0), axis=-1)
        losses = losses - label_smoothing * jnp.mean(logs, axis=-1)
    else:
        own = jnp.sum(jnp.where(classes == targets[..., None], logits, 0.0), axis=-1)
        losses = jax.nn.logsumexp(logits, axis=-1) - (1.0 - label_smoothing) * own
        if label_smoothing:
            losses = losses - label_smoothing * jnp.mean(logits, axis=-1)
    return jnp.where((targets >= 0) & (targets < logits.shape[-1]), losses, jnp.nan)


def _focused(logs: jax.Array, focal: float) -> jax.Array:
    # Above 0, where the power has a derivative.
    return jnp.maximum(-jnp.expm1(logs), 1e-7) ** focal * logs if focal else logs
