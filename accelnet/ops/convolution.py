"""Convolution with one meaning and, per platform, the program that is fast there."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from accelnet.ops import cpu_convolution
from accelnet.ops.geometry import Geometry, resolve, transposed_kernels

_EXACT_ALGORITHMS = ("F32_F32_F32", "F64_F64_F64")


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """Convolve `lhs` with `rhs`, a drop-in for `jax.lax.conv_general_dilated`.

    Stride 1, no dilation, one group, channels last:

        out[n, y, x, o] = sum_{i, j, c} padded[n, y + i, x + j, c] * rhs[i, j, c, o]

    Inside a loop, XLA's CPU convolution takes 40 to 400 times as long for the kernels' gradient as products do
    (`scripts/bench_ops.py`). So on the CPU, channels-last convolutions of floats are compiled kernels or products of
    patches (`accelnet.ops.cpu_convolution`); every other platform, layout and type gets XLA's own. Works under jit,
    vmap over images and over weights, grad, scan and remat; not under jvp.

    Args:
        lhs: images, float [N, spatial..., C] (any layout with `dimension_numbers`).
        rhs: kernels, float [spatial..., C / feature_group_count, O].
        window_strides: one integer >= 1 per spatial axis.
        padding: "SAME", "SAME_LOWER", "VALID" or (low, high) per spatial axis; negative numbers crop.
        lhs_dilation: spread of the image's pixels per spatial axis (a transposed convolution), or None.
        rhs_dilation: spread of the kernel's taps per spatial axis, or None.
        dimension_numbers: as in jax.lax; ("NHWC", "HWIO", "NHWC") and its like for 1 and 3 spatial axes are fast.
        feature_group_count: number of groups of channels; equal to C it is a depthwise convolution.
        batch_group_count: as in jax.lax; other than 1 gets XLA's own convolution.
        precision: as in jax.lax. At "highest", given or by `jax.default_matmul_precision`, no program rounds more
            than a sum of float32 products does: Winograd's filtering is left out.
        preferred_element_type: dtype to accumulate in and return, or None for the inputs' own.
        out_sharding: as in jax.lax; other than None gets XLA's own convolution.

    Returns:
        The convolution, [N, spatial..., O].

    Raises:
        TypeError, ValueError: what jax.lax.conv_general_dilated raises for the same arguments.

    Example:
        >>> image, kernel = jnp.arange(4.0).reshape(1, 2, 2, 1), jnp.ones((2, 2, 1, 1))
        >>> out = conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        >>> float(out[0, 0, 0, 0])
        6.0

    Source: Chellapilla et al. 2006, section 3.1, for patches; Lavin and Gray 2016, section 4, for Winograd's filtering.
    """
    native = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    if out_sharding is not None:
        return native(lhs, rhs, out_sharding=out_sharding)
    jax.eval_shape(native, lhs, rhs)  # jax.lax's own checks and messages come before any program of ours
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if batch_group_count != 1 or layout != _channels_last(lhs.ndim) or not jnp.issubdtype(lhs.dtype, jnp.floating):
        return native(lhs, rhs)
    geometry = resolve(lhs.shape, rhs.shape, window_strides, padding, lhs_dilation, rhs_dilation, feature_group_count)
    dtype = None if preferred_element_type is None else jnp.dtype(preferred_element_type)
    return _convolve(lhs, rhs, geometry._replace(precision=_explicit(precision), preferred_element_type=dtype))


def _explicit(precision: Any) -> Any:
    """Name the precision itself, hashable: the gradient may be traced where another default holds."""
    if isinstance(precision, (tuple, list)):
        return tuple(_explicit(part) for part in precision)
    if precision is None:
        precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if precision in _EXACT_ALGORITHMS:
        return lax.Precision.HIGHEST
    is_name = isinstance(precision, str) and precision not in lax.DotAlgorithmPreset.__members__
    # Other algorithms are for products alone; as a default, jax.lax reads them itself.
    return lax.Precision(precision) if is_name else None if isinstance(precision, str) else precision


def native(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    """Convolve by XLA's own convolution."""
    return lax.conv_general_dilated(
        lhs,
        rhs,
        geometry.strides,
        geometry.padding,
        geometry.lhs_dilation,
        geometry.rhs_dilation,
        _channels_last(lhs.ndim),
        geometry.groups,
        precision=geometry.precision,
        preferred_element_type=geometry.preferred_element_type,
    )


# One trace per shape also outside jit: an eager platform_dependent would compile anew on every call.
@partial(jax.jit, static_argnums=2, inline=True)
def _convolve(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    if 0 in (*lhs.shape, *rhs.shape, *geometry.output_sizes(lhs.shape, rhs.shape)):
        return native(lhs, rhs, geometry)
    return _portable(lhs, rhs, geometry)


# The platform is chosen within the two passes: a `platform_dependent` that autodiff takes apart keeps what the
# backward pass of every platform needs, zeros for all but one, and the patches, nine times the image.
@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _portable(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    cpu, default = (partial(program, geometry=geometry) for program in (cpu_convolution.convolve, native))
    return lax.platform_dependent(lhs, rhs, cpu=cpu, default=default)


def _portable_forward(lhs: Array, rhs: Array, geometry: Geometry) -> tuple[Array, tuple[Array, Array]]:
    # The name lets a rematerialization policy keep it: a product is hidden from policies by the custom gradient.
    return checkpoint_name(_portable(lhs, rhs, geometry), "product"), (lhs, rhs)


def _portable_backward(geometry: Geometry, operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    def portable(lhs: Array, rhs: Array, gradient: Array) -> tuple[Array, Array]:
        transposed = geometry.transposed(lhs.shape, rhs.shape)
        kernels = transposed_kernels(rhs, geometry.groups)
        lhs_gradient = cpu_convolution.convolve(gradient, kernels.astype(gradient.dtype), transposed)
        rhs_gradient = cpu_convolution.kernel_gradient(lhs.astype(gradient.dtype), gradient, rhs.shape, geometry)
        return lhs_gradient.astype(lhs.dtype), rhs_gradient.astype(rhs.dtype)

    def default(lhs: Array, rhs: Array, gradient: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda lhs, rhs: native(lhs, rhs, geometry), lhs, rhs)[1](gradient)

    return lax.platform_dependent(*operands, gradient, cpu=portable, default=default)


_portable.defvjp(_portable_forward, _portable_backward)


def _channels_last(rank: int) -> lax.ConvDimensionNumbers:
    spatial = tuple(range(1, rank - 1))
    image = (0, rank - 1, *spatial)
    return lax.ConvDimensionNumbers(image, (rank - 1, rank - 2, *range(rank - 2)), image)
