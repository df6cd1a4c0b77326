"""The cases of the benchmark: what is trained, on what, and how a batch's loss is defined.

A case is one line of `CASES`: the same function with other numbers gives another shape. Everything here imports
accelnet late, so that the process which starts the workers stays small.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from bench_systems import layers as describe

NUM_BATCHES = 32
CHECKED_STEPS = 20


class Case(NamedTuple):
    """Say what is measured.

    Attributes:
        name: of the row.
        kind: "train" is a step of Adam, "inference" one forward pass without dropout, "population" one step of
            `members` networks that start from weights of their own and see the same batches.
        batch_size: examples per step.
        model: makes accelnet's model, from `rngs`.
        layers: the same network for the peers, see `layers.py`.
        loss: "softmax" over classes, "token" over the symbols of each step, or "sigmoid" of one binary label.
        make_data: generator, number of rows -> inputs [N, ...], targets [N, ...] and lengths [N] or None.
        members: networks trained side by side.
        learning_rate: of Adam with b1 0.9, b2 0.999, epsilon 1e-8.
        num_batches: before the data begins anew. At least `CHECKED_STEPS`, unless it is one.
    """

    name: str
    kind: Literal["train", "inference", "population"]
    batch_size: int
    model: Callable[..., Any]
    layers: tuple[Any, ...]
    loss: Literal["softmax", "token", "sigmoid"]
    make_data: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray, np.ndarray | None]]
    members: int = 1
    learning_rate: float = 1e-3
    num_batches: int = NUM_BATCHES


def xor_data(_: np.random.Generator, rows: int) -> Any:
    """Return the four rows of XOR."""
    assert rows == 4, rows
    inputs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    return inputs, np.array([0, 1, 1, 0], np.float32), None


def random_data(shape: Sequence[int], num_classes: int = 10, shortest: int | None = None) -> Callable[..., Any]:
    """Return a maker of noise around one point per class, with random lengths from `shortest` on.

    The points are so far apart (3 deviations of the noise for vectors and for each step of a sequence, 10 for images)
    that a loss falls within the steps that are compared: systems that learn at different rates then show it.
    """
    distance = {1: 3 / np.sqrt(shape[0]), 2: 3 / np.sqrt(shape[-1]), 3: 10 / np.sqrt(np.prod(shape))}[len(shape)]

    def make(rng: np.random.Generator, rows: int) -> Any:
        points = rng.standard_normal((num_classes, *shape), np.float32) * np.float32(distance)
        targets = rng.integers(0, num_classes, rows).astype(np.int32)
        inputs = points[targets] + rng.standard_normal((rows, *shape), np.float32)
        lengths = None if shortest is None else rng.integers(shortest, shape[0] + 1, rows).astype(np.int32)
        return inputs, targets, lengths

    return make


def token_data(num_steps: int, num_symbols: int) -> Callable[..., Any]:
    """Return a maker of text to continue: symbols as unequally frequent as Zipf's, half of them those of two before."""

    def make(rng: np.random.Generator, rows: int) -> Any:
        frequency = 1 / np.arange(1, num_symbols + 1)
        tokens = rng.choice(num_symbols, (rows, num_steps + 1), p=frequency / frequency.sum()).astype(np.int32)
        repeated = rng.random((rows, num_steps + 1)) < 0.5
        for step in range(2, num_steps + 1):
            tokens[:, step] = np.where(repeated[:, step], tokens[:, step - 2], tokens[:, step])
        return tokens[:, :-1], tokens[:, 1:], None

    return make


def mlp(name: str, widths: Sequence[int], batch_size: int, *, kind: Any = "train", members: int = 1) -> Case:
    """Make a case of a classifying MLP with these widths, inputs and outputs included."""

    def model(rngs: Any) -> Any:
        import accelnet as an

        return an.models.MLP(widths[0], widths[1:-1], widths[-1], rngs=rngs)

    data = random_data(widths[:1], widths[-1])
    return Case(name, kind, batch_size, model, describe.mlp(len(widths) - 2), "softmax", data, members)


def xor(name: str) -> Case:
    """Make the case of XOR: two inputs, three sigmoids, one output, the four rows as one batch."""

    def model(rngs: Any) -> Any:
        from flax import nnx

        import accelnet as an

        return an.models.MLP(2, (3,), 1, activation=nnx.sigmoid, rngs=rngs)

    return Case(name, "train", 4, model, describe.mlp(1, "sigmoid"), "sigmoid", xor_data, num_batches=1)


def cnn(
    name: str, image_shape: tuple[int, int, int], channels: Sequence[int], batch_size: int, kind: Any = "train"
) -> Case:
    """Make a case of a CNN of 3x3 convolutions, each followed by pooling, and a dense layer of 128."""

    def model(rngs: Any) -> Any:
        import accelnet as an

        return an.models.CNN(image_shape, channels, 10, rngs=rngs)

    network = describe.cnn(image_shape, len(channels))
    return Case(name, kind, batch_size, model, network, "softmax", random_data(image_shape))


def separable_cnn(
    name: str, image_shape: tuple[int, int, int], channels: Sequence[int], batch_size: int, kind: Any = "train"
) -> Case:
    """Make a case like MobileNet: depthwise and 1x1 convolutions with batch norm, strides instead of pooling."""

    def model(rngs: Any) -> Any:
        import accelnet as an

        return an.models.CNN(
            image_shape, channels, 10, strides=2, num_convolutions=2, separable=True, norm="batch", pooling=None,
            head="average", dense_features=(), rngs=rngs,
        )  # fmt: skip

    network = describe.cnn(
        image_shape, len(channels), strides=2, num_convolutions=2, separable=True, norm=True, pooling=False,
        average=True, num_dense=0,
    )  # fmt: skip
    return Case(name, kind, batch_size, model, network, "softmax", random_data(image_shape))


def resnet(name: str, depth: int, image_shape: tuple[int, int, int], batch_size: int, kind: Any = "train") -> Case:
    """Make a case of the residual network for small images."""

    def model(rngs: Any) -> Any:
        import accelnet as an

        return an.models.ResNet(image_shape[-1], depth, 10, rngs=rngs)

    return Case(name, kind, batch_size, model, describe.resnet(depth), "softmax", random_data(image_shape))


def sequence_rnn(
    name: str,
    shape: tuple[int, int],
    hidden: int,
    batch_size: int,
    *,
    cell: Any = "lstm",
    num_layers: int = 1,
    bidirectional: bool = False,
    shortest: int | None = None,
) -> Case:
    """Make a case of a recurrent classifier of sequences [steps, features], shorter ones from `shortest` on."""

    def model(rngs: Any) -> Any:
        import accelnet as an

        options = {"cell": cell, "num_layers": num_layers, "bidirectional": bidirectional}
        return an.models.RNN(shape[1], hidden, 10, **options, output="last", rngs=rngs)

    network = describe.rnn(cell, num_layers=num_layers, bidirectional=bidirectional)
    return Case(name, "train", batch_size, model, network, "softmax", random_data(shape, shortest=shortest))


def char_rnn(
    name: str,
    hidden: int,
    batch_size: int,
    *,
    cell: Any = "lstm",
    embedding: int = 128,
    num_symbols: int = 96,
    num_steps: int = 64,
    kind: Any = "train",
) -> Case:
    """Make a case of a recurrent language model of characters."""

    def model(rngs: Any) -> Any:
        import accelnet as an

        options = {"num_symbols": num_symbols, "cell": cell, "output": "steps"}
        return an.models.RNN(embedding, hidden, num_symbols, **options, rngs=rngs)

    network = describe.rnn(cell, tokens=True, output="steps")
    return Case(name, kind, batch_size, model, network, "token", token_data(num_steps, num_symbols))


_NETWORKS: dict[str, Callable[..., Case]] = {
    "mlp": lambda name, batch, kind: mlp(name, (784, 512, 512, 10), batch, kind=kind),
    "cnn": lambda name, batch, kind: cnn(name, (28, 28, 1), (32, 64), batch, kind),
    "separable_cnn": lambda name, batch, kind: separable_cnn(name, (32, 32, 3), (32, 64, 128), batch, kind),
    "resnet8": lambda name, batch, kind: resnet(name, 8, (32, 32, 3), batch, kind),
    "lstm": lambda name, batch, kind: char_rnn(name, 256, batch, kind=kind),
    "gru": lambda name, batch, kind: char_rnn(name, 256, batch, cell="gru", kind=kind),
}
# Networks that are run, not trained: one row, a few, and many at a time.
INFERENCE = {
    name: network(name, batch, "inference")
    for kind, network in _NETWORKS.items()
    for batch in (1, 16, 256)
    for name in [f"{kind}_inference_{batch}"]
}
# What the benchmark is of.
USUAL = {
    case.name: case
    for case in (
        xor("xor_mlp"),
        mlp("digits_mlp", (64, 128, 10), 64),
        mlp("fashion_mlp", (784, 512, 512, 10), 128),
        cnn("fashion_cnn", (28, 28, 1), (32, 64), 128),
        resnet("resnet8", 8, (32, 32, 3), 64),
        separable_cnn("separable_cnn", (32, 32, 3), (32, 64, 128), 64),
        sequence_rnn("rows_lstm", (28, 28), 128, 128),
        char_rnn("char_lstm", 256, 32),
        char_rnn("char_gru", 256, 32, cell="gru"),
        sequence_rnn("bidirectional_lstm", (50, 32), 128, 64, num_layers=2, bidirectional=True, shortest=10),
        INFERENCE["cnn_inference_1"],
        INFERENCE["cnn_inference_256"],
        INFERENCE["lstm_inference_1"],
        INFERENCE["lstm_inference_256"],
        mlp("digits_population", (64, 128, 10), 64, kind="population", members=32),
    )
}
CASES = USUAL | INFERENCE


class Arrays(NamedTuple):
    """Hold what every system gets: weights by path and batches [num_batches, batch_size, ...].

    Attributes:
        weights: accelnet's initial ones by path; a population's have the members as their first axis.
        inputs: in accelnet's order.
        targets: the labels.
        lengths: of sequences, or None.
        onnx: of inference, the network as accelnet's ONNX file, uint8 [size].
    """

    weights: dict[str, np.ndarray]
    inputs: np.ndarray
    targets: np.ndarray
    lengths: np.ndarray | None
    onnx: np.ndarray | None = None


def save_arrays(path: str, arrays: Arrays) -> None:
    """Write the arrays to an .npz file."""
    batches = {name: a for name, a in arrays._asdict().items() if name != "weights" and a is not None}
    np.savez(path, **batches, **{f"weights/{name}": a for name, a in arrays.weights.items()})


def load_arrays(path: str) -> Arrays:
    """Read what `save_arrays` wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    weights = {name.removeprefix("weights/"): a for name, a in arrays.items() if name.startswith("weights/")}
    return Arrays(weights, *[arrays.get(name) for name in Arrays._fields[1:]])


def forward_loss(case: Case, outputs: np.ndarray, targets: np.ndarray) -> float:
    """Compute the loss of outputs on the host; how outputs of inference are compared."""
    assert case.loss != "sigmoid", case
    logits = np.asarray(outputs, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(shifted, np.asarray(targets)[..., None], -1)[..., 0]
    return float(np.mean(np.log(np.exp(shifted).sum(-1)) - chosen))
