"""Computation in fewer bits: that it reaches every layer, and what is said of its speed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from accelnet import models
from accelnet.models import precision
from accelnet.models.adapter import adapt

KERNEL, VECTOR = jax.ShapeDtypeStruct((3, 3, 1, 8), np.float32), jax.ShapeDtypeStruct((8,), np.float32)


@pytest.mark.parametrize("num_symbols", [5, 1000])  # more than tokens: rows are taken; fewer: the table is multiplied
def test_an_embedding_does_not_make_what_comes_after_it_float32(num_symbols):
    pure = adapt(lambda rngs: models.RNN(8, 16, 5, num_symbols=num_symbols, cell="gru", rngs=rngs))
    tokens = jnp.zeros((3, 7), jnp.int32)
    low, state = jax.eval_shape(
        lambda key: precision.cast_floats(pure.init(key, tokens), jnp.bfloat16), jax.random.key(0)
    )

    def outputs(params, state, tokens):
        return pure.apply(params, state, tokens, key=jax.random.key(0), train=True, dtype=jnp.bfloat16)[0]

    # The layers behind the embedding have the type of their inputs.
    assert jax.eval_shape(outputs, low, state, tokens).dtype == jnp.bfloat16


@pytest.mark.cpu
def test_where_bfloat16_is_not_faster_a_line_says_so(monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
    assert precision.precision_note("bfloat16", {"bias": VECTOR}) is None
    assert "convolutions are computed in float32" in precision.precision_note("bfloat16", {"kernel": KERNEL})
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    assert "no products of bfloat16" in precision.precision_note("bfloat16", {"bias": VECTOR})
    assert precision.precision_note("float32", {"kernel": KERNEL}) is None
