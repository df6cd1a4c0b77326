"""Padding is left out of batch statistics: whose layers they are, whatever the layout, in gradients too."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import accelnet as an
from accelnet.models.adapter import adapt
from accelnet.models.normalization import BatchNorm
from accelnet.ops.sequences import valid_steps


class Flax(nnx.Module):
    """Other people's layers: of another axis, of a slower variance, and twice in one call."""

    def __init__(self, rngs, kind=nnx.BatchNorm):
        self.conv = nnx.Conv(1, 3, (3, 3), rngs=rngs)
        self.norm = kind(3, momentum=0.9, use_fast_variance=False, rngs=rngs)
        self.rows = nnx.BatchNorm(4, axis=1, rngs=rngs)
        self.head = nnx.Linear(48, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.rows(self.norm(self.norm(self.conv(x)))))
        return self.head(x.reshape(x.shape[0], -1))


class Shifted(nnx.BatchNorm):
    def __call__(self, x, use_running_average=None, **others):
        return 1.0 + super().__call__(x, use_running_average, **others)


class LinenShifted(linen.BatchNorm):
    @linen.compact
    def __call__(self, x, use_running_average=None):
        return 1.0 + super().__call__(x, use_running_average)


class Linen(linen.Module):
    norm: type = linen.BatchNorm

    @linen.compact
    def __call__(self, x, train):
        x = self.norm(use_running_average=not train)(linen.Conv(3, (3, 3))(x))
        x = linen.BatchNorm(axis=1)(x, use_running_average=not train)
        return linen.Dense(2)(x.reshape(x.shape[0], -1))


class ByHand(nnx.Module):
    """Statistics of one's own, which can leave padding out because the call asks for the mask."""

    def __init__(self, rngs):
        self.mean, self.head = nnx.BatchStat(jnp.zeros((1, 16))), nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x, mask):
        x = x.reshape(x.shape[0], -1)
        mean = jnp.mean(x, axis=0, where=mask[:, None], keepdims=True)
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
        return self.head(x - mean)


MODELS = {
    "cnn": functools.partial(an.models.CNN, (4, 4, 1), (3,), 2, norm="batch"),
    "resnet": functools.partial(an.models.ResNet, 1, 8, 2, widths=(2, 2, 2)),
    "mlp": functools.partial(an.models.MLP, 16, (5,), 2, norm="batch"),
    "flax": Flax,
    "subclass": functools.partial(Flax, kind=Shifted),
    "linen": Linen(),
    "linen subclass": Linen(LinenShifted),
    "by hand": ByHand,
}
IMAGES = np.random.default_rng(0).normal(2.0, 3.0, (6, 4, 4, 1)).astype(np.float32)
PADDED, MASK = np.concatenate([IMAGES, np.full((3, 4, 4, 1), 50, np.float32)]), np.arange(9) < 6


def close(actual, expected):
    chex.assert_trees_all_close(actual, expected, rtol=2e-5, atol=2e-6)  # sums of other lengths


def step(pure, params, state, inputs, mask):
    """The loss of the valid rows, their outputs, the state afterwards, and the gradient."""

    def loss(params):
        outputs, after = pure.apply(params, state, inputs, key=jax.random.key(2), train=True, mask=mask)
        return jnp.sum(jnp.sin(outputs[:6])), (outputs[:6], after)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_a_padded_batch_gives_what_the_batch_alone_gives(model):
    pure = adapt(model)
    params, state = pure.init(jax.random.key(1), IMAGES)
    expected = step(pure, params, state, IMAGES, None)
    close(step(pure, params, state, PADDED, MASK), expected)
    _, (_, unmasked) = step(pure, params, state, PADDED, np.ones(9, bool))[0]
    assert not np.allclose(jax.tree.leaves(unmasked)[0], jax.tree.leaves(expected[0][1][1])[0])


@pytest.mark.parametrize("model", [MODELS["cnn"], Flax, Linen()], ids=["accelnet", "flax", "linen"])
def test_a_microbatch_of_padding_alone_moves_no_running_average(model):
    pure = adapt(model)
    params, state = pure.init(jax.random.key(1), IMAGES)
    (_, (outputs, after)), _ = step(pure, params, state, IMAGES, np.zeros(6, bool))
    chex.assert_trees_all_equal(after, state)
    assert np.isfinite(outputs).all()


class Series(nnx.Module):
    """Batch statistics over the valid steps of series."""

    def __init__(self, rngs, kind=nnx.BatchNorm):
        self.norm = kind(3, rngs=rngs)
        self.rnn = an.models.RNN(3, 4, 2, cell="gru", rngs=rngs)

    def __call__(self, inputs, lengths):
        valid = valid_steps(lengths, inputs.shape[1])
        return self.rnn(self.norm(inputs, mask=valid[:, :, None]), lengths)


@pytest.mark.parametrize("kind", [nnx.BatchNorm, BatchNorm], ids=["flax", "accelnet"])
def test_padded_steps_count_nowhere_where_the_layer_gets_their_mask(kind):
    rng = np.random.default_rng(0)
    series, lengths = rng.normal(1.0, 2.0, (6, 5, 3)).astype(np.float32), np.array([5, 2, 3, 5, 1, 4], np.int32)
    pure = adapt(functools.partial(Series, kind=kind))
    params, state = pure.init(jax.random.key(1), {"inputs": series, "lengths": lengths})
    results = []
    for steps, rows, filled in ((5, 6, 0.0), (8, 9, 70.0)):
        inputs = np.full((rows, steps, 3), filled, np.float32)
        inputs[:6, :5] = np.where(np.arange(5)[None, :, None] < lengths[:, None, None], series, filled)
        batch = {"inputs": inputs, "lengths": np.concatenate([lengths, np.full(rows - 6, steps, np.int32)])}
        results.append(step(pure, params, state, batch, np.arange(rows) < 6))
    close(*results)
    moved = results[0][0][1][1]["norm"]["mean"]
    valid = np.concatenate([one[:length] for one, length in zip(series, lengths, strict=True)])
    np.testing.assert_allclose(moved, valid.mean(0) * (0.01), rtol=1e-4)


def test_masks_that_differ_between_devices_are_counted_over_all_of_them():
    x = np.random.default_rng(0).normal(3.0, 2.0, (8, 5, 3)).astype(np.float32)
    mask = np.arange(5)[None, :] < np.array([5, 0, 1, 2, 5, 5, 0, 3])[:, None]

    class Masked(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(3, rngs=rngs)

        def __call__(self, inputs, valid):
            return self.norm(inputs, mask=valid[:, :, None])

    pure = adapt(Masked)
    params, state = pure.init(jax.random.key(0), {"inputs": x, "valid": mask})
    settings = {"key": jax.random.key(0), "train": True}

    def run(x, mask):
        return pure.apply(params, state, {"inputs": x, "valid": mask}, axes=("data",), **settings)

    outputs, after = jax.pmap(run, axis_name="data")(x.reshape(8, 1, 5, 3), mask.reshape(8, 1, 5))
    valid = x[mask]
    for row in range(8):
        np.testing.assert_allclose(after["norm"]["mean"][row], 0.01 * valid.mean(0), rtol=1e-5)
        np.testing.assert_allclose(after["norm"]["var"][row], 0.99 + 0.01 * valid.var(0), rtol=1e-5)
    expected = (x - valid.mean(0)[None, None]) / np.sqrt(valid.var(0) + 1e-5)[None, None]
    np.testing.assert_allclose(outputs.reshape(8, 5, 3), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model", "microbatch_size"), [("cnn", 16), ("flax", 8), ("linen", 16), ("cnn", 8)])
def test_training_with_padding_is_the_same_on_one_device_and_on_eight(model, microbatch_size):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(20, 4, 4, 1)).astype(np.float32), (np.arange(20) % 2).astype(np.int32)
    experiment = an.Experiment(
        data=an.data.Data("toy", {"inputs": inputs, "targets": targets}, {"train": range(20)}),
        model=MODELS[model],
        optimizer=an.optim.sgd(0.1),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=16,  # of the second batch 12 rows are padding: whole parts of it, and with 8 a whole microbatch
        microbatch_size=microbatch_size,
        steps=4,
    )
    one, eight = (an.fit(experiment, mesh=mesh, progress=False) for mesh in (None, "data=8"))
    chex.assert_trees_all_close(one.params, eight.params, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(one.model_state, eight.model_state, rtol=1e-4, atol=1e-5)


def test_layers_of_bfloat16_have_statistics_of_float32_and_outputs_of_their_own_type():
    class Low(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(16, dtype=jnp.bfloat16, rngs=rngs)

        def __call__(self, x):
            return self.norm(x)

    pure = adapt(Low)
    rows = (300.0 + np.random.default_rng(0).normal(size=(9, 16))).astype(np.float32)
    params, state = pure.init(jax.random.key(0), rows)
    settings = {"key": jax.random.key(0), "train": True}
    outputs, after = pure.apply(params, state, rows, mask=np.ones(9, bool), **settings)
    expected, expected_after = pure.apply(params, state, rows, **settings)  # Flax's own
    assert outputs.dtype == expected.dtype == jnp.bfloat16
    # Near 300 a bfloat16 is a multiple of 2: means rounded to that would be off by up to one deviation.
    np.testing.assert_allclose(outputs.astype(np.float32), expected.astype(np.float32), rtol=1e-2, atol=1e-2)
    chex.assert_trees_all_close(after, expected_after, rtol=1e-5)


def test_a_layer_that_cannot_tell_padding_says_so():
    class Flattened(nnx.Module):
        def __init__(self, rngs, trusted=False):
            self.norm, self.trusted = nnx.BatchNorm(4, rngs=rngs), trusted

        def __call__(self, x):
            rows = x.reshape(-1, 4)
            return self.norm(rows, mask=jnp.ones((len(rows), 1), bool) if self.trusted else None).reshape(x.shape)

    settings = {"key": jax.random.key(0), "train": True, "mask": MASK}
    for model in (Flattened, functools.partial(Flattened, trusted=True)):
        pure = adapt(model)
        given = pure.init(jax.random.key(1), PADDED)
        if model is Flattened:
            with pytest.raises(an.UserError, match=r"a BatchNorm got float32\[36,4\], and the batch has 9 examples"):
                pure.apply(*given, PADDED, **settings)
            pure.apply(*given, PADDED, key=jax.random.key(0), train=False)
        else:
            pure.apply(*given, PADDED, **settings)


def test_a_call_that_asks_for_the_mask_has_it_in_training_and_evaluation():
    seen = []

    class Asking(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x, mask):
            jax.debug.callback(lambda mask: seen.append(int(mask.sum())), mask, ordered=True)
            return self.head(x.reshape(x.shape[0], -1))

    rows = np.zeros((11, 4, 4, 1), np.float32)
    experiment = an.Experiment(
        data=an.data.Data("toy", {"inputs": rows, "targets": np.zeros(11, np.int32)}, {"train": range(11)}),
        model=Asking, optimizer=an.optim.sgd(0.1), objective=an.objectives.softmax_cross_entropy(),
        batch_size=8, eval_batch_size=6, steps=2,
    )  # fmt: skip
    an.fit(experiment, progress=False)
    jax.effects_barrier()
    assert seen == [8, 3, 6, 5]
