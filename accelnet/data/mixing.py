"""Mixtures of training examples, whose labels follow: mixup and cutmix."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.arguments import integer, number
from accelnet.data.augment import Augment, floats_of, images_of, uniform, whole_number
from accelnet.data.moves import inside
from accelnet.errors import UserError

_NUM_QUANTILES = 4096


def mixup(alpha: float = 0.2, *, num_classes: int | None = None) -> Augment:
    """Make an augmentation that mixes each example with its neighbour, and their targets alike.

        x_i <- l_i x_i + (1 - l_i) x_j,   y_i <- l_i y_i + (1 - l_i) y_j,   l_i ~ Beta(alpha, alpha)

    Neighbours are the examples 0 and 1, 2 and 3, ... of a batch, whose order is random: no pair depends on the batch's
    size, and none lies on two devices. An example whose neighbour is padding, or has the weight 0, stays as it is.

    Integer targets are numbers of classes and become float32[B, ..., num_classes], shares of the classes, which
    `softmax_cross_entropy` takes and accuracies count by the largest share; for `sigmoid_cross_entropy` and losses of
    numbers they become floats. Floats and booleans are mixed as numbers, and so are the examples' weights.

    Args:
        alpha: above 0; the smaller, the closer most mixtures are to one of the two.
        num_classes: number of classes of integer targets; None for that of the data.

    Returns:
        (key, batch) -> batch, for `batch["inputs"]` of floats [B, ...] and `batch["targets"]`, an array. What happens
        to a pair depends on the key, its place and what is in it alone.

    Raises:
        UserError: if an argument is out of its range; when used, if B is odd, inputs or targets are no such array, or
            the number of classes is not known.

    Example:
        >>> batch = {"inputs": jnp.eye(2), "targets": jnp.array([0, 1])}
        >>> mixed = mixup(num_classes=2)(jax.random.key(0), batch)
        >>> bool((mixed["inputs"] == mixed["targets"]).all()), mixed["targets"].sum(1).tolist()
        (True, [1.0, 1.0])

    Source: H. Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018, equation 1 (arXiv:1710.09412).
    """
    quantiles, given = _beta_quantiles(alpha), _check_classes(num_classes)

    def augment(key: jax.Array, batch: Any, *, num_classes: int | None = None, task: str | None = None) -> Any:
        inputs = floats_of(batch["inputs"], "an array of floats [batch, ...]")
        targets = _soft(batch, _agreed(given, num_classes), task)
        share = jnp.where(_mixes(batch, len(inputs)), _draw(quantiles, uniform(key, (len(inputs),))), 1.0)
        return {**batch, "inputs": _blend(inputs, share), **_labels(batch, targets, share)}

    return augment


def cutmix(alpha: float = 1.0, *, num_classes: int | None = None) -> Augment:
    """Make an augmentation that puts a box of its neighbour into each image, and mixes the targets by its area.

    The box has the image's proportions and the share 1 - l of its area, l ~ Beta(alpha, alpha), and a centre drawn at
    random; what lies outside is lost, and the targets' shares are those of the pixels that are there. Neighbours, and
    what becomes of targets and weights, are as for `mixup`.

    Args:
        alpha: above 0; 1 makes all areas equally likely.
        num_classes: number of classes of integer targets; None for that of the data.

    Returns:
        (key, batch) -> batch, for `batch["inputs"]` [B, height, width, channels] and targets of whole images, [B] or
        [B, K].

    Raises:
        UserError: if an argument is out of its range; when used, if B is odd, inputs are no images, targets no such
            array, or the number of classes is not known.

    Example:
        >>> images = jnp.stack([jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))])
        >>> mixed = cutmix(num_classes=2)(jax.random.key(0), {"inputs": images, "targets": jnp.array([0, 1])})
        >>> (mixed["inputs"].mean((1, 2, 3)) == mixed["targets"][:, 1]).tolist()
        [True, True]

    Source: S. Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019,
    equations 1 and 2 (arXiv:1905.04899).
    """
    quantiles, given = _beta_quantiles(alpha), _check_classes(num_classes)

    def augment(key: jax.Array, batch: Any, *, num_classes: int | None = None, task: str | None = None) -> Any:
        images = images_of(batch)
        targets = _soft(batch, _agreed(given, num_classes), task)
        if jnp.ndim(batch["targets"]) > 2:
            raise UserError(
                f"targets have shape {jnp.shape(batch['targets'])}, and cutmix mixes those of whole images, [batch] or "
                "[batch, classes]: leave it out"
            )
        draws, shape = uniform(key, (len(images), 3)), jnp.array(images.shape[1:3])
        size = whole_number(jnp.sqrt(1.0 - _draw(quantiles, draws[:, 0]))[:, None], shape[None, :])
        first = whole_number(draws[:, 1:], shape[None, :]) - size // 2
        box = inside(images.shape[1:3], first, first + size) & _mixes(batch, len(images))[:, None, None, None]
        share = 1.0 - box.mean((1, 2, 3), dtype=jnp.float32)
        return {**batch, "inputs": jnp.where(box, _neighbours(images), images), **_labels(batch, targets, share)}

    return augment


def _beta_quantiles(alpha: float) -> np.ndarray:
    """Return the quantiles of Beta(alpha, alpha) at even steps, float32, the first 0 and the last 1.

    Between two of them a draw is interpolated, which changes its probability by 1/4096 at most. 128 draws in a loop on
    2 cores: 0.03 ms, and 0.5 s to compile; `jax.random.beta`, which rejects draws, 0.16 ms and 2 s.
    """
    from scipy.special import betaincinv

    alpha = number("alpha", alpha, above=0)
    return betaincinv(alpha, alpha, np.linspace(0.0, 1.0, _NUM_QUANTILES + 1)).astype(np.float32)


def _draw(quantiles: np.ndarray, share: jax.Array) -> jax.Array:
    place = share * _NUM_QUANTILES
    low = jnp.floor(place)
    index, table = low.astype(jnp.int32), jnp.asarray(quantiles)
    return table[index] + (place - low) * (table[index + 1] - table[index])


def _neighbours(array: jax.Array) -> jax.Array:
    """Return each example's neighbour: [1, 0, 3, 2, ...] of [0, 1, 2, 3, ...]."""
    pairs = array.reshape(len(array) // 2, 2, *array.shape[1:])
    return jnp.flip(pairs, 1).reshape(array.shape)


def _blend(array: jax.Array, share: jax.Array) -> jax.Array:
    share = share.reshape(-1, *(1,) * (array.ndim - 1))
    own = array.astype(jnp.float32)
    # A selection: nothing of a neighbour that does not count may come in, NaN neither.
    return jnp.where(share < 1.0, share * own + (1.0 - share) * _neighbours(own), own).astype(array.dtype)


def _mixes(batch: Any, num_examples: int) -> jax.Array:
    """Mark the examples that are mixed: those that count, and whose neighbours do."""
    if num_examples % 2:
        raise UserError(
            f"the batch, or each device's part of it, has {num_examples} examples, and neighbours are mixed: expected "
            "an even number, take another batch_size or microbatch_size"
        )
    counts = jnp.ones(num_examples, bool) if batch.get("mask") is None else jnp.asarray(batch["mask"], bool)
    if batch.get("weights") is not None:
        if jnp.ndim(batch["weights"]) != 1:
            raise UserError(
                f"weights have shape {jnp.shape(batch['weights'])}, expected one for each example that is mixed"
            )
        counts = counts & (jnp.asarray(batch["weights"]) != 0)
    return counts & _neighbours(counts)


def _labels(batch: Any, targets: jax.Array, share: jax.Array) -> dict[str, jax.Array]:
    labels = {"targets": _blend(targets, share)}
    if batch.get("weights") is not None:
        labels["weights"] = _blend(jnp.asarray(batch["weights"], jnp.float32), share)
    return labels


def _check_classes(num_classes: int | None) -> int | None:
    return None if num_classes is None else integer("num_classes", num_classes, 1)


def _agreed(given: int | None, of_data: int | None) -> int | None:
    if given is not None and of_data is not None and given != of_data:
        raise UserError(f"num_classes is {given}, and the data has {of_data} classes: leave it out, or give {of_data}")
    return of_data if given is None else given


def _soft(batch: Any, num_classes: int | None, task: str | None) -> jax.Array:
    """Return targets that can be mixed: floats."""
    targets = batch["targets"]
    if isinstance(targets, Mapping) or not hasattr(targets, "dtype"):
        named = f" of {', '.join(targets)}" if isinstance(targets, Mapping) else ""
        raise UserError(f"targets are a {type(targets).__name__}{named}, and one array of them can be mixed")
    targets = jnp.asarray(targets)
    if task == "tokens":
        raise UserError("targets are tokens, which cannot be mixed: leave mixup and cutmix out")
    if jnp.issubdtype(targets.dtype, jnp.floating):
        return targets
    if targets.dtype == bool or task in ("labels", "numbers"):
        return targets.astype(jnp.float32)
    if num_classes is None:
        raise UserError(
            "targets are whole numbers, and the number of classes is not known: give num_classes to the data, or "
            "to mixup or cutmix; if they are quantities, make them floats"
        )
    shares = jax.nn.one_hot(targets, num_classes, dtype=jnp.float32)
    # NaN for what is no class, as the loss has it for a number.
    return jnp.where(((targets >= 0) & (targets < num_classes))[..., None], shares, jnp.nan)
