"""Layers whose weights have 8 or 4 bits, made of the layers that they replace."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.linear import canonicalize_padding
from jax import Array

from accelnet.errors import UserError
from accelnet.models.recurrent_layer import Recurrence
from accelnet.ops import geometry
from accelnet.ops.quantized import MOST, nearest, pack, quantized_dot
from accelnet.ops.quantized_convolution import pack_kernels, quantized_convolution
from accelnet.ops.quantized_recurrence import QuantizedKernel, quantized_recurrence

# From the name of a layer's kernel and the kernel as a matrix [depth, columns] to whole numbers and columns' scales.
Rounding = Callable[[str, Any], tuple[Any, Any]]


class Quantized(nnx.Variable):
    """Hold whole numbers, or their scales: a part of the model's state, which is not trained."""


class QuantizedLinear(nnx.Module):
    """Multiply features by a matrix of 8 or 4 bits, with inputs that are rounded to 8: see `ops.quantized_dot`.

    Args:
        layer: Layer that it replaces.
        whole: Whole numbers [inputs, outputs].
        scale: float32 [outputs].
        bits: 8 or 4.

    Example:
        >>> layer = quantized(nnx.Linear(64, 32, rngs=nnx.Rngs(0)), 8)
        >>> layer(jnp.ones((5, 64))).shape, layer.kernel.dtype.name
        ((5, 32), 'int8')
    """

    def __init__(self, layer: nnx.Linear | nnx.LinearGeneral, whole: Any, scale: Any, bits: int) -> None:
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.use_bias, self.dtype, self.bits = layer.bias is not None, layer.dtype, bits
        self.kernel = Quantized(pack(whole, bits))
        self.scale = Quantized(jnp.asarray(scale, jnp.float32))
        self.bias = layer.bias

    def __call__(self, inputs: Array, out_sharding: None = None) -> Array:
        """Compute outputs [..., out_features] of inputs [..., in_features]."""
        _check_sharding(out_sharding)
        inner, outer = (one if isinstance(one, tuple) else (one,) for one in (self.in_features, self.out_features))
        outside = inputs.shape[: inputs.ndim - len(inner)]
        rows = _typed(inputs, self.dtype).reshape(*outside, math.prod(inner))
        return quantized_dot(rows, self.kernel[...], self.scale[...], _bias(self)).reshape(*outside, *outer)


class QuantizedConv(nnx.Module):
    """Convolve images, rounded to 8 bits each, with kernels of 8 or 4 bits: see `ops.quantized_convolution`.

    Args:
        layer: Layer that it replaces.
        whole: Whole numbers [taps * channels, outputs].
        scale: float32 [outputs].
        bits: 8 or 4.

    Example:
        >>> layer = quantized(nnx.Conv(8, 16, (3, 3), rngs=nnx.Rngs(0)), 4)
        >>> layer(jnp.ones((2, 5, 5, 8))).shape, layer.kernel.dtype.name
        ((2, 5, 5, 16), 'uint8')
    """

    def __init__(self, layer: nnx.Conv, whole: Any, scale: Any, bits: int) -> None:
        self.in_features, self.out_features, self.kernel_size = layer.in_features, layer.out_features, layer.kernel_size
        count = len(layer.kernel_size)
        self.strides, self.kernel_dilation = _each(layer.strides, count), _each(layer.kernel_dilation, count)
        self.padding = _padding(layer)
        self.use_bias, self.dtype, self.bits = layer.bias is not None, layer.dtype, bits
        self.kernel = Quantized(pack_kernels(jnp.reshape(whole, layer.kernel_shape), bits))
        self.scale = Quantized(jnp.asarray(scale, jnp.float32))
        self.bias = layer.bias

    def __call__(self, inputs: Array, out_sharding: None = None) -> Array:
        """Compute outputs [..., spatial..., out_features] of images [..., spatial..., in_features]."""
        _check_sharding(out_sharding)
        outside = inputs.shape[: inputs.ndim - len(self.kernel_size) - 1]
        images = inputs if len(outside) == 1 else inputs.reshape(-1, *inputs.shape[len(outside) :])
        shape = (*self.kernel_size, self.in_features, self.out_features)
        place = self.strides, self.padding, None, self.kernel_dilation, 1
        made = geometry.resolve(images.shape, shape, *place)
        weights = self.kernel[...], self.scale[...], _bias(self)
        out = quantized_convolution(_typed(images, self.dtype), *weights, tuple(self.kernel_size), made)
        return out if len(outside) == 1 else out.reshape(*outside, *out.shape[1:])


class QuantizedEmbed(nnx.Module):
    """Embed tokens by a table of 8 or 4 bits.

    Args:
        layer: Layer that it replaces.
        whole: Whole numbers [features, symbols].
        scale: float32 [symbols].
        bits: 8 or 4.

    Example:
        >>> layer = quantized(nnx.Embed(10, 5, rngs=nnx.Rngs(0)), 4)
        >>> layer(jnp.array([[1, 2, 9]])).shape, layer.table.shape
        ((1, 3, 5), (10, 3))
    """

    def __init__(self, layer: nnx.Embed, whole: Any, scale: Any, bits: int) -> None:
        self.num_embeddings, self.features, self.dtype, self.bits = (
            layer.num_embeddings,
            layer.features,
            layer.dtype,
            bits,
        )
        rows = jnp.asarray(whole, jnp.int8).T
        if bits == 4:
            shifted = (jnp.pad(rows, ((0, 0), (0, rows.shape[1] % 2))) + 8).astype(jnp.uint8)
            rows = shifted[:, 0::2] | (shifted[:, 1::2] << 4)
        self.table = Quantized(rows)
        self.scale = Quantized(jnp.asarray(scale, jnp.float32))

    @property
    def embedding(self) -> Array:
        """The whole table, float32 [symbols, features]."""
        return self._floats(self.table[...], self.scale[...])

    def __call__(self, inputs: Array, out_sharding: None = None) -> Array:
        """Return the rows [..., features] of tokens, int [...]."""
        _check_sharding(out_sharding)
        rows = jnp.take(self.table[...], inputs, axis=0), jnp.take(self.scale[...], inputs, axis=0)
        return self._floats(*rows).astype(self.dtype)

    def attend(self, query: Array) -> Array:
        """Return the products of queries [..., features] with every row, [..., symbols]."""
        return query @ self.embedding.T.astype(query.dtype)

    def _floats(self, rows: Array, scale: Array) -> Array:
        if self.bits == 4:
            halves = jnp.stack([rows & 15, rows >> 4], axis=-1).astype(jnp.int8) - jnp.int8(8)
            rows = halves.reshape(*rows.shape[:-1], -1)[..., : self.features]
        return rows.astype(jnp.float32) * scale[..., None]


class QuantizedRecurrence(nnx.Module):
    """Run a recurrent layer with kernels of 8 or 4 bits, whose state is rounded in every step.

    Args:
        layer: Layer that it replaces, of another cell than "min_gru".
        kernels: Whole numbers and scales of its input kernel and of its recurrent kernel.
        bits: 8 or 4.

    Example:
        >>> layer = quantized(Recurrence(3, 4, rngs=nnx.Rngs(0)), 8)
        >>> outputs, last = layer(jnp.ones((2, 5, 3)))
        >>> outputs.shape, last.shape
        ((2, 5, 4), (2, 4))
    """

    def __init__(self, layer: Recurrence, kernels: dict[str, tuple[Any, Any]], bits: int) -> None:
        self.cell, self.reverse, self.bits = layer.cell, layer.reverse, bits
        (self.input_kernel, self.input_scale), (self.recurrent_kernel, self.recurrent_scale) = (
            (Quantized(pack(whole, bits)), Quantized(jnp.asarray(scale, jnp.float32)))
            for whole, scale in (kernels["input_kernel"], kernels["recurrent_kernel"])
        )
        self.bias = layer.bias
        if layer.cell == "gru":
            self.recurrent_bias = layer.recurrent_bias

    def __call__(self, inputs: Array, lengths: Array | None = None, tokens: Array | None = None) -> tuple[Array, Array]:
        """Return the outputs of all steps and the final hidden state; arguments as in `Recurrence`."""
        first, second = (
            QuantizedKernel(kernel[...], scale[...])
            for kernel, scale in (
                (self.input_kernel, self.input_scale),
                (self.recurrent_kernel, self.recurrent_scale),
            )
        )
        more = (self.recurrent_bias[...].astype(jnp.float32),) if self.cell == "gru" else ()
        options: dict[str, Any] = {"lengths": lengths, "reverse": self.reverse, "tokens": tokens}
        return quantized_recurrence(
            self.cell, inputs, first, second, self.bias[...].astype(jnp.float32), *more, **options
        )


def kernels_of(layer: Any) -> dict[str, Any]:
    """Return the kernels of a layer that can be quantized, as matrices [depth, columns]; none of another layer.

    Example:
        >>> {name: one.shape for name, one in kernels_of(nnx.Conv(8, 16, (3, 3), rngs=nnx.Rngs(0))).items()}
        {'kernel': (72, 16)}
        >>> kernels_of(nnx.LayerNorm(3, rngs=nnx.Rngs(0)))
        {}
    """
    if isinstance(layer, Recurrence):
        if layer.cell == "min_gru" or layer.recurrent_rank is not None:
            return {}
        return {name: getattr(layer, name)[...] for name in ("input_kernel", "recurrent_kernel")}
    if isinstance(layer, nnx.Embed):
        return {"embedding": layer.embedding[...].T}
    if isinstance(layer, nnx.Linear):
        return {"kernel": layer.kernel[...]}
    if isinstance(layer, nnx.LinearGeneral) and _has_last_axes(layer):
        return {"kernel": layer.kernel[...].reshape(math.prod(layer.in_features), -1)}
    if isinstance(layer, nnx.Conv) and _is_plain(layer):
        return {"kernel": layer.kernel[...].reshape(-1, layer.out_features)}
    return {}


def quantized(layer: Any, bits: int, rounding: Rounding | None = None) -> Any:
    """Return the layer that replaces one, with weights of 8 or 4 bits; of 16 bits the layer itself, in bfloat16.

    Args:
        layer: `nnx.Linear`, `nnx.LinearGeneral` over the last axes, `nnx.Conv` of one group, `nnx.Embed`, or
            `Recurrence`.
        bits: 16, 8 or 4.
        rounding: Function from the name of a kernel and its matrix [depth, columns] to whole numbers and the columns'
            scales. None: `ops.quantized.nearest`.

    Raises:
        UserError: for another layer, or other bits.

    Example:
        >>> quantized(nnx.LayerNorm(3, rngs=nnx.Rngs(0)), 8)
        Traceback (most recent call last):
        accelnet.errors.UserError: a LayerNorm has no weights of 8 bits: ...
    """
    matrices = kernels_of(layer)
    if bits not in (16, *MOST):
        raise UserError(f"bits is {bits!r}, expected 16, 8 or 4")
    if not matrices:
        raise UserError(
            f"a {type(layer).__name__} has no weights of {bits} bits: nnx.Linear, nnx.LinearGeneral over the last "
            "axes, nnx.Conv (one group, zeros around, at least 8 channels), nnx.Embed and accelnet's recurrent layers "
            "(but min_gru, and those whose recurrent kernel is two of low rank) do"
        )
    if bits == 16:
        nnx.update(layer, jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(layer, nnx.Param)))
        return layer
    rounding = rounding or (lambda _, matrix: nearest(matrix, bits))
    found = {name: rounding(name, matrix) for name, matrix in matrices.items()}
    if isinstance(layer, Recurrence):
        return QuantizedRecurrence(layer, found, bits)
    kind = {nnx.Conv: QuantizedConv, nnx.Embed: QuantizedEmbed}
    made = next((made for one, made in kind.items() if isinstance(layer, one)), QuantizedLinear)
    return made(layer, *next(iter(found.values())), bits)


def _has_last_axes(layer: nnx.LinearGeneral) -> bool:
    return not layer.batch_axis and tuple(layer.axis) == tuple(range(-len(layer.axis), 0))


def _is_plain(layer: nnx.Conv) -> bool:
    ones = layer.feature_group_count == 1 and set(_each(layer.input_dilation, 1)) == {1} and layer.mask is None
    # With few channels most of a quad is empty: 28x28 images of one channel took 1.4 times as long as in float32.
    return ones and layer.in_features >= 8 and len(layer.kernel_size) <= 3 and _padding(layer) is not None


def _padding(layer: nnx.Conv) -> Any:
    given = canonicalize_padding(layer.padding, len(layer.kernel_size))
    if isinstance(given, str):
        return given if given in ("SAME", "VALID", "SAME_LOWER") else None
    return tuple((int(low), int(high)) for low, high in given)


def _each(value: Any, count: int) -> tuple[int, ...]:
    return (value or 1,) * count if value is None or isinstance(value, int) else tuple(value)


def _typed(inputs: Array, dtype: Any) -> Array:
    return inputs if dtype is None else inputs.astype(dtype)


def _bias(layer: Any) -> Array | None:
    return None if layer.bias is None else layer.bias[...].astype(jnp.float32).ravel()


def _check_sharding(out_sharding: Any) -> None:
    if out_sharding is not None:
        raise UserError("out_sharding is given to a layer of few bits, expected None: its outputs lie as its inputs do")
