"""Random changes of training series: noise, and steps or features that are left out, within the series' lengths."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from accelnet.arguments import integer, number
from accelnet.data.augment import Augment, bits, floats_of, uniform, whole_number
from accelnet.errors import UserError

_EXPECTED = "series [batch, steps, features] of floats, or a dict of `inputs` and `lengths`"


def random_noise(std: float = 0.1) -> Augment:
    """Make an augmentation that adds normal noise: to series, where they have values, and to any array of floats.

    Args:
        std: standard deviation of the noise, at least 0, in units of the inputs: after standardization 1 is a standard
            deviation of the training rows.

    Returns:
        (key, batch) -> batch, for `batch["inputs"]` of floats [B, ...], or a dict of `inputs` [B, steps, ...] and
        `lengths` [B], whose steps beyond stay as they are. What happens to example i depends on the key and i alone,
        not on B.

    Raises:
        UserError: if std is below 0; when used, if inputs are no floats.

    Example:
        >>> batch = {"inputs": {"inputs": jnp.zeros((1, 3, 1)), "lengths": jnp.array([2])}}
        >>> (random_noise()(jax.random.key(0), batch)["inputs"]["inputs"].ravel() != 0).tolist()
        [True, True, False]
    """
    std = number("std", std, 0)

    def augment(key: jax.Array, batch: Any) -> Any:
        values, lengths = _series(batch)
        noisy = (values.astype(jnp.float32) + std * _normal(key, values.shape)).astype(values.dtype)
        if lengths is None:
            return _with(batch, noisy)
        valid = jnp.arange(values.shape[1])[None, :] < lengths[:, None]
        return _with(batch, jnp.where(valid.reshape(*valid.shape, *(1,) * (values.ndim - 2)), noisy, values))

    return augment


def time_mask(width: int = 5) -> Augment:
    """Make an augmentation that sets neighbouring steps of each series to zero: at most `width`, and at most half.

    Their number is drawn evenly from 0 to the most, their place evenly within the series' length. After
    standardization zero is the mean of the training rows.

    Args:
        width: most steps, at least 1.

    Returns:
        (key, batch) -> batch, for `batch["inputs"]` of floats [B, steps, ...], or a dict of such `inputs` and
        `lengths` [B]. What happens to example i depends on the key and i alone, not on B.

    Raises:
        UserError: if width is below 1; when used, if inputs are no series of floats.

    Example:
        >>> batch = {"inputs": {"inputs": jnp.ones((1, 9, 1)), "lengths": jnp.array([2])}}
        >>> {int(time_mask()(jax.random.key(k), batch)["inputs"]["inputs"].sum()) for k in range(9)}
        {8, 9}

    Source: D. Park et al., SpecAugment, 2019, section 2 (arXiv:1904.08779).
    """
    width = integer("width", width, low=1)

    def augment(key: jax.Array, batch: Any) -> Any:
        values, lengths = _series(batch, least_axes=2)
        lengths = jnp.full(len(values), values.shape[1]) if lengths is None else lengths
        draws = uniform(key, (len(values), 2))
        number_of = whole_number(draws[:, 0], jnp.minimum(width, lengths // 2) + 1)
        first = whole_number(draws[:, 1], lengths - number_of + 1)
        return _with(batch, _without(values, 1, first, first + number_of))

    return augment


def feature_mask(width: int = 1) -> Augment:
    """Make an augmentation that sets neighbouring features of each series to zero, at all steps: at most `width`.

    Their number is drawn evenly from 0 to `width`, and their place evenly.

    Args:
        width: most features, at least 1 and below their number.

    Returns:
        (key, batch) -> batch, for `batch["inputs"]` of floats [B, steps, features], or a dict of such `inputs` and
        `lengths`; as of `time_mask`.

    Raises:
        UserError: if width is below 1; when used, if inputs are no series of floats, or have no more features.

    Example:
        >>> batch = {"inputs": jnp.ones((1, 2, 3))}
        >>> sorted({int(feature_mask()(jax.random.key(k), batch)["inputs"].sum()) for k in range(9)})
        [4, 6]

    Source: D. Park et al., SpecAugment, 2019, section 2 (arXiv:1904.08779).
    """
    width = integer("width", width, low=1)

    def augment(key: jax.Array, batch: Any) -> Any:
        values, _ = _series(batch, least_axes=3)
        num_features = values.shape[-1]
        if width >= num_features:
            raise UserError(f"width is {width}, and the series have {num_features} features: expected fewer")
        draws = uniform(key, (len(values), 2))
        number_of = whole_number(draws[:, 0], width + 1)
        first = whole_number(draws[:, 1], num_features - number_of + 1)
        return _with(batch, _without(values, values.ndim - 1, first, first + number_of))

    return augment


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw normal numbers, float32, each of 65,536 values up to 4.3, by the key and its position, not by shape[0]."""
    size = math.prod(shape[1:])
    # Two of each word, which are drawn before they are taken apart. 128 images 32x32x3 in a loop on 2 cores: 3.1 ms. A
    # word for each number took 8.0 ms; without the barrier XLA draws a word whenever it is used, which took 10 to 20.
    words = jax.lax.optimization_barrier(bits(key, (shape[0], -(-size // 2))))
    halves = jnp.concatenate([words >> 16, words & jnp.uint32(0xFFFF)], axis=1)[:, :size]
    centred = (halves.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-15) - 1.0
    return math.sqrt(2.0) * jax.lax.erf_inv(centred).reshape(shape)


def _series(batch: Any, least_axes: int = 1) -> tuple[jax.Array, jax.Array | None]:
    inputs, lengths = batch["inputs"], None
    if isinstance(inputs, Mapping):
        if "inputs" not in inputs:
            raise UserError(f"inputs are a dict of {', '.join(inputs)}, expected {_EXPECTED}: set augment=None")
        inputs, lengths = inputs["inputs"], inputs.get("lengths")
    values = floats_of(inputs, _EXPECTED)
    if values.ndim < least_axes:
        raise UserError(f"inputs are of shape {values.shape}, expected {_EXPECTED}: set augment=None")
    return values, None if lengths is None else jnp.asarray(lengths)


def _with(batch: Any, values: jax.Array) -> Any:
    inputs = batch["inputs"]
    return {**batch, "inputs": {**inputs, "inputs": values} if isinstance(inputs, Mapping) else values}


def _without(values: jax.Array, axis: int, first: jax.Array, last: jax.Array) -> jax.Array:
    place = jnp.arange(values.shape[axis])[None, :]
    gone = (first[:, None] <= place) & (place < last[:, None])
    shape = [len(values), *(1,) * (values.ndim - 1)]
    shape[axis] = values.shape[axis]
    return jnp.where(gone.reshape(shape), 0, values)
