"""Convolutions where they are used: in training loops, on devices, in layers of Flax, and what is refused."""

import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from accelnet.ops.convolution import conv_general_dilated
from tests.ops.test_convolution import LAYOUTS, assert_close, draw, values_and_gradients


def train_loop(conv):
    """Build a scan of gradient descent over convolutions of every kind."""

    def loss(weights, image):
        x = image
        for kernel, groups, stride in zip(weights, (1, 8, 1, 2, 1, 1), (1, 1, 1, 2, 1, 1), strict=True):
            x = conv(x, kernel, (stride, stride), "SAME", dimension_numbers=LAYOUTS[4], feature_group_count=groups)
            x = jnp.tanh(x)
        return jnp.mean(x**2)

    def step(weights, image):
        value, grads = jax.value_and_grad(loss)(weights, image)
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, grads), value

    return lambda weights, images: lax.scan(step, weights, images)


SHAPES = [(3, 3, 3, 8), (3, 3, 1, 8), (1, 1, 8, 8), (3, 3, 4, 16), (3, 3, 16, 64), (3, 3, 64, 64)]


def train_arguments():
    weights = [draw(i, shape) * np.float32(0.3) for i, shape in enumerate(SHAPES)]
    return weights, draw(9, (5, 2, 8, 8, 3))


@pytest.mark.cpu
def test_no_convolution_is_left_in_a_compiled_training_loop_on_the_cpu():
    arguments = train_arguments()
    compiled = jax.jit(train_loop(conv_general_dilated)).lower(*arguments).compile().as_text()
    native = jax.jit(train_loop(lax.conv_general_dilated)).lower(*arguments).compile().as_text()
    assert re.search(r"\bconvolution\(", native)  # the pattern can find one
    assert "while(" in compiled
    assert not re.search(r"\bconvolution\(|onednn|convolution_thunk", compiled)
    assert not re.search(r"\bscatter\(|\bgather\(", compiled)


def test_the_training_loop_gives_the_same_losses_and_weights_as_xla():
    arguments = train_arguments()
    ours = jax.jit(train_loop(conv_general_dilated))(*arguments)
    assert_close(ours, jax.jit(train_loop(lax.conv_general_dilated))(*arguments))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_the_same_convolutions_as_from_xla(platform):
    def count(conv):
        program = jax.export.export(jax.jit(train_loop(conv)), platforms=[platform])(*train_arguments())
        return program.mlir_module().count("stablehlo.convolution")

    assert count(conv_general_dilated) == count(lax.conv_general_dilated) > 4


def test_rematerialization_changes_no_gradient():
    weights, images = train_arguments()
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": LAYOUTS[4]}

    def loss(kernel, image):
        return jnp.sum(jnp.sin(conv_general_dilated(image, kernel, **options)))

    plain = jax.jit(jax.grad(loss))(weights[0], images[0])
    for policy in (None, jax.checkpoint_policies.save_only_these_names("block")):
        assert_close(jax.jit(jax.grad(jax.checkpoint(loss, policy=policy)))(weights[0], images[0]), plain)


@pytest.mark.cpu
def test_a_batch_sharded_over_eight_devices_gives_the_same():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    lhs = draw(0, (16, 6, 6, 4))
    rhs = draw(1, (3, 3, 4, 8))
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": LAYOUTS[4]}
    sharded = values_and_gradients(conv_general_dilated, jax.device_put(lhs, sharding), rhs, options)
    assert len(sharded[0].sharding.device_set) == 8
    assert_close(sharded, values_and_gradients(lax.conv_general_dilated, lhs, rhs, options))


@pytest.mark.cpu
def test_other_layouts_types_and_batch_groups_are_xlas_own():
    rng = np.random.default_rng(0)
    channels_first = (
        rng.normal(size=(2, 3, 5, 5)).astype(np.float32),
        rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
    )
    integers = (rng.integers(0, 9, (2, 5, 5, 3)), rng.integers(0, 9, (3, 3, 3, 4)))
    batch_groups = (
        rng.normal(size=(4, 5, 5, 3)).astype(np.float32),
        rng.normal(size=(3, 3, 3, 4)).astype(np.float32),
    )
    for (lhs, rhs), options in (
        (channels_first, {}),
        (integers, {"dimension_numbers": LAYOUTS[4]}),
        (batch_groups, {"dimension_numbers": LAYOUTS[4], "batch_group_count": 2}),
    ):
        lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
        expected = lax.conv_general_dilated(lhs, rhs, (1, 1), "SAME", **options)
        np.testing.assert_array_equal(conv_general_dilated(lhs, rhs, (1, 1), "SAME", **options), expected)


def test_an_empty_batch_gives_an_empty_output():
    out = conv_general_dilated(
        jnp.ones((0, 5, 5, 3)), jnp.ones((3, 3, 3, 4)), (1, 1), "VALID", dimension_numbers=LAYOUTS[4]
    )
    chex.assert_shape(out, (0, 3, 3, 4))


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", "REFLECT", 1])
def test_flax_layers_take_it_as_their_convolution(padding):
    x = draw(0, (2, 7, 7, 4))
    layers = [
        nnx.Conv(4, 6, (3, 3), 2, padding=padding, rngs=nnx.Rngs(0), **chosen)
        for chosen in ({}, {"conv_general_dilated": conv_general_dilated})
    ]
    assert_close(layers[1](x), layers[0](x))
    plain = nn.Conv(6, (3, 3), 2, padding=padding)
    ours = nn.Conv(6, (3, 3), 2, padding=padding, conv_general_dilated=conv_general_dilated)
    variables = plain.init(jax.random.key(1), x)
    assert_close(ours.apply(variables, x), plain.apply(variables, x))


@pytest.mark.parametrize(
    ("rhs_shape", "options"),
    [
        ((3, 3, 5, 4), {}),
        ((3, 3, 3, 4), {"feature_group_count": 2}),
        ((3, 3, 3, 4), {"window_strides": (1,)}),
        ((3, 3, 3, 4), {"padding": "SOME"}),
        ((3, 3, 3, 4), {"padding": [(1, 1)]}),
        ((3, 3, 3, 4), {"lhs_dilation": (2, 2)}),
    ],
)
def test_a_mistake_gets_xlas_message(rhs_shape, options):
    arguments = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": LAYOUTS[4], **options}
    lhs, rhs = jnp.ones((2, 5, 5, 3)), jnp.ones(rhs_shape)
    with pytest.raises(Exception, match=r".") as expected:
        lax.conv_general_dilated(lhs, rhs, **arguments)
    with pytest.raises(expected.type, match=re.escape(str(expected.value).splitlines()[0])):
        conv_general_dilated(lhs, rhs, **arguments)
