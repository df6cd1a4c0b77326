"""Programs of bfloat16 on a CPU: what they compute, what they consist of, and that other platforms keep their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from accelnet import ops
from accelnet.ops import cells, kernels, product
from accelnet.ops.kernels import library
from accelnet.ops.wide import in_float32

pytestmark = pytest.mark.cpu


@pytest.fixture(autouse=True)
def _wherever_they_can(monkeypatch):
    """Multiply numbers of bfloat16 where that is right, and not only where it is fast."""
    monkeypatch.setattr(library, "multiplies_bfloat16", library.can_multiply_bfloat16)


@pytest.mark.parametrize(("vendor", "multiplies"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_bfloat16_is_multiplied_where_that_is_faster(monkeypatch, vendor, multiplies):
    monkeypatch.undo()
    monkeypatch.setattr(library, "can_multiply_bfloat16", lambda: True)
    monkeypatch.setattr(library, "_processor", lambda: f"flags\t: avx512_bf16vendor_id\t: {vendor}")
    assert library.multiplies_bfloat16() is multiplies


PLAIN = (((1,), (0,)), ((), ()))
BOTH = (jnp.bfloat16, jnp.bfloat16)


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def assert_close(actual, expected, relative):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=relative * (float(np.abs(e).max()) + 1e-6), rtol=0)


# Odd depths, whole and partial vectors, tiles and panels, more rows than a task has, depths of several blocks.
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1100), (3, 40, 33), (13, 16, 101), (64, 10, 128), (15, 97, 7), (150, 130, 1801)]
)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_products_are_those_of_rounded_numbers_with_sums_in_float32(m, n, k, transposed):
    if not library.can_multiply_bfloat16():
        pytest.skip("this processor has no products of bfloat16, or there are no kernels")
    lhs, rhs = random(*((k, m) if transposed[0] else (m, k))), random(*((n, k) if transposed[1] else (k, n)))
    lhs = np.stack([lhs, 2 - lhs])  # members, that share the right matrix
    plain = product._Multiply(*transposed)
    kernel = plain.kernel._replace(meaning=kernels.Rounding(plain, BOTH))
    function = jax.jit(jax.vmap(lambda lhs, rhs: kernels.call(kernel, lhs, rhs)[0], (0, None)))
    numbers = (((0 if transposed[0] else 1,), (1 if transposed[1] else 0,)), ((), ()))
    rounded = [np.asarray(x.astype(jnp.bfloat16), np.float32) for x in (lhs, rhs)]
    exact = [lax.dot_general(member, rounded[1], numbers) for member in rounded[0]]
    # The order of the sums alone differs.
    assert_close(function(lhs, rhs), np.stack(exact), 1e-5)
    assert not np.allclose(function(lhs, rhs), jax.vmap(lambda a: lax.dot_general(a, rhs, numbers))(lhs), 1e-5, 1e-6)


CELLS = {"simple": cells.SIMPLE, "lstm": cells.LSTM, "gru": cells.GRU}


@pytest.mark.parametrize(
    ("name", "batch", "hidden", "lengths"),
    [("lstm", 1, 128, False), ("gru", 3, 5, True), ("lstm", 33, 20, True), ("simple", 70, 37, False)],
)
def test_a_recurrence_and_its_gradients_are_those_of_the_plain_scan(name, batch, hidden, lengths):
    cell, gates, steps = CELLS[name], CELLS[name].num_gates * hidden, 5
    rng = np.random.default_rng(0)
    arrays = {
        "projected": random(steps, batch, gates),
        "kernel": random(hidden, gates) * 0.3,
        "first": tuple(random(batch, hidden) * (0.5 + i) for i in range(cell.num_states)),
        "bias": random(gates) if cell is cells.GRU else None,
    }
    valid = (np.arange(steps)[:, None] < rng.integers(0, steps + 1, batch))[:, :, None] if lengths else None
    weights = random(steps, batch, hidden)

    def of(scan):
        def loss(arrays):
            low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), arrays)
            first = tuple(a if i == 0 else a.astype(jnp.float32) for i, a in enumerate(low["first"]))
            hiddens, last = scan(cells.Operands(**(low | {"first": first}), valid=valid))
            return (hiddens.astype(jnp.float32) * weights).sum() + sum(s.astype(jnp.float32).sum() for s in last)

        return jax.grad(loss)

    def plain(given):
        rest = [x for x in (given.bias, valid) if x is not None]
        meaning = cells._Forward(cell, False, False, False, given.bias is not None, valid is not None)
        hiddens, *last = meaning(given.projected, *given.first, given.kernel, *rest)
        return hiddens, tuple(last)

    ours = jax.jit(in_float32(of(lambda given: cells.scan_cell(cell, False, given))))
    # bfloat16 holds 8 bits: 0.4 % per rounding, and the plain scan rounds its state and what it saves in every step.
    assert_close(ours(arrays), jax.jit(of(plain))(arrays), 0.02)
    if kernels.load():
        text = ours.lower(arrays).as_text()
        assert "accelnet_recur_backward" in text and "bf16" not in text


def network(params, inputs):
    """A loss of products, a convolution, a loop of XLA's, a table of which rows are taken, and more, in bfloat16."""
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    x = ops.conv_general_dilated(
        inputs.astype(jnp.bfloat16), low["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(ops.dot_general(x.reshape(x.shape[0], -1), low["dense"], PLAIN))
    x = jax.nn.softmax(x + low["table"][jnp.arange(x.shape[0]) % 3])
    x = jnp.where(x > 0.1, x, jnp.bfloat16(0.1)) + lax.cond(x[0, 0] > 0, jnp.tanh, jnp.sin, x)
    x, _ = lax.scan(lambda carry, _: (carry @ low["square"], None), x, None, length=2)
    return jnp.mean(jnp.log1p(x.astype(jnp.float32) ** 2))


@pytest.fixture(scope="module")
def given():
    shapes = {"conv": (3, 3, 4, 8), "dense": (8 * 36, 24), "table": (3, 24), "square": (24, 24)}
    return {name: random(*shape) / np.sqrt(shape[-2]) for name, shape in shapes.items()}, random(32, 6, 6, 4)


def test_gradients_are_those_of_the_program_in_bfloat16(given, monkeypatch):
    plain = jax.value_and_grad(network)
    ours = jax.jit(in_float32(plain))
    expected, exact = jax.jit(plain)(*given), ours(*given)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(exact))
    # A dozen roundings of 0.4 %, of which some are left out.
    assert_close(exact, expected, 0.03)
    if kernels.load():
        text = ours.lower(*given).as_text()
        assert all(target in text for target in ("accelnet_multiply", "accelnet_convolve", "accelnet_kernel_gradient"))
    # As on a processor that has none: float32 instead.
    monkeypatch.setattr(library, "multiplies_bfloat16", lambda: False)
    assert_close(jax.jit(in_float32(plain))(*given), expected, 0.03)
    monkeypatch.setattr(library, "load", lambda: False)
    alone = jax.jit(in_float32(plain))
    assert "accelnet_" not in alone.lower(*given).as_text()
    assert_close(alone(*given), expected, 0.03)


def test_other_platforms_get_the_program_as_it_is(given):
    plain = jax.jit(jax.value_and_grad(network))
    texts = [
        jax.export.export(function, platforms=["tpu"])(*given).mlir_module()
        for function in (plain, jax.jit(in_float32(jax.value_and_grad(network))))
    ]
    counts = [[text.count(f"stablehlo.{name} ") for name in ("dot_general", "convert", "add")] for text in texts]
    assert counts[0] == counts[1]
    assert "bf16" in texts[1]
