import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from accelnet.errors import UserError
from accelnet.models import ResNet

WIDTHS = (4, 6, 8)


def build(depth=8, seed=0, **options):
    return ResNet(3, depth, 5, rngs=nnx.Rngs(seed), **{"widths": WIDTHS, **options})


def images(shape=(8, 8, 3), dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, *shape)).astype(dtype))


def abstract(model, *inputs):
    """Return shape and type of a module's outputs, for which nothing needs to be compiled."""
    return nnx.eval_shape(lambda model: model(*inputs), model)


@nnx.jit
def call(model, inputs):
    """Return a module's outputs, from one program: op by op, each is dozens of small ones."""
    return model(inputs)


def num_parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def loss_and_gradients(model, inputs):
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        return jnp.mean(jnp.sin(nnx.merge(graph, params, rest, copy=True)(inputs)))

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (56, 0.85), (110, 1.7)])
def test_the_number_of_parameters_is_that_of_the_papers_table_6(depth, millions):
    shapes = nnx.eval_shape(lambda: ResNet(3, depth, 10, rngs=nnx.Rngs(0)))
    digits = 1 if depth == 110 else 2
    assert round(num_parameters(shapes) / 1e6, digits) == millions


@pytest.mark.parametrize("depth", [8, 14])
def test_depth_counts_the_layers_with_weights(depth):
    kernels = [leaf for leaf in jax.tree.leaves(nnx.state(build(depth), nnx.Param)) if leaf.ndim > 1]
    assert len(kernels) == depth


@pytest.mark.parametrize("shortcut", ["identity", "projection"])
def test_a_block_equals_the_same_layers_written_out(shortcut):
    block = build(shortcut=shortcut).blocks[1]  # the first of stage 2: 4 to 6 channels, half the size
    x = images((8, 8, 4))

    def conv_norm(layer, x, strides):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, layer.conv.kernel[...], strides, "SAME", dimension_numbers=numbers)
        mean, variance = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
        return (x - mean) / jnp.sqrt(variance + 1e-5)

    out = conv_norm(block.second, jnp.maximum(conv_norm(block.first, x, (2, 2)), 0), (1, 1))
    if shortcut == "projection":
        skip = conv_norm(block.projection, x, (2, 2))
    else:
        skip = np.pad(x[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), (0, 2)])
    np.testing.assert_allclose(block(x), jnp.maximum(out + skip, 0), atol=1e-4)  # statistics over 64 pixels


@pytest.mark.parametrize("size", [(8, 8), (7, 13), (32, 32), (1, 1)])
def test_any_image_size_fits(size):
    chex.assert_shape(abstract(build(), images((*size, 3))), (4, 5))


def test_the_gradient_of_a_shared_block_is_the_sum_over_its_uses():
    shared, twin = build(20, shared=True), build(20, seed=1)
    weights = nnx.state(shared, nnx.Param)
    nnx.update(twin, {k: v for k, v in weights.items() if k != "blocks"})
    for i, block in enumerate(twin.blocks):
        nnx.update(block, weights["blocks"][2 * (i // 3) + min(i % 3, 1)])
    assert num_parameters(shared) == num_parameters(build(14))

    value, grads = loss_and_gradients(shared, images())
    twin_value, twin_grads = loss_and_gradients(twin, images())
    np.testing.assert_allclose(value, twin_value, rtol=1e-5)
    for stage in range(3):
        uses = [twin_grads["blocks"][3 * stage + i] for i in (1, 2)]
        expected = jax.tree.map(lambda *leaves: sum(leaves), *uses)
        # Batch norm divides by statistics of few pixels, which enlarges float32 rounding.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max()),
            grads["blocks"][2 * stage + 1],
            expected,
        )


def test_running_statistics_of_a_shared_block_move_with_every_use():

    model = build(20, shared=True)
    block, seen = model.blocks[1], []
    conv = block.first.conv
    block.first.conv = lambda x: seen.append(conv(x)) or seen[-1]
    model(images())
    expected = jnp.ones(WIDTHS[0])
    for x in seen:
        expected = 0.9 * expected + 0.1 * x.var((0, 1, 2))
    assert len(seen) == 2
    np.testing.assert_allclose(block.first.norm.layer.var[...], expected, rtol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
@pytest.mark.parametrize("shortcut", ["identity", "projection"])
def test_bfloat16_gives_bfloat16(norm, shortcut):
    model = build(norm=norm, shortcut=shortcut)
    nnx.update(model, jax.tree.map(lambda p: p.astype(jnp.bfloat16), nnx.state(model, nnx.Param)))
    assert abstract(model, images(dtype=jnp.bfloat16)).dtype == jnp.bfloat16
    model.eval()
    assert abstract(model, images(dtype=jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_replaced_convolution_gives_the_same_outputs():
    plain = build(conv_general_dilated=lax.conv_general_dilated)
    np.testing.assert_allclose(
        call(build(), images()), call(plain, images()), atol=1e-4
    )  # seven batch norms enlarge rounding


def test_rematerialization_changes_no_gradient():
    graph, params, rest = nnx.split(build(), nnx.Param, ...)
    loss = lambda params: jnp.sum(jnp.sin(nnx.merge(graph, params, rest, copy=True)(images())))  # noqa: E731
    policy = jax.checkpoint_policies.save_only_these_names("block")
    plain = jax.jit(jax.grad(loss))(params)
    remat = jax.jit(jax.grad(jax.checkpoint(loss, policy=policy)))(params)
    # The recomputed program may fuse otherwise, and batch norm enlarges rounding.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max()), remat, plain)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 18}, "nearest are 14 and 20"),
        ({"depth": 2}, "nearest are 8 and 14"),
        ({"depth": 8, "shared": True}, "nothing to share"),
        ({"shortcut": "none"}, "shortcut is 'none'"),
        ({"widths": (4, 8)}, "expected three"),
        ({"widths": (8, 4, 8)}, "must not shrink"),
        ({"norm": None}, "norm is None"),
    ],
)
def test_a_mistake_is_told_in_one_message(options, words):
    with pytest.raises(UserError, match=words):
        build(**options)
