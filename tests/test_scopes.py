"""Scopes: the parts of a program have names in its compiled form, and nothing else changes."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from accelnet.models.adapter import adapt
from accelnet.scopes import innermost, scope


def test_a_scope_changes_the_metadata_alone():
    def plain(x):
        return jnp.sin(x).sum()

    def named(x):
        with scope("model"):
            return jnp.sin(x).sum()

    texts = [jax.jit(f).lower(jnp.ones(3)).as_text().replace(f.__name__, "f") for f in (plain, named)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        ("", ""),
        ("jit(f)/while/body/add", ""),
        ("jit(f)/an.loop/while/body/an.failure/cond", "failure"),
        ("jit(f)/an.gradient/transpose(jvp(vmap(an.model)))/checkpoint/an.MLP/an.Linear/dot", "Linear"),
        ("jit(f)/an.model/an._Private/add", "model"),
        ("jit(f)/plan.b/add", ""),
    ],
)
def test_the_innermost_scope_is_found_behind_whatever_wraps_it(op_name, expected):
    assert innermost(op_name) == expected


class Registered(nnx.Module):
    """A class that refuses subclasses of its name."""

    names: ClassVar = set()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        assert cls.__name__ not in Registered.names
        Registered.names.add(cls.__name__)


class Own(Registered):
    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        assert type(self) is Own
        return self.layer(x)


class Theirs(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(x)


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (lambda rngs: nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.relu), {"Sequential", "Linear.layers.0"}),
        (Own, {"Linear.layer"}),
        (Theirs(), {"Theirs", "Dense.Dense_0"}),
    ],
)
def test_every_layer_of_a_module_is_a_scope_of_its_class_and_path(model, layers):
    pure, x = adapt(model), jnp.ones((1, 3))
    params, state = pure.init(jax.random.key(0), x)

    def loss(params):
        return pure.apply(params, state, x, key=jax.random.key(0), train=True)[0].sum()

    text = jax.jit(jax.grad(loss)).lower(params).as_text(debug_info=True)
    assert all(f"an.{name}" in text for name in layers)
