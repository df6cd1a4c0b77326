"""The description of a network that every system of the benchmark builds its own from.

A network is a tuple of layers. A layer names where accelnet keeps its weights (`path`); sizes are those of the weights,
so nothing is said twice. Images are [B, H, W, C], sequences [B, T, C]; convolutions pad as "SAME".
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Weights = Mapping[str, np.ndarray]


class Dense(NamedTuple):
    """Multiply by `kernel` [in, out] and add `bias`."""

    path: str


class Convolution(NamedTuple):
    """Convolve with `kernel` [k, k, in, out]; depthwise where `in` is 1 and the input has more channels."""

    path: str
    strides: int = 1
    depthwise: bool = False


class BatchNorm(NamedTuple):
    """Normalize with the batch's statistics: epsilon 1e-5, running statistics of momentum 0.9."""

    path: str


class Activation(NamedTuple):
    """Apply a nonlinearity."""

    name: Literal["relu", "sigmoid"] = "relu"


class MaxPool(NamedTuple):
    """Take the maximum of 2x2 pixels."""


class Average(NamedTuple):
    """Average over all pixels."""


class Flatten(NamedTuple):
    """Put an image of so many pixels a side in one row."""

    height: int
    width: int


class Residual(NamedTuple):
    """Compute relu(body(x) + skip), where skip is every `strides`-th pixel with `extra` channels of zeros behind."""

    body: tuple[Any, ...]
    strides: int
    extra: int


class Embedding(NamedTuple):
    """Look tokens up in `embedding`."""

    path: str


class Recurrent(NamedTuple):
    """Run a stack of LSTMs or GRUs; "last" is each direction's output at its own last step, "steps" all of them."""

    path: str
    cell: Literal["lstm", "gru"]
    num_layers: int
    bidirectional: bool
    output: Literal["last", "steps"]


class RecurrentWeights(NamedTuple):
    """Hold one direction of one recurrent layer: kernels [in, gates * hidden], gates in accelnet's order.

    The LSTM's order is input, forget, cell, output with one bias. The GRU's is reset, update, new with the bias of
    the input's product, and a recurrent bias of the new gate alone, the only one that is not the same as the first.
    """

    input_kernel: np.ndarray
    recurrent_kernel: np.ndarray
    bias: np.ndarray
    recurrent_bias: np.ndarray | None


def recurrent_weights(layer: Recurrent, weights: Weights) -> list[list[RecurrentWeights]]:
    """Return the weights of a stack, by layer and direction."""

    def one(path: str) -> RecurrentWeights:
        names = ("input_kernel", "recurrent_kernel", "bias", "recurrent_bias")
        return RecurrentWeights(*[weights.get(f"{path}/{name}") for name in names])

    directions = ("forward", "backward") if layer.bidirectional else ("forward",)
    return [[one(f"{layer.path}/{i}/{name}") for name in directions] for i in range(layer.num_layers)]


def mlp(num_hidden: int, activation: Literal["relu", "sigmoid"] = "relu") -> tuple[Any, ...]:
    """Describe `accelnet.models.MLP`."""
    hidden = [(Dense(f"layers/{i}/linear"), Activation(activation)) for i in range(num_hidden)]
    return (*[layer for pair in hidden for layer in pair], Dense("head"))


def cnn(
    image_shape: Sequence[int],
    num_stages: int,
    *,
    strides: int = 1,
    num_convolutions: int = 1,
    separable: bool = False,
    norm: bool = False,
    pooling: bool = True,
    average: bool = False,
    num_dense: int = 1,
) -> tuple[Any, ...]:
    """Describe `accelnet.models.CNN`."""
    layers: list[Any] = []

    def convolve(path: str, strides: int, depthwise: bool = False) -> None:
        layers.append(Convolution(f"{path}/conv", strides, depthwise))
        layers.extend([BatchNorm(f"{path}/norm/layer")] if norm else [])
        layers.append(Activation())

    height, width = image_shape[:2]
    for stage in range(num_stages):
        for i in range(num_convolutions):
            path, step = f"stages/{stage}/layers/{i}", strides if i == 0 else 1
            if separable and (stage, i) != (0, 0):
                convolve(f"{path}/depthwise", step, depthwise=True)
                convolve(f"{path}/pointwise", 1)
            else:
                convolve(path, step)
        height, width = -(-height // strides), -(-width // strides)
        if pooling:
            layers.append(MaxPool())
            height, width = height // 2, width // 2
    layers.append(Average() if average else Flatten(height, width))
    for i in range(num_dense):
        layers += [Dense(f"dense/{i}"), Activation()]
    return (*layers, Dense("output"))


def resnet(depth: int, widths: Sequence[int] = (16, 32, 64)) -> tuple[Any, ...]:
    """Describe `accelnet.models.ResNet` with batch norm and identity shortcuts."""

    def convolve(path: str, strides: int = 1) -> tuple[Any, ...]:
        return Convolution(f"{path}/conv", strides), BatchNorm(f"{path}/norm/layer")

    layers: list[Any] = [*convolve("stem"), Activation()]
    num_blocks = (depth - 2) // 6
    for stage, width in enumerate(widths):
        for i in range(num_blocks):
            path = f"blocks/{stage * num_blocks + i}"
            strides, before = (2, widths[stage - 1]) if stage and i == 0 else (1, width)
            body = (*convolve(f"{path}/first", strides), Activation(), *convolve(f"{path}/second"))
            layers.append(Residual(body, strides, width - before))
    return (*layers, Average(), Dense("head"))


def rnn(
    cell: Literal["lstm", "gru"] = "lstm",
    *,
    tokens: bool = False,
    num_layers: int = 1,
    bidirectional: bool = False,
    output: Literal["last", "steps"] = "last",
) -> tuple[Any, ...]:
    """Describe `accelnet.models.RNN`."""
    embedding = (Embedding("embedding"),) if tokens else ()
    return (*embedding, Recurrent("layers", cell, num_layers, bidirectional, output), Dense("output_layer"))
