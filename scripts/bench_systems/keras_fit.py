"""Keras 3 on JAX and on PyTorch: `model.fit` for training, `train_on_batch` where each loss is wanted.

The backend is what KERAS_BACKEND says when this is imported. On JAX the step is compiled (`jit_compile`) and several
are taken per round of callbacks (`steps_per_execution`); on PyTorch Keras offers neither by default.
"""

import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from bench_systems import layers as describe
from bench_systems.cases import Arrays, Case, forward_loss
from bench_systems.system import System, timed

_JAX = keras.backend.backend() == "jax"
# One call of `fit` gets so many bytes of batches at most, and goes over them again.
_FIT_BYTES = 16 << 20


class _NoTiedBias(keras.constraints.Constraint):
    """Keep the recurrent biases of a GRU's reset and update gates at zero.

    Each is only ever added to the bias of the input's product, and two biases that are added move twice as far under
    Adam as one: another training than accelnet's.
    """

    def __call__(self, bias: Any) -> Any:
        hidden = bias.shape[1] // 3
        mask = np.ones(bias.shape, np.float32)
        mask[1, : 2 * hidden] = 0.0
        return bias * mask


def _recurrent(layer: describe.Recurrent, weights: describe.Weights, x: Any, mask: Any) -> Any:
    stack = describe.recurrent_weights(layer, weights)
    for i, directions in enumerate(stack):
        hidden = directions[0].recurrent_kernel.shape[0]
        sequences = layer.output == "steps" or i < len(stack) - 1
        if layer.cell == "lstm":
            made = keras.layers.LSTM(hidden, return_sequences=sequences)
        else:
            made = keras.layers.GRU(hidden, return_sequences=sequences, bias_constraint=_NoTiedBias())
        made = keras.layers.Bidirectional(made) if layer.bidirectional else made
        x = made(x) if mask is None else made(x, mask=mask)
        made.set_weights([array for one in directions for array in _keras_weights(one)])
    return x


def _keras_weights(weights: describe.RecurrentWeights) -> list[np.ndarray]:
    input_kernel, recurrent_kernel, bias, recurrent_bias = weights
    if recurrent_bias is None:
        return [input_kernel, recurrent_kernel, bias]
    second = np.concatenate([np.zeros(2 * recurrent_bias.size, np.float32), recurrent_bias])
    return [_update_first(a) for a in (input_kernel, recurrent_kernel, np.stack([bias, second]))]


def _update_first(array: np.ndarray) -> np.ndarray:
    """Turn the order of a GRU's gates from reset, update, new to update, reset, new."""
    reset, update, new = np.split(array, 3, axis=-1)
    return np.concatenate([update, reset, new], axis=-1)


def _apply(layers: tuple[Any, ...], weights: describe.Weights, x: Any, mask: Any = None) -> Any:
    for layer in layers:
        x = _recurrent(layer, weights, x, mask) if isinstance(layer, describe.Recurrent) else _one(layer, weights, x)
    return x


def _one(layer: Any, weights: describe.Weights, x: Any) -> Any:
    arrays = {
        name.rsplit("/", 1)[1]: array
        for name, array in weights.items()
        if name.rsplit("/", 1)[0] == getattr(layer, "path", None)
    }
    match layer:
        case describe.Dense():
            made = keras.layers.Dense(arrays["bias"].size)
        case describe.Convolution(_, strides, depthwise):
            kernel, options = arrays["kernel"], {"strides": strides, "padding": "same", "use_bias": "bias" in arrays}
            if depthwise:
                arrays["kernel"] = kernel.transpose(0, 1, 3, 2)
                made = keras.layers.DepthwiseConv2D(kernel.shape[:2], **options)
            else:
                made = keras.layers.Conv2D(kernel.shape[-1], kernel.shape[:2], **options)
        case describe.BatchNorm():
            made = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
        case describe.Activation(name):
            made = keras.layers.Activation(name)
        case describe.MaxPool():
            made = keras.layers.MaxPooling2D(2)
        case describe.Average():
            made = keras.layers.GlobalAveragePooling2D()
        case describe.Flatten():
            made = keras.layers.Flatten()
        case describe.Embedding():
            made = keras.layers.Embedding(*arrays["embedding"].shape)
        case describe.Residual(body, strides, extra):
            skip = x[:, ::strides, ::strides, :] if strides > 1 else x
            skip = keras.ops.pad(skip, ((0, 0), (0, 0), (0, 0), (0, extra))) if extra else skip
            return keras.layers.Activation("relu")(keras.layers.Add()([_apply(body, weights, x), skip]))
        case _:
            raise AssertionError(layer)
    x = made(x)
    order = [arrays[name] for name in ("kernel", "embedding", "scale", "bias") if name in arrays]
    if isinstance(layer, describe.BatchNorm):
        order += [np.zeros_like(order[0]), np.ones_like(order[0])]  # the running statistics
    made.set_weights(order)
    return x


def build(layers: tuple[Any, ...], weights: describe.Weights, rows: np.ndarray) -> Any:
    """Build a network for inputs like a batch of rows, with its weights."""
    inputs = keras.Input(rows.shape[1:], dtype=rows.dtype.name)
    return keras.Model(inputs, _apply(layers, weights, inputs))


def _model(case: Case, arrays: Arrays) -> Any:
    if arrays.lengths is None:
        return build(case.layers, arrays.weights, arrays.inputs[0])
    inputs = keras.Input(arrays.inputs.shape[2:], dtype=arrays.inputs.dtype.name)
    mask = keras.Input(arrays.inputs.shape[2:3], dtype="bool")
    return keras.Model([inputs, mask], _apply(case.layers, arrays.weights, inputs, mask))


def _batch(arrays: Arrays, select: Callable[[np.ndarray], np.ndarray]) -> tuple[Any, np.ndarray]:
    """Return inputs, with their mask where sequences have lengths, and targets."""
    inputs, targets = select(arrays.inputs), select(arrays.targets)
    if arrays.lengths is None:
        return inputs, targets
    return [inputs, np.arange(inputs.shape[-2]) < select(arrays.lengths)[..., None]], targets


def make(case: Case, _: str, arrays: Arrays) -> System:
    """Make the system.

    Raises:
        NotImplementedError: for a population.
    """
    if case.kind == "population":
        raise NotImplementedError("Keras documents no way to train several models as one program")
    return (_inference if case.kind == "inference" else _train)(case, arrays)


def _train(case: Case, arrays: Arrays) -> System:
    model = _model(case, arrays)
    losses = {
        "sigmoid": keras.losses.BinaryCrossentropy,
        "softmax": keras.losses.SparseCategoricalCrossentropy,
        "token": keras.losses.SparseCategoricalCrossentropy,
    }
    # Chunks of steps per callback save time in small models, and cost none in large ones.
    options: dict[str, Any] = {"jit_compile": True, "steps_per_execution": 32} if _JAX else {}
    # Keras adds epsilon to the root of a running mean that is not freed of its start at 0, which in the first twenty
    # steps makes it 7 to 30 times as large as the others'.
    optimizer = keras.optimizers.Adam(case.learning_rate, epsilon=1e-9)
    model.compile(optimizer, losses[case.loss](from_logits=True), **options)
    optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    first = [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in variables]

    def restart() -> None:
        for variable, value in zip(variables, first, strict=True):
            variable.assign(value)

    def losses_of(num_steps: int) -> list[float]:
        restart()
        values = []
        for number in range(num_steps):
            model.reset_metrics()
            values.append(float(model.train_on_batch(*_batch(arrays, lambda a, n=number: a[n % len(a)]))))
        return values

    def run(num_steps: int) -> tuple[float, int]:
        per_epoch = min(num_steps, max(1, _FIT_BYTES // arrays.inputs[0].nbytes))
        epochs = round(num_steps / per_epoch)
        x, y = _batch(arrays, lambda a: np.concatenate(a[np.arange(per_epoch) % len(a)]))
        start = time.perf_counter()
        model.fit(x, y, batch_size=case.batch_size, epochs=epochs, shuffle=False, verbose=0)
        return time.perf_counter() - start, epochs * per_epoch

    return System(losses_of, run)


def _inference(case: Case, arrays: Arrays) -> System:
    model = _model(case, arrays)
    if _JAX:
        model.compile(jit_compile=True)
    batches = [_batch(arrays, lambda a, n=n: a[n]) for n in range(len(arrays.inputs))]

    def step(number: int) -> np.ndarray:
        return model.predict_on_batch(batches[number % len(batches)][0])

    def losses(num_steps: int) -> list[float]:
        return [forward_loss(case, step(n), batches[n][1]) for n in range(num_steps)]

    return System(losses, timed(step))
