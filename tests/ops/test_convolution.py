import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from accelnet.ops import convolution, kernels, patches
from accelnet.ops.convolution import conv_general_dilated
from accelnet.ops.flops import count_flops
from accelnet.ops.geometry import Geometry, transposed_kernels

LAYOUTS = {3: ("NHC", "HIO", "NHC"), 4: ("NHWC", "HWIO", "NHWC"), 5: ("NHWDC", "HWDIO", "NHWDC")}


def random_case(seed):
    """Draw shapes and options of a channels-last convolution that leaves at least one pixel."""
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([1, 2, 2, 2, 3]))
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    channels = groups * int(rng.integers(1, 4))
    if rng.random() < 0.3:
        groups = channels
    rhs_dilation = rng.integers(1, 3, rank).tolist()
    lhs_dilation = [1] * rank
    kernel = rng.integers(1, 4, rank).tolist()
    size = rng.integers(6, 10, rank).tolist()
    padding = rng.choice(["SAME", "VALID", "pairs"])
    if padding == "pairs":
        padding = [tuple(p) for p in rng.integers(-1, 3, (rank, 2)).tolist()]
        lhs_dilation = rng.integers(1, 3, rank).tolist()
    lhs = rng.normal(size=(int(rng.integers(1, 4)), *size, channels)).astype(np.float32)
    rhs = rng.normal(size=(*kernel, channels // groups, groups * int(rng.integers(1, 4)))).astype(np.float32)
    options = {
        "window_strides": rng.integers(1, 4, rank).tolist(),
        "padding": padding if isinstance(padding, list) else str(padding),
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": LAYOUTS[rank + 2],
        "feature_group_count": groups,
    }
    return lhs, rhs, options


def draw(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def values_and_gradients(conv, lhs, rhs, options):
    def run(lhs, rhs):
        out, pull = jax.vjp(lambda lhs, rhs: conv(lhs, rhs, **options), lhs, rhs)
        # A cotangent on eighths from -1 to 1 is the same number in every dtype.
        cotangent = (jnp.arange(out.size) * 5 % 17 - 8) / 8
        return out, *pull(cotangent.reshape(out.shape).astype(out.dtype))

    return jax.jit(run)(lhs, rhs)


def assert_close(actual, expected, relative=1e-5):
    """Compare to the largest number: float32 sums differ by a few 1e-7 of it, by Winograd's filtering by 5e-6."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        chex.assert_equal_shape([a, b])
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * max(np.abs(b).max(initial=0), 1e-30))


@pytest.mark.parametrize("seed", range(15))
def test_values_and_both_gradients_equal_those_of_xla(seed):
    lhs, rhs, options = random_case(seed)
    expected = values_and_gradients(lax.conv_general_dilated, lhs, rhs, options)
    assert_close(values_and_gradients(conv_general_dilated, lhs, rhs, options), expected)


# Lines of any number of fours of pixels, at every border; 16 channels are one vector or two, 48 are no power of two.
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 1), (1, 2)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", [(-1, 2), (3, 0)]], ids=str)
def test_depthwise_kernels_of_three_taps_equal_those_of_xla_at_every_border(strides, padding):
    for images, height, width, channels in (
        (3, 3, 3, 16),
        (2, 5, 4, 48),
        (1, 8, 9, 16),
        (2, 7, 16, 16),
        (1, 4, 35, 32),
    ):
        lhs, rhs = draw(0, (images, height, width, channels)), draw(1, (3, 3, 1, channels))
        options = {"window_strides": strides, "padding": padding, "dimension_numbers": LAYOUTS[4]}
        options["feature_group_count"] = channels
        expected = values_and_gradients(lax.conv_general_dilated, lhs, rhs, options)
        assert_close(values_and_gradients(conv_general_dilated, lhs, rhs, options), expected)


# Sizes that tiles of 4 x 4 pixels do and do not divide, and as many images as make Winograd's filtering worth while.
@pytest.mark.parametrize(
    ("size", "padding", "channels"),
    [
        ((8, 8), "SAME", 16),
        ((8, 8), "VALID", 64),
        ((8, 8), [(-1, 2), (3, 0)], 16),
        ((7, 5), "SAME", 64),
        ((7, 5), "VALID", 16),
        ((7, 5), [(-1, 2), (3, 0)], 64),
        ((3, 10), "SAME", 16),
        ((3, 10), "VALID", 64),
        ((3, 10), [(-1, 2), (3, 0)], 16),
    ],
    ids=str,
)
def test_wide_kernels_of_three_taps_equal_those_of_xla(size, padding, channels):
    lhs = np.random.default_rng(0).normal(size=(16, *size, channels)).astype(np.float32)
    rhs = np.random.default_rng(1).normal(size=(3, 3, channels, channels + 16)).astype(np.float32)
    options = {"window_strides": (1, 1), "padding": padding, "dimension_numbers": LAYOUTS[4]}
    expected = values_and_gradients(lax.conv_general_dilated, lhs, rhs, options)
    assert_close(values_and_gradients(conv_general_dilated, lhs, rhs, options), expected)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("lhs_shape", "rhs_shape", "options", "is_winograd"),
    [
        ((8, 14, 14, 32), (3, 3, 32, 64), {}, True),
        ((8, 14, 14, 16), (3, 3, 16, 16), {}, True),
        ((8, 14, 14, 64), (3, 3, 64, 8), {}, False),
        ((8, 14, 14, 1), (3, 3, 1, 64), {}, False),
        ((1, 14, 14, 32), (3, 3, 32, 64), {}, False),
        ((8, 14, 14, 32), (3, 3, 32, 64), {"window_strides": (2, 2)}, False),
        ((8, 14, 14, 32), (3, 3, 32, 64), {"rhs_dilation": (2, 1)}, False),
        ((8, 14, 14, 32), (5, 5, 32, 64), {}, False),
        ((8, 14, 14, 32), (3, 3, 1, 32), {"feature_group_count": 32}, False),
        ((8, 14, 14, 32), (3, 3, 16, 32), {"feature_group_count": 2}, False),
        ((64, 28, 32), (3, 32, 64), {}, False),
        ((8, 14, 14, 2, 16), (3, 3, 1, 16, 16), {}, False),
    ],
    ids=str,
)
def test_winograds_filtering_is_taken_for_wide_kernels_of_three_taps_alone(lhs_shape, rhs_shape, options, is_winograd):
    if not kernels.load():
        pytest.skip("no C++ compiler here, so there are no kernels")
    lhs, rhs = draw(0, lhs_shape), draw(1, rhs_shape)
    rank = len(lhs_shape)
    options = {"window_strides": (1,) * (rank - 2), "padding": "SAME", "dimension_numbers": LAYOUTS[rank]} | options
    # It is what "highest" forbids, so that only where it is taken the two have other bits.
    out, exact = (conv_general_dilated(lhs, rhs, precision=given, **options) for given in (None, "highest"))
    assert bool((out != exact).any()) == is_winograd


@pytest.mark.parametrize(
    ("given", "with_kernels"),
    [
        ("highest", True),
        ("float32", True),
        (("highest", "default"), True),
        (lax.Precision.HIGHEST, True),
        (None, True),
        (None, False),
    ],
    ids=str,
)
def test_at_the_highest_precision_nothing_rounds_more_than_sums_do(given, with_kernels):
    rng = np.random.default_rng(0)
    lhs, rhs = rng.normal(size=(4, 8, 8, 512)), rng.normal(size=(3, 3, 512, 64))
    with jax.enable_x64(True):
        wide = (jnp.asarray(a, jnp.float64) for a in (lhs, rhs))
        exact = np.asarray(lax.conv_general_dilated(*wide, (1, 1), "SAME", dimension_numbers=LAYOUTS[4]), np.float32)
    lhs, rhs = jnp.asarray(lhs, jnp.float32), jnp.asarray(rhs, jnp.float32)
    default = "highest" if given is None else None
    with kernels.with_kernels(with_kernels), jax.default_matmul_precision(default):
        conv = jax.jit(lambda a, b: conv_general_dilated(a, b, (1, 1), "SAME", None, None, LAYOUTS[4], precision=given))
        out = conv(lhs, rhs)
    # A float32 sum of 4,608 products, one after the other, is off by 2e-6 of the largest, Winograd's by 1.7e-5.
    assert_close(out, exact, 4e-6)


def check_patches(lhs, rhs, geometry):
    """Compare the plain program's output, and both gradients that are made of it, to those of XLA's convolution."""
    gradient = draw(2, (lhs.shape[0], *geometry.output_sizes(lhs.shape, rhs.shape), rhs.shape[-1]))

    def by_xla(lhs, rhs, gradient):
        out, pull = jax.vjp(lambda lhs, rhs: convolution.native(lhs, rhs, geometry), lhs, rhs)
        return out, *pull(gradient)

    def by_patches(lhs, rhs, gradient):
        transposed, mirrored = geometry.transposed(lhs.shape, rhs.shape), transposed_kernels(rhs, geometry.groups)
        lhs_gradient = patches.convolve(gradient, mirrored, transposed)
        rhs_gradient = patches.kernel_gradient(lhs, gradient, rhs.shape, geometry)
        return patches.convolve(lhs, rhs, geometry), lhs_gradient, rhs_gradient

    assert_close(*(jax.jit(function)(lhs, rhs, gradient) for function in (by_patches, by_xla)))


@pytest.mark.parametrize(("channels", "features", "groups"), [(3, 3, 3), (3, 6, 3), (6, 4, 2)])
def test_grouped_and_depthwise_convolutions_by_patches_agree(channels, features, groups):
    lhs = draw(0, (2, 5, 6, channels))
    rhs = draw(1, (3, 2, channels // groups, features))
    check_patches(lhs, rhs, Geometry((2, 1), ((1, 1), (0, 1)), (1, 1), (1, 2), groups))


@pytest.mark.parametrize("channels", [64, 256])
def test_winograds_filtering_of_many_channels_stays_within_a_ten_thousandth(channels):
    lhs = np.maximum(draw(0, (8, 8, 8, channels)) + 1, 0)
    rhs = draw(1, (3, 3, channels, 32)) / np.float32(3 * channels**0.5)
    geometry = Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)
    exact = convolution.native(lhs, rhs, geometry)
    assert_close(convolution._convolve(lhs, rhs, geometry), exact, 1e-4 if channels > 64 else 1e-5)


@pytest.mark.parametrize(("stride", "kernel"), [(2, 1), (3, 2), (2, 3), (3, 5)])
def test_the_input_gradient_of_a_strided_convolution_needs_no_dilated_image(stride, kernel):
    lhs = draw(0, (2, 9, 8, 3))
    rhs = draw(1, (kernel, kernel, 3, 4))
    geometry = Geometry((stride, stride), ((1, 0), (0, 2)), (1, 1), (1, 1), 1)
    check_patches(lhs, rhs, geometry)
    transposed = geometry.transposed(lhs.shape, rhs.shape)
    gradient = jnp.ones((2, *geometry.output_sizes(lhs.shape, rhs.shape), 4))
    mirrored = transposed_kernels(rhs, 1)
    flops = count_flops(lambda g, k: patches.convolve(g, k, transposed), gradient, mirrored).product_flops
    dilated = math.prod(lhs.shape[:3]) * math.prod(rhs.shape) * 2
    assert flops < dilated / stride**2 * 1.8  # the image's size is no multiple of the stride


def test_a_plain_loop_over_pixels_gives_the_same():
    rng = np.random.default_rng(0)
    lhs, rhs = (
        rng.normal(size=(2, 5, 6, 3)).astype(np.float32),
        rng.normal(size=(3, 2, 3, 4)).astype(np.float32),
    )
    out = conv_general_dilated(lhs, rhs, (2, 1), "VALID", dimension_numbers=LAYOUTS[4])
    expected = np.zeros((2, 2, 5, 4), np.float32)
    for y, x in itertools.product(range(2), range(5)):
        expected[:, y, x] = np.einsum("nijc,ijco->no", lhs[:, 2 * y : 2 * y + 3, x : x + 2], rhs)
    assert_close(out, expected)


@pytest.mark.parametrize(
    ("axes", "channels", "features", "groups"),
    [
        ((0, None), 4, 8, 1),
        ((None, 0), 4, 8, 1),
        ((0, 0), 4, 8, 1),
        ((0, 0), 4, 8, 2),
        ((None, 0), 4, 8, 4),
        ((0, None), 16, 20, 1),
        ((0, 0), 64, 64, 1),
    ],
)
def test_vmap_equals_a_loop(axes, channels, features, groups):
    lhs = draw(0, (3, 2, 6, 6, channels))
    rhs = draw(1, (3, 3, 3, channels // groups, features)) / np.float32(channels)
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": LAYOUTS[4]}
    options["feature_group_count"] = groups

    def loss(lhs, rhs):
        return jnp.sum(jnp.sin(conv_general_dilated(lhs, rhs, **options)))

    arguments = [x if axis == 0 else x[0] for x, axis in zip((lhs, rhs), axes, strict=True)]
    mapped = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), axes))(*arguments)
    pick = lambda i: [x[i] if axis == 0 else x for x, axis in zip(arguments, axes, strict=True)]  # noqa: E731
    alone = jax.jit(jax.grad(loss, (0, 1)))
    looped = [alone(*pick(i)) for i in range(3)]
    assert_close(mapped, jax.tree.map(lambda *leaves: np.stack(leaves), *looped))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_bfloat16_stays_bfloat16_and_close_to_float32(groups):
    lhs = draw(0, (2, 6, 6, 4), jnp.bfloat16)
    rhs = draw(1, (3, 3, 4 // groups, 8), jnp.bfloat16)
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": LAYOUTS[4]}
    options["feature_group_count"] = groups
    ours = values_and_gradients(conv_general_dilated, lhs, rhs, options)
    assert {x.dtype for x in ours} == {jnp.dtype(jnp.bfloat16)}
    exact = values_and_gradients(lax.conv_general_dilated, lhs.astype(jnp.float32), rhs.astype(jnp.float32), options)
    # Rounding to bfloat16 is off by 2^-9 = 0.002 of a number; the input's gradient adds nine rounded parts.
    assert_close(ours, jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact), relative=0.02)


@pytest.mark.parametrize("groups", [1, 4])
def test_preferred_element_type_is_the_dtype_of_the_output(groups):
    lhs, rhs = jnp.ones((1, 4, 4, 4), jnp.bfloat16), jnp.ones((3, 3, 4 // groups, 4), jnp.bfloat16)
    out = conv_general_dilated(
        lhs,
        rhs,
        (1, 1),
        "VALID",
        dimension_numbers=LAYOUTS[4],
        feature_group_count=groups,
        preferred_element_type=jnp.float32,
    )
    assert out.dtype == jnp.float32
