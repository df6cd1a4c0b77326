"""LSTM and GRU against PyTorch (scripts/record_pytorch.py), weights mapped, both directions, unequal lengths."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from accelnet.ops import gru, lstm


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).with_name("pytorch_recurrence.npz")) as file:
        return dict(file)


def mapped(name, arrays, suffix, gradient):
    """PyTorch's weights of one direction as the arguments of accelnet's function.

    The sum of PyTorch's two biases is one here, and its gradient is that of either.
    """
    kernels = {
        "input_kernel": arrays[f"weight_ih_l0{suffix}"].T,
        "recurrent_kernel": arrays[f"weight_hh_l0{suffix}"].T,
    }
    first, second = arrays[f"bias_ih_l0{suffix}"], arrays[f"bias_hh_l0{suffix}"]
    if name == "LSTM":
        return kernels | {"bias": first if gradient else first + second}
    gates = 2 * second.size // 3
    own = np.concatenate([second[:gates], np.zeros_like(second[gates:])])
    return kernels | {"bias": first if gradient else first + own, "recurrent_bias": second[gates:]}


@pytest.mark.parametrize("kind", ["full", "ragged"])
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_outputs_states_and_gradients_are_pytorchs(recorded, name, kind):
    arrays = {path.split("/", 2)[2]: a for path, a in recorded.items() if path.startswith(f"{name}/{kind}/")}
    lengths = jnp.asarray(recorded["lengths"]) if kind == "ragged" else None
    function = {"LSTM": lstm, "GRU": gru}[name]

    def run(weights, inputs):
        results = [
            function(inputs, **direction, lengths=lengths, reverse=reverse)
            for direction, reverse in zip(weights, (False, True), strict=True)
        ]
        states = [state if name == "LSTM" else (state,) for _, state in results]
        return jnp.concatenate([outputs for outputs, _ in results], axis=-1), [
            jnp.stack(s) for s in zip(*states, strict=True)
        ]

    def loss(weights, inputs):
        outputs, states = run(weights, inputs)
        total = 0.0
        for array in (outputs, *states):
            total += (array * jnp.cos(jnp.arange(array.size, dtype=array.dtype)).reshape(array.shape)).sum()
        return total, (outputs, states)

    weights = [mapped(name, arrays, suffix, gradient=False) for suffix in ("", "_reverse")]
    gradients, (outputs, states) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(weights, arrays["inputs"])
    # Sums of a few float32 products in another order.
    np.testing.assert_allclose(outputs, arrays["outputs"], rtol=1e-5, atol=1e-6)
    for found, letter in zip(states, "hc", strict=False):
        np.testing.assert_allclose(found, arrays[letter], rtol=1e-5, atol=1e-6)
    theirs = {path.removeprefix("gradient/"): a for path, a in arrays.items() if path.startswith("gradient/")}
    expected = [mapped(name, theirs, suffix, gradient=True) for suffix in ("", "_reverse")], theirs["inputs"]
    # These are sums over all steps and sequences.
    chex.assert_trees_all_close(gradients, expected, rtol=1e-4, atol=1e-5)
