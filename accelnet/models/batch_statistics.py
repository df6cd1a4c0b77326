"""Batch statistics without padding, in accelnet's BatchNorm and in Flax's, on any number of devices."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax import Array

from accelnet.errors import UserError
from accelnet.signature import described

_mask: ContextVar[Array | None] = ContextVar("mask", default=None)

_LINEN_CALL = inspect.unwrap(linen.BatchNorm.__call__)  # as an interceptor sees it


@contextmanager
def without_padding(mask: Array | None) -> Iterator[None]:
    """Let the batch normalizations that are called inside leave out the examples where `mask`, bool[B], is False."""
    token = _mask.set(mask)
    try:
        yield
    finally:
        _mask.reset(token)


def counted(x: Array, own: Array | None, axes: Sequence[int]) -> Array | None:
    """Mark what counts of an array that is averaged over some axes.

    Args:
        x: Array with the examples along its first axis, or along another one of `axes`.
        own: Mask that the layer was given, bool, which broadcasts to `x`. None: all of it.
        axes: Axes that the average is over.

    Returns:
        bool with as many axes as `x`, of the same lengths or 1: False for padding, and where `own` is. None for all of
        it.

    Raises:
        UserError: If there may be padding, and no axis is that of the examples. With a mask of the layer's own, that
            is trusted.
    """
    mask = _mask.get()
    if own is not None:
        own = jnp.asarray(own, bool)
        own = own.reshape((1,) * (x.ndim - own.ndim) + own.shape)
    if mask is None:
        return own
    along = [axis for axis in axes if x.shape[axis] == len(mask)]
    if 0 in along or len(along) == 1:
        shape = [1] * x.ndim
        shape[0 if 0 in along else along[0]] = len(mask)
        return mask.reshape(shape) if own is None else own & mask.reshape(shape)
    if own is None:
        raise UserError(
            f"a BatchNorm got {described([x])}, and the batch has {len(mask)} examples, some of them padding, which "
            "cannot be told there: keep an axis of the examples, [batch, steps, features], or pass the layer mask=, "
            "made of the `mask` that the model's call asks for; or take a batch_size that divides the training rows"
        )
    return own


def statistics(
    x: Array, axes: Sequence[int], mask: Array | None, axis_name: Any, *, groups: Any = None, fast: bool = True
) -> tuple[Array, Array, Array | None]:
    """Return mean and variance of x over some axes, and the share of it that counts, None for all.

    Sums and counts are those of all devices along `axis_name`. Where nothing counts, mean and variance are 0.

    Args:
        x: float32 (or wider).
        axes: Axes that the average is over.
        mask: As `counted` returns it.
        axis_name: Mesh axes along which the batch is cut, or None.
        groups: `axis_index_groups` of `jax.lax.pmean`.
        fast: Whether the variance is mean(x^2) - mean(x)^2, one pass over x and one exchange, rather than the mean of
            the squared differences.
    """
    axes = tuple(axes)

    def counting(values: Array) -> Array:
        return values if mask is None else jnp.where(mask, values, 0.0)

    def total(*values: Array) -> Array:
        means = [value.mean(axes) for value in values]
        if mask is not None:
            means.append(jnp.broadcast_to(mask.mean(axes, dtype=x.dtype), means[0].shape))
        stacked = jnp.stack(means)
        return stacked if axis_name is None else jax.lax.pmean(stacked, axis_name, axis_index_groups=groups)

    def over(means: Array) -> Array:
        # The share is exactly 1 where no example is padding: the bits of no mask.
        return means if mask is None else means[:-1] / jnp.where(means[-1:] > 0, means[-1:], 1.0)

    own = counting(x)
    moments = total(own, jnp.square(own)) if fast else total(own)
    mean, *squares = over(moments)
    if fast:
        variance = jnp.maximum(squares[0] - jnp.square(mean), 0.0)
    else:
        variance = over(total(jnp.square(counting(x - jnp.expand_dims(mean, axes)))))[0]
    return mean, variance, None if mask is None else moments[-1]


def leave_padding_out(layer: nnx.BatchNorm) -> None:
    """Let a layer of Flax leave padding out of its statistics; its class changes, so it must be a copy.

    A subclass that calls `super().__call__` is served too: what it calls stands between it and Flax's class.
    """
    object.__setattr__(layer, "__class__", _masked(type(layer)))


@cache
def _masked(kind: type) -> type:
    bases = (_MaskedBatchNorm,) if kind is nnx.BatchNorm else (kind, _MaskedBatchNorm)
    metaclass: Any = type(kind)
    return metaclass(kind.__name__, bases, {"__module__": kind.__module__})


class _MaskedBatchNorm(nnx.BatchNorm):
    """Flax's layer, which normalizes with given statistics: those of what counts, over all devices.

    Flax takes a mask too, but averages the means of the devices, however many examples each of them has.
    """

    def __call__(self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None) -> Array:
        average = self.use_running_average if use_running_average is None else use_running_average
        if average or not _is_needed(mask, self.axis_name):
            return super().__call__(x, use_running_average, mask=mask)
        dtype = self.dtype or jnp.result_type(x, *(one[...] for one in (self.scale, self.bias) if one is not None))
        x = jnp.asarray(x, self.dtype)

        def normalize(mean: Array, variance: Array) -> Array:
            self.mean[...], self.var[...] = mean, variance
            given, self.dtype = self.dtype, None  # in which Flax would round the statistics
            outputs = super(_MaskedBatchNorm, self).__call__(x, use_running_average=True)
            self.dtype = given
            return outputs.astype(dtype)

        out, (self.mean[...], self.var[...]) = _normalized(self, x, mask, self.mean[...], self.var[...], normalize)
        return out


def linen_without_padding(next_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """Call a layer, as an interceptor of `flax.linen.intercept_methods`, which of BatchNorm leaves out padding."""
    layer: Any = context.module
    if not isinstance(layer, linen.BatchNorm) or getattr(context.orig_method, "func", None) is not _LINEN_CALL:
        return next_call(*args, **kwargs)

    def call(x: Array, use_running_average: bool | None = None, *, mask: Array | None = None) -> Array:
        chosen = layer.use_running_average
        average = chosen if use_running_average is None else use_running_average
        if average or layer.is_initializing() or not _is_needed(mask, layer.axis_name):
            return next_call(*args, **kwargs)
        names = ("mean", "var")

        def keep(*values: Array) -> None:
            for name, value in zip(names, values, strict=True):
                layer.put_variable("batch_stats", name, value)

        def normalize(*moments: Array) -> Array:
            keep(*moments)
            object.__setattr__(layer, "use_running_average", True)
            try:
                return next_call(x)
            finally:
                object.__setattr__(layer, "use_running_average", chosen)

        mean, variance = (layer.get_variable("batch_stats", name) for name in names)
        outputs, after = _normalized(layer, x, mask, mean, variance, normalize)
        keep(*after)
        return outputs

    return call(*args, **kwargs)


def _is_needed(own: Array | None, axis_name: Any) -> bool:
    return _mask.get() is not None or (own is not None and axis_name is not None)


def _normalized(
    layer: Any, x: Array, own: Array | None, mean: Array, variance: Array, normalize: Callable[[Array, Array], Array]
) -> tuple[Array, tuple[Array, Array]]:
    """Return what `normalize(mean, variance)` gives with the batch's statistics, and the running averages after it."""
    kept = {int(axis) % x.ndim for axis in np.atleast_1d(layer.axis)}
    axes = [axis for axis in range(x.ndim) if axis not in kept]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    new = statistics(
        wide, axes, counted(x, own, axes), layer.axis_name, groups=layer.axis_index_groups, fast=layer.use_fast_variance
    )
    moments, after = moved(layer.momentum, (mean, variance), new)
    return normalize(*moments), after


def moved(
    momentum: Any, running: tuple[Array, Array], new: tuple[Array, Array, Array | None]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return the statistics to normalize with, and the running averages after them.

    Where nothing counts, as in a microbatch of padding alone, both are the running averages as they were.

    Args:
        momentum: Share of the running averages that stays.
        running: Their mean and variance.
        new: What `statistics` returned.
    """
    *batch, share = new
    is_some = True if share is None else share > 0
    used = [one if share is None else jnp.where(is_some, one, old) for old, one in zip(running, batch, strict=True)]
    mixed = [momentum * old + (1 - momentum) * one for old, one in zip(running, used, strict=True)]
    after = [one if share is None else jnp.where(is_some, one, old) for old, one in zip(running, mixed, strict=True)]
    mean, variance = jax.lax.stop_gradient(after)
    return (used[0], used[1]), (mean, variance)
