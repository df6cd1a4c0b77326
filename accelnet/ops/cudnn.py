"""The LSTM of cuDNN, behind `accelnet.ops.lstm` on one NVIDIA GPU.

What cuDNN cannot do stays with the plain program: other platforms, vmap, second derivatives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import rnn

# The arrays of an LSTM: inputs [batch, steps, features], h and c [batch, hidden], input kernel, recurrent kernel, bias.
Operands = tuple[Array, Array, Array, Array, Array, Array]
Results = tuple[Array, Array, Array]


def fits(dtype: Any) -> bool:
    """Say, while a program is traced, whether cuDNN may be part of it.

    cuDNN computes in float32. Its buffers' sizes are asked from the GPU, so there must be one; a program that
    is partitioned over several would gather the batch in front of it, so there must be no second.

    Args:
        dtype: of the inputs.

    Returns:
        True on a machine with one NVIDIA GPU. A program that is then compiled for another platform
        gets the plain LSTM all the same; only one export for several platforms at once, which JAX refuses to
        lower with cuDNN's primitives in it, has to be traced under JAX_PLATFORMS=cpu.
    """
    if dtype != jnp.float32 or jax.default_backend() != "gpu" or jax.device_count() != 1:
        return False
    return "cuda" in jax.devices()[0].client.platform_version.lower()


def make_lstm(plain: Callable[[Operands], Results]) -> Callable[[Operands], Results]:
    """Return cuDNN's LSTM, with the plain one where cuDNN's cannot be used.

    Args:
        plain: the LSTM as a differentiable function of its operands, which gives the outputs
            [batch, steps, hidden] and the last h and c.

    Returns:
        A function of the same meaning, under jit, vmap and (also nested) grad.

    Source: the primitives and the layout of the weights: `jax.experimental.rnn`; the rest original.
    """

    def plain_forward(operands: Operands) -> tuple[Results, Array]:
        reserve = jax.eval_shape(_forward, operands)[1]
        return plain(operands), jnp.zeros(reserve.shape, reserve.dtype)

    def plain_backward(saved: tuple[Operands, Array, Array], gradient: Results) -> Operands:
        return jax.vjp(plain, saved[0])[1](gradient)[0]

    forward, backward = _prefer(_forward, plain_forward), _prefer(_backward, plain_backward)

    @jax.custom_vjp
    def lstm(operands: Operands) -> Results:
        return forward(operands)[0]

    def lstm_forward(operands: Operands) -> tuple[Results, tuple[Operands, Array, Array]]:
        results, reserve = forward(operands)
        return results, (operands, results[0], reserve)

    lstm.defvjp(lstm_forward, lambda saved, gradient: (backward(saved, gradient),))
    return lstm


def pack(input_kernel: Array, recurrent_kernel: Array, bias: Array) -> Array:
    """Lay out the weights of one layer as cuDNN wants them: [4 * hidden * (features + hidden + 2)].

    Args:
        input_kernel: [features, 4 * hidden], gates in the order i, f, g, o.
        recurrent_kernel: [hidden, 4 * hidden].
        bias: [4 * hidden]; cuDNN's second bias is zeros.
    """
    parts = input_kernel.T, recurrent_kernel.T, bias, jnp.zeros_like(bias)
    return jnp.concatenate([part.ravel() for part in parts])


def _prefer(fast: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Take `fast` on CUDA, and `plain` on other platforms, under vmap, and for derivatives."""

    @jax.custom_batching.custom_vmap
    def batchable(*args: Any) -> Any:
        return lax.platform_dependent(*args, cuda=fast, default=plain)

    @batchable.def_vmap
    def _(size: int, batched: Any, *args: Any) -> tuple[Any, Any]:
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, batched)
        results = jax.vmap(plain, in_axes=tuple(axes), axis_size=size)(*args)
        return results, jax.tree.map(lambda _: True, results)

    differentiable = jax.custom_vjp(batchable)
    differentiable.defvjp(
        lambda *args: (batchable(*args), args), lambda args, gradient: jax.vjp(plain, *args)[1](gradient)
    )
    return differentiable


def _options(operands: Operands) -> dict[str, Any]:
    inputs, hidden = operands[:2]
    return {
        "input_size": inputs.shape[2],
        "hidden_size": hidden.shape[1],
        "num_layers": 1,
        "dropout": 0.0,
        "bidirectional": False,
        "precision": None,
    }


def _forward(operands: Operands) -> tuple[Results, Array]:
    inputs, hidden, memory, *kernels = operands
    lengths = jnp.full(inputs.shape[0], inputs.shape[1], jnp.int32)
    results, saved = rnn.lstm_fwd(inputs, hidden[None], memory[None], pack(*kernels), lengths, **_options(operands))
    outputs, last, last_memory = results
    return (outputs, last[0], last_memory[0]), saved[-1]


def _backward(saved: tuple[Operands, Array, Array], gradient: Results) -> Operands:
    operands, outputs, reserve = saved
    inputs, hidden, memory, *kernels = operands
    packed, unpack = jax.vjp(pack, *kernels)
    lengths = jnp.full(inputs.shape[0], inputs.shape[1], jnp.int32)
    dinputs, dhidden, dmemory, dpacked, _ = rnn.lstm_bwd(
        **_options(operands),
        residuals=(inputs, hidden[None], memory[None], packed, lengths, outputs, reserve),
        gradients=(gradient[0], gradient[1][None], gradient[2][None]),
    )
    return dinputs, dhidden[0], dmemory[0], *unpack(dpacked)
