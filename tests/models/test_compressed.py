import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

import accelnet as an
from accelnet.errors import UserError
from accelnet.models.adapter import adapt
from accelnet.models.compressed import Compressed, Compression
from accelnet.models.replacing import replace_layer

MADE = an.models.MLP(4, (8,), 2, rngs=nnx.Rngs(0))


@dataclasses.dataclass
class Sizes:
    dim: int = 8
    blocks: tuple[dict, ...] = ({"hidden": 16},)


class Wrapped(nnx.Module):
    """Has another module handed in, made before it, and sizes in a dataclass."""

    def __init__(self, stem, sizes: Sizes = Sizes(), *, rngs):  # noqa: B008
        self.stem = stem
        self.first = nnx.Linear(sizes.dim, sizes.blocks[0]["hidden"], rngs=rngs)
        self.last = nnx.Linear(sizes.blocks[0]["hidden"], 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(self.stem(x))))


class Subclass(Wrapped):
    pass


class Small(linen.Module):
    hidden: int
    inner: linen.Module

    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(self.inner(linen.Dense(self.hidden)(x)))


def shapes(model, widths, inputs):
    pure = adapt(Compressed(model, Compression(widths)))
    params, state = jax.eval_shape(lambda: pure.init(jax.random.key(0), inputs))
    outputs = jax.eval_shape(lambda p, s: pure.apply(p, s, inputs, key=jax.random.key(0), train=True)[0], params, state)
    return jax.tree.map(jnp.shape, params), outputs.shape


def test_the_outermost_module_is_made_with_other_numbers_however_it_is_made():
    inputs = jnp.zeros((3, 4))
    for model in (
        lambda rngs: Subclass(nnx.Linear(4, 8, rngs=rngs), rngs=rngs),
        lambda rngs: Wrapped(nnx.Linear(4, 8, rngs=rngs), Sizes(), rngs=rngs),
    ):
        found, outputs = shapes(model, {"sizes.blocks.0.hidden": 5}, inputs)
        assert (found["first"]["kernel"], found["last"]["kernel"], outputs) == ((8, 5), (5, 2), (3, 2))
        assert found["stem"]["kernel"] == (4, 8)
    found, _ = shapes(partial(an.models.MLP, 4, [16, 16], 2), {"hidden_features.1": 7}, inputs)
    assert found["layers"]["1"]["linear"]["kernel"] == (16, 7)
    found, _ = shapes(Small(16, linen.Dense(6)), {"hidden": 5, "inner.features": 3}, inputs)
    kernels = [found[name]["kernel"] for name in ("Dense_1", "inner", "Dense_0")]
    assert kernels == [(4, 5), (5, 3), (3, 2)]


def test_a_compressed_model_is_compressed_further_by_the_same_names():
    once = Compressed(partial(an.models.MLP, 4, (16, 16), 2), Compression({"hidden_features.0": 8}))
    twice = Compressed(once, Compression({"hidden_features.1": 3}))
    assert twice.compression.widths == {"hidden_features.0": 8, "hidden_features.1": 3}
    chex.assert_shape(nnx.state(twice(rngs=nnx.Rngs(0)))["head"]["kernel"], (3, 2))


@pytest.mark.parametrize(
    ("model", "widths", "message"),
    [
        (MADE, {}, "only what makes a module can make a smaller one"),
        (lambda rngs: MADE, {}, "does not construct"),
        (partial(an.models.MLP, 4, (8,), 2), {"hidden": 3}, "hidden_features.0, out_features"),
        (linen.Dense(3).bind({}), {}, "only what makes a module"),
    ],
)
def test_what_cannot_be_made_smaller_is_refused_in_one_message(model, widths, message):
    with pytest.raises(UserError, match=message):
        Compressed(model, Compression(widths))


def test_a_compression_is_json():
    one = Compression({"channels.0": 8}, {"head": 4}, {"head": 8})
    assert Compression.from_json(one.as_json()) == one
    for bad in ([], {"width": {}}, {"bits": {"head": "8"}}, {"bits": {"head": 0}}):
        with pytest.raises(UserError, match="a compression is"):
            Compression.from_json(bad)


def test_a_layer_is_replaced_wherever_it_is_held():
    class Shared(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Linear(4, 4, rngs=rngs)
            self.others = nnx.List([nnx.Linear(4, 4, rngs=rngs), self.a])
            self.named = nnx.Dict(again=self.a)

    module = Shared(nnx.Rngs(0))
    new = nnx.Linear(4, 4, use_bias=False, rngs=nnx.Rngs(1))
    replace_layer(module, "a", lambda old: new)
    assert module.a is module.others[1] is module.named["again"] is new
    with pytest.raises(UserError, match="no layer b"):
        replace_layer(module, "b", lambda old: new)
