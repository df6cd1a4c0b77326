"""An artifact of every family of models gives what the run gives, for any batch."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

import accelnet as an
from tests.artifact.conftest import (
    DOUBLE,
    IMAGES,
    LENGTHS,
    ROWS,
    SERIES,
    images,
    kjv,
    mlp_run,
    series,
    table_run,
    trained,
)

# Between kernels and XLA's operations, and between batches, float32 rounds otherwise.
TOLERANCE = 1e-5


def cnn(**settings):
    return lambda rngs: an.models.CNN((12, 12, 1), (4, 6), 3, dense_features=(8,), rngs=rngs, **settings)


def rnn(inputs=4, **settings):
    return lambda rngs: an.models.RNN(inputs, 8, 3, rngs=rngs, **settings)


def transformer(rngs):
    return an.models.Transformer(4, 8, 3, num_steps=SERIES.shape[1], num_heads=2, rngs=rngs)


def part(raw, rows):
    """Take the first rows of arrays, or of a dict of them."""
    return {name: one[:rows] for name, one in raw.items()} if isinstance(raw, dict) else raw[:rows]


SEQUENCES = {"inputs": SERIES, "lengths": LENGTHS}
FAMILIES = {
    "MLP": (mlp_run, IMAGES),
    "CNN": (lambda: trained(images(), cnn(norm="batch")), IMAGES),
    "separable CNN": (lambda: trained(images(), cnn(separable=True, norm="group", pooling="average")), IMAGES),
    "ResNet": (lambda: trained(images(), lambda rngs: an.models.ResNet(1, 8, 3, widths=(4, 4, 8), rngs=rngs)), IMAGES),
    "LSTM": (lambda: trained(series(), rnn(cell="lstm", num_layers=2)), SEQUENCES),
    "GRU": (lambda: trained(series(), rnn(cell="gru", bidirectional=True)), SEQUENCES),
    "minGRU": (lambda: trained(series(), rnn(cell="min_gru", output="mean")), SEQUENCES),
    "Transformer": (lambda: trained(series(), transformer), SEQUENCES),
    "rows of images": (lambda: trained(images(), rnn(12, cell="simple")), IMAGES),
    "bfloat16": (lambda: mlp_run(precision="bfloat16"), IMAGES),
    "table": (table_run, {name: ROWS[name] for name in ("size", "hue")}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that trains a family once; it returns the run, its artifact's path, and its predictions."""
    folder, made = tmp_path_factory.mktemp("families"), {}

    def save(name):
        if name not in made:
            make, raw = FAMILIES[name]
            run = make()
            path = run.save(folder / f"{name.replace(' ', '_')}.accelnet")
            made[name] = run, path, np.asarray(run.predict(part(raw, 40)))
        return made[name]

    return save


@pytest.mark.parametrize("name", FAMILIES)
def test_an_artifact_gives_what_the_run_gives_for_any_batch(name, by, saved):
    _, path, whole = saved(name)
    model, raw = an.load(path), FAMILIES[name][1]
    # Both round at every layer to 8 bits, in programs that XLA fuses differently.
    tolerance = 0.02 if name == "bfloat16" else TOLERANCE
    for rows in (1, 40):
        expected = whole[:rows]
        found = model.predict(part(raw, rows), batch_size=16)
        np.testing.assert_allclose(found.outputs, expected, rtol=0, atol=tolerance * np.abs(expected).max())
        assert len(found) == rows
    assert model.computed_by == ("accelnet's model and kernels" if by == "kernels" else "the exported program")


def test_threads_ask_an_artifact_at_the_same_time_and_without_xla(saved):
    model = an.load(saved("CNN")[1])
    if model.computed_by == "the exported program":
        pytest.skip("no C++ compiler: there are no kernels to call")
    first = model.answers(IMAGES[:2])
    by_xla = model._call[0](jax.device_put(IMAGES[:2]))
    for name, one in by_xla.items():
        assert isinstance(one, jax.Array) and type(first[name]) is np.ndarray
        np.testing.assert_array_equal(first[name], one)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(model.answers, [IMAGES[:2]] * 60):
            np.testing.assert_array_equal(found["outputs"], first["outputs"])


def test_classes_have_names_and_probabilities(saved):
    run, path, whole = saved("CNN")
    found = an.load(path).predict(IMAGES[:5])
    logits = whole[:5]
    assert found.labels.tolist() == run.experiment.data.decode(logits.argmax(axis=1)).tolist()
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, shares, rtol=TOLERANCE)


def test_numbers_are_in_the_units_of_the_file(saved, by):
    run, path, _ = saved("table")
    found = an.load(path).predict(ROWS)
    expected = run.experiment.data.decode(np.asarray(run.predict({name: ROWS[name] for name in ("size", "hue")})))
    np.testing.assert_allclose(found.numbers, expected, rtol=TOLERANCE)
    # And so the program itself gives them, to whoever has no accelnet.
    np.testing.assert_allclose(found.values["numbers"], expected, rtol=TOLERANCE)


@pytest.mark.parametrize("task", ["labels", "classes"])
def test_a_table_of_names_to_predict_gives_labels(task, tmp_path):
    columns = {**DOUBLE, "left": np.where(DOUBLE["left"] == "yes", 1, 0)} if task == "labels" else DOUBLE
    data = an.data.table(columns, target="left", features=["size", "hue"])
    loss = an.objectives.sigmoid_cross_entropy if task == "labels" else an.objectives.softmax_cross_entropy
    width = 1 if task == "labels" else 2
    run = trained(data, lambda rngs: an.models.MLP(4, (), width, rngs=rngs), loss())
    found = an.load(run.save(tmp_path / "a.accelnet")).predict(
        [{"size": 4.0, "hue": "red"}, {"size": 9, "hue": "blue"}]
    )
    assert found.kind == task
    if task == "labels":
        logits = np.asarray(run.predict({"size": [4.0, 9.0], "hue": ["red", "blue"]}))
        assert found.labels.tolist() == (logits > 0).tolist()
    else:
        assert set(found.labels.tolist()) <= {"yes", "no"}


@pytest.mark.parametrize("cell", ["lstm", "min_gru"])
def test_text_of_any_length_is_continued(cell, by, tmp_path):
    data = an.data.text(kjv(tmp_path, "a.txt"), window=16)
    symbols = data.info["num_classes"]
    model = lambda rngs: an.models.RNN(6, 8, symbols, cell=cell, num_symbols=symbols, output="steps", rngs=rngs)  # noqa: E731
    run = trained(data, model, an.objectives.token_cross_entropy())
    loaded = an.load(run.save(tmp_path / "a.accelnet"))
    # The window of 16 is only that of the training.
    texts = ["the word was in a", "a good word in it"]
    found = loaded.predict(texts)
    outputs, _ = run.experiment.pure_model.apply(
        run.params, run.model_state, data.encode(texts).astype(np.int32), key=jax.random.key(0), train=False
    )
    np.testing.assert_allclose(found.outputs, outputs, rtol=0, atol=TOLERANCE * np.abs(outputs).max())
    assert found.labels.tolist() == data.decode(np.asarray(outputs).argmax(axis=-1))


@pytest.mark.parametrize("steps", [5, 14])
def test_series_may_have_other_numbers_of_steps(steps, by, saved):
    run, path, _ = saved("GRU")
    longer = {"inputs": np.ones((3, steps, 4), np.float32), "lengths": np.array([5, 2, 4], np.int32)}
    found = an.load(path).predict(longer)
    whole = np.zeros((3, 9, 4), np.float32)
    whole[:, :5] = 1
    expected = np.asarray(run.predict({**longer, "inputs": whole}))
    np.testing.assert_allclose(found.outputs, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
