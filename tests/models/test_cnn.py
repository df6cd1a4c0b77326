import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from accelnet import ops
from accelnet.errors import UserError
from accelnet.models import CNN

IMAGE = (9, 12, 3)


def build(**options):
    return CNN(IMAGE, [4, 8], 5, rngs=nnx.Rngs(0), **{"dense_features": [6], **options})


def abstract(model, *inputs):
    """Return shape and type of a module's outputs, for which nothing needs to be compiled."""
    return nnx.eval_shape(lambda model: model(*inputs), model)


@nnx.jit
def call(model, inputs):
    """Return a module's outputs, from one program: op by op, each is dozens of small ones."""
    return model(inputs)


def images(seed=0, shape=IMAGE, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(4, *shape)).astype(dtype))


def test_outputs_equal_the_same_layers_written_out():
    model = build(num_convolutions=2, strides=(2, 1))
    x = images()
    numbers = ("NHWC", "HWIO", "NHWC")
    for stage, stride in zip(model.stages, (2, 1), strict=True):
        for layer, s in zip(stage.layers, (stride, 1), strict=True):
            kernel, bias = layer.conv.kernel[...], layer.conv.bias[...]
            x = lax.conv_general_dilated(x, kernel, (s, s), "SAME", dimension_numbers=numbers)
            x = jnp.maximum(x + bias[None, None, None, :], 0)
        x = nnx.max_pool(x, (2, 2), (2, 2))
    x = x.reshape(4, -1)
    for layer in model.dense:
        x = jnp.maximum(x @ layer.kernel[...] + layer.bias[...][None, :], 0)
    expected = x @ model.output.kernel[...] + model.output.bias[...][None, :]
    np.testing.assert_allclose(model(images()), expected, atol=1e-5)  # float32 sums of up to 72 terms


@pytest.mark.parametrize("norm", [None, "batch", "layer", "group"])
@pytest.mark.parametrize("separable", [False, True])
def test_a_replaced_convolution_gives_the_same_outputs(norm, separable):
    options = {
        "norm": norm,
        "separable": separable,
        "num_convolutions": 2,
        "head": "average",
        "pooling": "average",
    }
    ours, plain = build(**options), build(conv_general_dilated=lax.conv_general_dilated, **options)
    np.testing.assert_allclose(call(ours, images()), call(plain, images()), atol=1e-5)


def test_the_convolution_is_called_for_every_layer():
    calls = []

    def conv(*args, **kwargs):
        calls.append(args[1].shape)
        return ops.conv_general_dilated(*args, **kwargs)

    model = build(conv_general_dilated=conv, separable=True, num_convolutions=2)
    calls.clear()
    model(images())
    assert calls == [
        (3, 3, 3, 4),  # the first convolution stays an ordinary one
        (3, 3, 1, 4), (1, 1, 4, 4),
        (3, 3, 1, 4), (1, 1, 4, 8),
        (3, 3, 1, 8), (1, 1, 8, 8),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "batch"},
        {"separable": True, "norm": "batch"},
        {"kernel_size": 5, "pooling": None, "strides": 2},
    ],
)
def test_a_few_steps_of_gradient_descent_lower_the_loss(options):
    model = build(**options)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    x, labels = images(), jnp.array([0, 1, 2, 3])

    def loss(params):
        logits = nnx.merge(graph, params, rest, copy=True)(x)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))

    step = lambda params, _: (  # noqa: E731
        jax.tree.map(lambda p, g: p - 0.05 * g, params, jax.grad(loss)(params)),
        loss(params),
    )
    _, losses = jax.jit(lambda params: lax.scan(step, params, length=30))(params)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("norm", [None, "batch", "layer", "group"])
def test_bfloat16_gives_bfloat16(norm):
    model = build(norm=norm, separable=True, head="average", dropout=0.1)
    nnx.update(model, jax.tree.map(lambda p: p.astype(jnp.bfloat16), nnx.state(model, nnx.Param)))
    assert abstract(model, images(dtype=jnp.bfloat16)).dtype == jnp.bfloat16
    model.eval()
    assert abstract(model, images(dtype=jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_group_norm_standardizes_each_group_of_an_image():
    seen = []
    model = build(norm="group", activation=lambda x: seen.append(x) or x)
    seen.clear()
    model(images())
    groups = seen[0].reshape(4, *IMAGE[:2], 4, 1)  # four channels: gcd(8, 4) groups
    np.testing.assert_allclose(groups.mean((1, 2, 4)), 0, atol=1e-5)
    np.testing.assert_allclose(groups.std((1, 2, 4)), 1, atol=1e-3)  # the norm's epsilon


def test_dropout_acts_in_training_only():
    model = build(dropout=0.5)
    assert not np.array_equal(call(model, images()), call(model, images()))
    model.eval()
    np.testing.assert_array_equal(call(model, images()), call(model, images()))


def test_an_average_head_takes_images_of_another_size():
    model = build(head="average")
    chex.assert_shape(abstract(model, images(shape=(20, 16, 3))), (4, 5))


def test_batch_statistics_start_untouched_by_the_shape_computation():
    stats = nnx.state(build(norm="batch"), nnx.BatchStat)
    assert {float(np.sum(np.abs(leaf))) for leaf in jax.tree.leaves(stats)} == {0.0, 4.0, 8.0}


def test_rematerialization_changes_no_gradient():
    graph, params = nnx.split(build())
    loss = lambda params, x: jnp.sum(jnp.sin(nnx.merge(graph, params)(x)))  # noqa: E731
    policy = jax.checkpoint_policies.save_only_these_names("block")
    plain = jax.jit(jax.grad(loss))(params, images())
    remat = jax.jit(jax.grad(jax.checkpoint(loss, policy=policy)))(params, images())
    # The recomputed program may fuse otherwise: float32 sums over 432 pixels.
    chex.assert_trees_all_close(plain, remat, rtol=1e-7, atol=1e-4)


def test_a_population_under_vmap_equals_its_members_alone():
    def run(seed):
        return CNN(IMAGE, [4], 5, dense_features=[], rngs=nnx.Rngs(jax.random.key(seed)))(images())

    population, alone = jax.jit(jax.vmap(run))(jnp.arange(3)), jax.jit(run)
    for seed in range(3):
        np.testing.assert_allclose(population[seed], alone(seed), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_shape": (3, 3, 1)}, "too small: stage 2 of 2 gets 1x1"),
        ({"image_shape": (28, 28)}, "height, width, channels"),
        ({"strides": (1, 2, 1)}, "one of each per stage"),
        ({"num_convolutions": 0}, "num_convolutions is 0"),
        ({"pooling": "min"}, "pooling is 'min'"),
        ({"head": "mean"}, "head is 'mean'"),
        ({"norm": "instance"}, "norm is 'instance'"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_a_mistake_is_told_in_one_message(options, words):
    with pytest.raises(UserError, match=words):
        CNN(**{"image_shape": IMAGE, "channels": [4, 8], "out_features": 5, "rngs": nnx.Rngs(0), **options})


def test_images_of_another_shape_are_told_in_one_message():
    with pytest.raises(UserError, match=r"inputs are float32\[4,8,8,3\], expected images \[batch, 9, 12, 3\]"):
        build()(images(shape=(8, 8, 3)))
