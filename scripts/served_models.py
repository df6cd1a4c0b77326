"""The models that `scripts/bench_serving.py` serves, with random weights, and requests for them."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import accelnet as an
from accelnet.artifact.schema import encode

CLASSES = [f"class {number}" for number in range(10)]
CUTS, HUES = ("Fair", "Good", "Ideal", "Premium", "Very Good"), tuple("DEFGHIJ")
NUMBERS = ("carat", "depth", "table", "x", "y", "z")


class Requests(NamedTuple):
    """Hold what clients send.

    Attributes:
        good: Bodies of one row each.
        labels: What each of them is to be answered.
        wrong: Bodies that are to be refused with 422.
        kind: Content type.
        raw: Rows of the good ones, where they are of a table.
    """

    good: list[bytes]
    labels: list[str]
    wrong: list[bytes]
    kind: str
    raw: list[dict[str, Any]]


def make(case: str, path: Path) -> Path:
    """Make an artifact: "lstm", the network of experiments/fashion_rnn.py, or "table", an MLP of nine columns."""
    rng = np.random.default_rng(0)
    classes = np.arange(200) % 10
    if case == "table":
        columns = {name: rng.normal(5, 2, 200) for name in NUMBERS}
        names = {"cut": rng.choice(CUTS, 200), "color": rng.choice(HUES, 200), "clarity": rng.choice(CUTS, 200)}
        target = [CLASSES[number] for number in classes]
        data = an.data.table({**columns, **names, "class": target}, target="class")
        features = len(data.info["input_names"])
        model: Any = lambda rngs: an.models.MLP(features, (128, 128), 10, rngs=rngs)  # noqa: E731
    else:
        images = rng.integers(0, 256, (200, 28, 28)).astype(np.uint8)
        data = an.data.from_arrays(images, classes, class_names=CLASSES)
        model = lambda rngs: an.models.RNN(28, 128, 10, cell="lstm", rngs=rngs)  # noqa: E731
    experiment = an.Experiment(
        data=data, model=model, objective=an.objectives.softmax_cross_entropy(), optimizer=an.optim.adam(1e-2),
        batch_size=32, steps=20, final_evaluation=(),
    )  # fmt: skip
    return an.fit(experiment, progress=False).save(path)


def requests(path: Path, form: str) -> Requests:
    """Return requests of random rows, without those that are nearly of two classes.

    Args:
        path: An artifact of arrays, or of the table that `make` makes.
        form: Form of the bodies of arrays, "json" or "npy".
    """
    model, rng = an.load(path), np.random.default_rng(1)
    raw = _table_rows(rng) if "columns" in model.schema["fitted"] else _arrays(model.schema["inputs"], rng)
    found = model.predict(raw)
    shares = np.sort(np.asarray(found.probabilities), axis=1)
    clear = np.flatnonzero(shares[:, -1] - shares[:, -2] > 1e-3).tolist()
    assert found.labels is not None
    labels, rows = [str(found.labels[row]) for row in clear], [raw[row] for row in clear]
    shape = b"[[1, 2], [3, 4]]"
    if isinstance(raw, list):
        wrong = [shape, *(json.dumps({**row, "cut": "None"}).encode() for row in rows[:20])]
        return Requests([json.dumps(row).encode() for row in rows], labels, wrong, "application/json", rows)
    if form == "json":
        return Requests([json.dumps(row.tolist()).encode() for row in rows], labels, [shape], "application/json", [])
    return Requests([_npy(row) for row in rows], labels, [shape], "application/octet-stream", [])


def encoding_us(path: Path, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Measure the processor time, in microseconds a row, to encode rows of a table one by one, and all together."""
    schema = an.load(path).schema
    ways: dict[str, Callable[[], Any]] = {
        "alone": lambda: [encode([row], schema) for row in rows],
        "together": lambda: encode(rows, schema),
    }
    found = dict.fromkeys(ways, float("inf"))
    for _ in range(50):  # in turns, the fastest: others that compute only add to it
        for name, run in ways.items():
            start = time.process_time()
            run()
            found[name] = min(found[name], time.process_time() - start)
    return {name: 1e6 * seconds / len(rows) for name, seconds in found.items()}


def _table_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        {name: round(float(rng.normal(5, 2)), 2) for name in NUMBERS}
        | {"cut": str(rng.choice(CUTS)), "color": str(rng.choice(HUES)), "clarity": str(rng.choice(CUTS))}
        for _ in range(256)
    ]


def _arrays(held: Any, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (256, *held["shape"][1:])).astype(held["dtype"])


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
