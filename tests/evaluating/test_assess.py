"""Assessments of small runs of every kind: they agree with the exact metrics, and are pages."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.data.dataset import Data
from accelnet.evaluating.assess import assess
from accelnet.evaluating.latency import measure_latency
from accelnet.evaluating.text import continuation
from accelnet.objectives import example_weights
from tests.pages import needs_browser, needs_nothing, shows

HOSTILE = """<script>alert("x")</script>"""


def images(**arrays):
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    pixels = (rng.integers(0, 150, (240, 6, 6, 1)) + 40 * labels[:, None, None, None]).astype(np.uint8)
    return Data(
        "pictures",
        {"inputs": pixels, "targets": labels.astype(np.uint8), **arrays},
        {"train": range(100), "validation": range(100, 143), "test": range(143, 240)},
        prepare=lambda batch: {**batch, "inputs": batch["inputs"].astype(jnp.float32) / 100.0},
        info={"num_classes": 3, "class_names": ("red", HOSTILE, "blue")},
    )


def train(data, num_outputs, objective, **settings):
    shape = np.shape(data.arrays["inputs"])[1:]
    settings = {"batch_size": 20, "steps": 10, "eval_batch_size": 16} | settings
    model = settings.pop("model", lambda rngs: an.models.MLP(int(np.prod(shape)), (8,), num_outputs, rngs=rngs))
    settings |= {"data": data, "model": model, "objective": objective}
    return an.fit(an.Experiment(optimizer=an.optim.adam(1e-2), name="toy", **settings), progress=False)


@pytest.fixture(scope="module")
def classified():
    weights = np.random.default_rng(0).integers(0, 3, 240).astype(np.float32)
    objective = an.objectives.softmax_cross_entropy(label_smoothing=0.1, class_weights=(1.0, 2.0, 3.0))
    return train(images(weights=weights, camera=np.arange(240) % 2), 3, objective)


@pytest.fixture(scope="module")
def runs(classified):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, 4)).astype(np.float32)
    one, several = (inputs[:, :1] > 0).astype(np.float32), (inputs[:, :3] > 0).astype(np.float32)
    sigmoid, squared = an.objectives.sigmoid_cross_entropy(), an.objectives.squared_error(num_outputs=2)
    text = an.data.text(window=16)
    text = replace(text, splits={"train": range(200), "validation": range(300, 340), "test": range(400, 450)})
    symbols = len(text.info["vocabulary"])

    def rnn(rngs):
        return an.models.RNN(8, 8, symbols, num_symbols=symbols, cell="gru", output="steps", rngs=rngs)

    def absolute(outputs, batch):
        losses = jnp.abs(outputs["value"][:, 0] - batch["targets"])
        return losses, example_weights(batch, losses.shape)

    class Named(an.models.MLP):
        def __call__(self, inputs):
            return {"value": super().__call__(inputs)}

    return {
        "classes": classified,
        "binary": train(an.data.from_arrays(inputs, one, test=0.2), 1, sigmoid),
        "labels": train(an.data.from_arrays(inputs, several, test=0.2), 3, sigmoid),
        "numbers": train(an.data.from_arrays(inputs, inputs[:, :2], test=0.2), 2, squared),
        "tokens": train(text, symbols, an.objectives.token_cross_entropy(), model=rnn),
        "other": train(
            an.data.from_arrays(inputs, inputs.sum(axis=1), test=0.2), 1, an.objectives.Objective(absolute),
            model=lambda rngs: Named(4, (), 1, rngs=rngs),
        ),
    }  # fmt: skip


KINDS = ("classes", "binary", "labels", "numbers", "tokens", "other")


@pytest.fixture(scope="module")
def assessments(runs):
    return {kind: assess(run, latency=kind == "classes", slices=()) for kind, run in runs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_the_exact_ones_with_intervals_around_them(kind, runs, assessments):
    values = assessments[kind].values
    for name, exact in runs[kind].metrics["test"].items():
        found = values["metrics"][name]
        # Sums of float32 in another order.
        assert found["value"] == pytest.approx(exact, rel=2e-5)
        assert found["low"] <= found["value"] <= found["high"]
    json.dumps(values, allow_nan=False)
    expected = {"binary": "labels"}.get(kind, kind)
    assert (values["kind"], values["described"]) == (expected, kind != "other")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_page_that_needs_nothing(kind, assessments):
    text = assessments[kind].page()
    page = needs_nothing(text)
    assert "Metrics" in page.text and "Largest losses" in page.text
    assert HOSTILE not in text
    sections = {
        "classes": ("Confusion", "Calibration", "Classes", "Latency"), "binary": ("Thresholds", "Calibration"),
        "labels": ("Classes",), "numbers": ("Residuals",), "tokens": ("Text", "Bits per symbol"), "other": (),
    }  # fmt: skip
    assert all(section in page.text for section in sections[kind])


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "numbers", "tokens"])
def test_a_browser_shows_it_in_light_and_dark_and_on_a_phone(kind, assessments, browser, tmp_path):
    shows(browser, assessments[kind].page(), tmp_path)


def test_the_worst_are_those_of_the_largest_losses_with_their_pictures(classified, assessments):
    worst = assessments["classes"].values["worst"]
    losses = [one["loss"] for one in worst]
    assert losses == sorted(losses, reverse=True) and len(worst) == 24
    outputs = classified.predict(classified.experiment.data.arrays["inputs"])
    weights = classified.experiment.data.arrays["weights"]
    rows = np.arange(143, 240)[weights[143:] > 0]
    losses = [
        _smoothed_loss(np.asarray(outputs[row]), classified.experiment.data.arrays["targets"][row]) for row in rows
    ]
    assert worst[0]["row"] == rows[int(np.argmax(losses))]
    assert worst[0]["loss"] == pytest.approx(max(losses), rel=1e-5)
    assert all(one["picture"].startswith("data:image/png;base64,") for one in worst)


def _smoothed_loss(logits, label):
    log = logits - np.log(np.exp(logits).sum())
    return -(0.9 * log[label] + 0.1 * log.mean())


def test_slices_add_up_to_the_whole(classified, assessments):
    found = assess(classified, slices=("targets", "camera"), latency=False).values["slices"]
    assert [part["value"] for part in found["targets"]] == ["red", HOSTILE, "blue"]
    assert [part["value"] for part in found["camera"]] == ["0", "1"]
    for parts in found.values():
        assert sum(part["examples"] for part in parts) == 97
    weights, rows = classified.experiment.data.arrays["weights"][143:], np.arange(143, 240)
    shares = [np.count_nonzero(weights[rows % 2 == camera]) for camera in (0, 1)]
    whole = np.average([part["metrics"]["accuracy"]["value"] for part in found["camera"]], weights=shares)
    assert whole == pytest.approx(classified.metrics["test"]["accuracy"], rel=1e-5)


def test_every_example_counts_once_or_by_its_weight_in_all_that_is_described(classified):
    once, weighed = (assess(classified, latency=False, weighted=choice) for choice in (False, True))
    weights = classified.experiment.data.arrays["weights"][143:]
    for found, total in ((once, np.count_nonzero(weights)), (weighed, weights.sum())):
        counted = np.array(found.values["confusion"])
        assert counted.sum() == sum(one["support"] for one in found.values["classes"]) == total
        recall = [one["recall"]["value"] for one in found.values["classes"]]
        assert recall == pytest.approx(np.diag(counted) / counted.sum(axis=1))
    assert "Each example counts once" in once.page() and "Examples count by their weights" in weighed.page()
    # The objective's own accuracy is that of training, in both.
    assert once.values["metrics"]["accuracy"] == weighed.values["metrics"]["accuracy"]


def yes_to_all(rngs):
    class Yes(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones(()))

        def __call__(self, inputs):
            return 3.0 * self.weight.get_value() + 0.0 * inputs[:, :1]

    return Yes()


def test_integers_for_one_logit_are_labels_and_a_split_of_one_class_has_no_ranks():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(80, 2)).astype(np.float32), np.arange(80) % 2
    data = an.data.from_arrays(inputs, targets, test=(inputs[:30], np.zeros(30, int)))
    run = train(data, 1, an.objectives.sigmoid_cross_entropy(), model=yes_to_all)
    assert assess(run, "train", latency=False).values["kind"] == "labels"
    found = assess(run, latency=False)
    metrics = found.values["metrics"]
    assert metrics["accuracy"]["value"] == 0 and metrics["accuracy"]["high"] < 0.12
    assert [one["f1"]["value"] for one in found.values["classes"]] == [0, 0]
    for name in ("roc_auc", "average_precision"):
        assert metrics[name] == {"value": None, "low": None, "high": None}
    assert "undefined" in needs_nothing(found.page()).text


def test_undefined_values_are_printed_as_such(capsys):
    from accelnet.cli.output import show_intervals

    metrics = {"loss": {"value": 0.5, "low": 0.4, "high": 0.6}, "roc_auc": {"value": None, "low": None, "high": None}}
    show_intervals({"split": "test", "examples": 30, "metrics": metrics})
    out = capsys.readouterr().out
    assert "with 95 % intervals" in out and "roc_auc  undefined" in out


def pixel_loss(outputs, batch):
    losses = -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch["targets"][..., None], axis=-1)[..., 0].mean(
        (1, 2)
    )
    return losses, example_weights(batch, losses.shape)


def test_one_class_for_each_pixel_is_described_by_class():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(120, 4, 5, 3)).astype(np.float32)
    data = an.data.from_arrays(inputs, inputs.argmax(-1), test=0.3, normalize=False)
    objective = an.objectives.Objective(pixel_loss, {"accuracy": an.objectives.Accuracy()}, task="classes")
    run = train(data, 3, objective, model=lambda rngs: nnx.Linear(3, 3, rngs=rngs))
    found = assess(run, latency=False)
    assert found.values["described"] and np.sum(found.values["confusion"]) == 36 * 20
    assert 0 < found.values["metrics"]["iou_macro"]["low"] < found.values["metrics"]["iou_macro"]["high"]
    assert "Confusion" in needs_nothing(found.page()).text


@pytest.mark.parametrize("soft", [False, True])
def test_one_hot_targets_are_classes_and_soft_ones_have_metrics_alone(soft):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(100, 3)).astype(np.float32)
    targets = np.eye(3, dtype=np.float32)[inputs.argmax(axis=1)]
    targets = 0.9 * targets + 0.1 / 3 if soft else targets

    def loss(outputs, batch):
        losses = -(batch["targets"] * jax.nn.log_softmax(outputs)).sum(-1)
        return losses, example_weights(batch, losses.shape)

    data = an.data.from_arrays(inputs, targets.astype(np.float32), test=0.4)
    found = assess(train(data, 3, an.objectives.Objective(loss, task="classes")), latency=False)
    assert found.values["described"] == (not soft)
    assert set(found.values["metrics"]) >= ({"loss"} if soft else {"loss", "accuracy", "cross_entropy"})
    assert ("metrics alone" in found.page()) == soft


def test_a_column_of_names_is_cut_by_them_and_one_of_many_values_into_quarters(tmp_path):
    rows = "\n".join(f"{0.1 * n},{n % 3},{'red' if n % 4 else 'blue'},{n}" for n in range(400))
    (tmp_path / "a.csv").write_text(f"size,grade,hue,price\n{rows}\n")
    run = train(an.data.table(tmp_path / "a.csv", target="price", test=0.3), 1, an.objectives.squared_error())
    found = assess(run, slices=("size", "grade", "hue"), latency=False).values
    assert len(found["slices"]["size"]) == 4 and len(found["slices"]["grade"]) == 3
    hues = {part["value"]: part["examples"] for part in found["slices"]["hue"]}
    assert set(hues) == {"blue", "red"} and sum(hues.values()) == 120 and hues["red"] > 2 * hues["blue"]
    assert {"size", "grade"} < set(found["worst"][0]["inputs"])
    # Prices go from 0 to 399; a standardized error would be below 1.
    ours, trained = found["metrics"]["mean_absolute_error"]["value"], run.metrics["test"]["mean_absolute_error"]
    assert ours > 5 and trained == pytest.approx(ours, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"slices": ("colour",)}, "no label 'colour' to slice by, only: 'camera', 'targets'"),
        ({"split": "tset"}, "split is 'tset', expected one of 'train', 'validation', 'test'"),
    ],
)
def test_a_mistake_is_told_with_what_there_is(settings, words, classified):
    with pytest.raises(an.UserError, match=words):
        assess(classified, latency=False, **settings)


def test_outputs_that_are_not_finite_are_refused(classified):
    spoiled = jax.tree.map(lambda leaf: leaf * jnp.nan, classified.state.params)
    run = replace(classified, weights=None, state=classified.state.replace(params=spoiled))
    with pytest.raises(an.UserError, match="not finite"):
        assess(run, latency=False)


def test_latency_counts_calls_and_orders_percentiles(classified):
    (small, large) = measure_latency(classified, (1, 32), seconds=0.05)
    assert small["batch_size"] == 1 and large["calls"] >= 10
    assert small["p50"] <= small["p90"] <= small["p99"]
    assert large["examples_per_second"] == pytest.approx(32 / large["p50"])


def test_a_continuation_is_a_function_of_its_seed_and_cold_ones_repeat_the_likeliest(runs):
    run = runs["tokens"]
    first, same, other = (continuation(run, 20, seed=seed)["text"] for seed in (1, 1, 2))
    assert first == same != other
    cold = continuation(run, 3, temperature=1e-4)
    tokens = an.data.encode(cold["beginning"], run.experiment.data.info["vocabulary"])
    assert len(tokens) == 16
    for character in cold["text"]:
        likeliest = int(np.argmax(run.predict(tokens[None])[0, -1]))
        assert run.experiment.data.info["vocabulary"][likeliest] == character
        tokens = np.append(tokens[1:], likeliest)


def test_bits_by_position_average_to_the_bits_of_the_split(runs, assessments):
    bits = assessments["tokens"].values["bits_by_position"]
    assert len(bits) == 16
    assert np.mean(bits) == pytest.approx(runs["tokens"].metrics["test"]["bits_per_character"], rel=1e-5)
