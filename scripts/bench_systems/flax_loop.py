"""Plain Flax and Optax: one jitted step per call, in the functional form of Flax's guide to performance.

The module is split once, outside; the step merges it while it is traced, takes over the state's buffers, and is not
waited for. Batches lie on the device.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bench_systems import layers as describe
from bench_systems.cases import Arrays, Case, forward_loss
from bench_systems.system import System, timed


class _RecurrentLinear(nnx.Module):
    """The GRU's recurrent product with the new gate's bias.

    nnx.GRUCell documents this bias, b_hn, and leaves it out; so its attribute `dense_h` is replaced.
    """

    def __init__(self, kernel: np.ndarray, bias: np.ndarray) -> None:
        self.kernel = nnx.Param(jnp.asarray(kernel))
        self.bias = nnx.Param(jnp.asarray(bias))

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = self.bias[...]
        return x @ self.kernel[...] + jnp.concatenate([jnp.zeros(2 * bias.size), bias])[None]


class _Recurrent(nnx.Module):
    def __init__(self, layer: describe.Recurrent, weights: describe.Weights, rngs: nnx.Rngs) -> None:
        self.output = layer.output
        made = []
        for directions in describe.recurrent_weights(layer, weights):
            rnns = [nnx.RNN(_cell(layer.cell, one, rngs), rngs=rngs) for one in directions]
            made.append(nnx.Bidirectional(*rnns, rngs=rngs) if layer.bidirectional else rnns[0])
        self.layers = nnx.List(made)

    def __call__(self, x: Any) -> jax.Array:
        x, lengths = x if isinstance(x, tuple) else (x, None)
        carry: Any = None
        for layer in self.layers:
            carry, x = layer(x, seq_lengths=lengths, return_carry=True)
        if self.output == "steps":
            return x
        directions = carry if isinstance(self.layers[-1], nnx.Bidirectional) else (carry,)
        # An LSTM's carry is (memory, hidden).
        hiddens = [one[1] if isinstance(one, tuple) else one for one in directions]
        return jnp.concatenate(hiddens, axis=-1)


def _cell(name: str, weights: describe.RecurrentWeights, rngs: nnx.Rngs) -> nnx.Module:
    sizes = weights.input_kernel.shape[0], weights.recurrent_kernel.shape[0]
    if name == "lstm":
        cell = nnx.OptimizedLSTMCell(*sizes, rngs=rngs)
        cell.dense_i.kernel.set_value(jnp.asarray(weights.input_kernel))
        cell.dense_h.kernel.set_value(jnp.asarray(weights.recurrent_kernel))
        cell.dense_h.bias.set_value(jnp.asarray(weights.bias))
    else:
        assert weights.recurrent_bias is not None
        cell = nnx.GRUCell(*sizes, rngs=rngs)
        cell.dense_i.kernel.set_value(jnp.asarray(weights.input_kernel))
        cell.dense_i.bias.set_value(jnp.asarray(weights.bias))
        cell.dense_h = _RecurrentLinear(weights.recurrent_kernel, weights.recurrent_bias)
    return cell


class _Residual(nnx.Module):
    def __init__(self, layer: describe.Residual, weights: describe.Weights, rngs: nnx.Rngs) -> None:
        self.body = _Network(layer.body, weights, rngs)
        self.strides, self.extra = layer.strides, layer.extra

    def __call__(self, x: jax.Array) -> jax.Array:
        skip = jnp.pad(x[:, :: self.strides, :: self.strides], ((0, 0), (0, 0), (0, 0), (0, self.extra)))
        return nnx.relu(self.body(x) + skip)


class _Network(nnx.Module):
    def __init__(self, layers: tuple[Any, ...], weights: describe.Weights, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([_module(layer, weights, rngs) for layer in layers])

    def __call__(self, x: Any) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


def _module(layer: Any, weights: describe.Weights, rngs: nnx.Rngs) -> Any:
    def filled(module: Any, *names: str) -> Any:
        for name in names:
            if f"{layer.path}/{name}" in weights:
                getattr(module, name).set_value(jnp.asarray(weights[f"{layer.path}/{name}"]))
        return module

    match layer:
        case describe.Dense(path):
            return filled(nnx.Linear(*weights[f"{path}/kernel"].shape, rngs=rngs), "kernel", "bias")
        case describe.Convolution(path, strides, depthwise):
            height, width, inputs, outputs = weights[f"{path}/kernel"].shape
            sizes = outputs if depthwise else inputs, outputs, (height, width), strides
            groups, bias = outputs if depthwise else 1, f"{path}/bias" in weights
            return filled(nnx.Conv(*sizes, feature_group_count=groups, use_bias=bias, rngs=rngs), "kernel", "bias")
        case describe.BatchNorm(path):
            num_features = weights[f"{path}/scale"].size
            return filled(nnx.BatchNorm(num_features, momentum=0.9, epsilon=1e-5, rngs=rngs), "scale", "bias")
        case describe.Activation(name):
            return {"relu": nnx.relu, "sigmoid": nnx.sigmoid}[name]
        case describe.MaxPool():
            return partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
        case describe.Average():
            return partial(jnp.mean, axis=(1, 2))
        case describe.Flatten():
            return lambda x: x.reshape(x.shape[0], -1)
        case describe.Residual():
            return _Residual(layer, weights, rngs)
        case describe.Embedding(path):
            return filled(nnx.Embed(*weights[f"{path}/embedding"].shape, rngs=rngs), "embedding")
        case describe.Recurrent():
            return _Recurrent(layer, weights, rngs)
    raise AssertionError(layer)


def _loss(case: Case, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    if case.loss == "sigmoid":
        return optax.sigmoid_binary_cross_entropy(outputs[:, 0], targets).mean()
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


def make(case: Case, _: str, arrays: Arrays) -> System:
    """Make the system."""
    inputs = arrays.inputs if arrays.lengths is None else zip(arrays.inputs, arrays.lengths, strict=True)
    batches = [jax.device_put(batch) for batch in zip(inputs, arrays.targets, strict=True)]
    return (_inference if case.kind == "inference" else _train)(case, arrays, batches)


def _split(case: Case, weights: describe.Weights) -> Any:
    model = _Network(case.layers, weights, nnx.Rngs(0))
    model.train() if case.kind != "inference" else model.eval()
    return nnx.split(model, nnx.Param, ...)


def _train(case: Case, arrays: Arrays, batches: list[Any]) -> System:
    optimizer = optax.adam(case.learning_rate)

    def step(params: Any, rest: Any, opt_state: Any, inputs: Any, targets: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            model = nnx.merge(graph, params, rest, copy=True)
            mean = _loss(case, model(inputs), targets)
            return mean, nnx.split(model, nnx.Param, ...)[2]

        (mean, after), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), after, opt_state, mean

    if case.kind == "population":
        members = [{name: a[i] for name, a in arrays.weights.items()} for i in range(case.members)]
        splits = [_split(case, weights) for weights in members]
        graph = splits[0][0]
        first = jax.tree.map(lambda *leaves: np.stack(leaves), *[split[1:] for split in splits])
        init, program = jax.vmap(optimizer.init), jax.vmap(step, in_axes=(0, 0, 0, None, None))
    else:
        graph, *first = _split(case, arrays.weights)
        init, program = optimizer.init, step
    program = jax.jit(program, donate_argnums=(0, 1, 2))
    state: Any = None

    def restart() -> None:
        nonlocal state
        params, rest = jax.tree.map(jnp.array, tuple(first))
        state = params, rest, init(params)

    def one(number: int) -> jax.Array:
        nonlocal state
        *state, mean = program(*state, *batches[number % len(batches)])
        return mean

    def losses(num_steps: int) -> list[Any]:
        restart()
        return [np.asarray(one(number)).tolist() for number in range(num_steps)]

    restart()
    return System(losses, timed(one, jax.block_until_ready))


def _inference(case: Case, arrays: Arrays, batches: list[Any]) -> System:
    graph, params, rest = _split(case, arrays.weights)

    @jax.jit
    def predict(params: Any, rest: Any, inputs: Any) -> jax.Array:
        return nnx.merge(graph, params, rest)(inputs)

    def step(number: int) -> jax.Array:
        return jax.block_until_ready(predict(params, rest, batches[number % len(batches)][0]))

    def losses(num_steps: int) -> list[float]:
        return [forward_loss(case, np.asarray(step(n)), arrays.targets[n]) for n in range(num_steps)]

    return System(losses, timed(step))
