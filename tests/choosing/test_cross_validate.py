import json
import re

import jax
import numpy as np
import optax
import pytest

import accelnet as an
from accelnet.choosing.cross_validation import CrossValidation
from accelnet.choosing.statistics import corrected_interval
from accelnet.report.numbers import shown
from accelnet.training import ends
from tests.pages import needs_browser, needs_nothing, shows

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = np.arange(122) % 2
    return an.data.from_arrays(rng.normal(size=(122, 3)) * 4 + labels[:, None] + 7, labels, num_classes=2, test=0.1)


def experiment_of(data, **settings):
    settings = {"batch_size": 16, "epochs": 4, "objective": an.objectives.softmax_cross_entropy()} | settings
    return an.Experiment(
        data=data, model=lambda rngs: an.models.MLP(3, (8,), 2, rngs=rngs), optimizer=an.optim.adam(0.02), **settings
    )


@pytest.mark.parametrize("on_device", [True, False])
def test_every_fold_is_the_run_that_fit_makes_and_all_share_one_program(data, on_device):
    experiment = experiment_of(data, on_device=on_device)
    folds = data.folds(4, stratify="targets")  # of 110 rows: 28, 28, 27 and 27
    result = an.cross_validate(experiment, folds, progress=False)
    assert result.compiles == {"train": 1, "eval": 1}
    assert [(one["train_rows"], one["validation_rows"]) for one in result.folds] == folds.sizes
    assert len({one["validation_rows"] for one in result.folds}) == 2
    for number in (0, 3):  # one of each size
        found, alone = result.folds[number], an.fit(experiment.replace(data=folds[number]), progress=False)
        assert set(found["metrics"]) == {"train", "validation"}
        for split, values in found["metrics"].items():
            for name, value in values.items():
                # Programs of their own round otherwise.
                assert value == pytest.approx(alone.metrics[split][name], abs=1e-5), (split, name)
    assert len(set(result.values("loss").tolist())) == 4


@pytest.mark.slow
def test_folds_share_a_program_on_several_devices_with_sampling_and_averaged_weights(data):
    experiment = experiment_of(data.sampled("balanced"))
    experiment = experiment.replace(optimizer=optax.chain(an.optim.sgd(0.02), an.optim.average_params(0.9)))
    one, eight = (
        an.cross_validate(experiment, experiment.data.folds(3), progress=False, mesh=mesh) for mesh in (None, "data=8")
    )
    assert one.compiles == eight.compiles == {"train": 1, "eval": 1, "weights": 1}
    np.testing.assert_allclose(one.values("loss"), eight.values("loss"), atol=1e-5)  # sums over devices


@pytest.mark.slow
def test_groups_of_different_sizes_compile_once_for_each_size(data):
    groups = np.repeat(np.arange(7), [60, 20, 20, 10, 6, 4, 2])
    result = an.cross_validate(experiment_of(data), data.folds(3, groups=groups), progress=False)
    sizes = {one["train_rows"] for one in result.folds}
    assert result.compiles["train"] == len(sizes) > 1


@pytest.mark.slow
def test_a_loss_of_a_whole_batch_evaluates_the_rest_of_each_fold(data):
    def loss(outputs, batch):
        return (outputs[:, 1] - batch["targets"]).mean() ** 2

    experiment = experiment_of(data, objective=an.objectives.Objective(loss), eval_batch_size=10)
    folds = data.folds(4)
    result = an.cross_validate(experiment, folds, progress=False)
    for number in (0, 3):  # one of each size
        found, alone = result.folds[number], an.fit(experiment.replace(data=folds[number]), progress=False)
        assert found["metrics"]["validation"]["loss"] == pytest.approx(alone.metrics["validation"]["loss"], abs=1e-5)


@pytest.mark.slow
@needs_browser
def test_the_page_says_the_mean_first_and_a_browser_shows_it(data, tmp_path, browser):
    result = an.cross_validate(experiment_of(data), data.folds(3), workdir=tmp_path / "runs", progress=False)
    text = (tmp_path / "runs" / "report.html").read_text()
    page = needs_nothing(text)
    assert text == result.page() and f"Accuracy {shown(result.metrics['accuracy']['mean'])} (" in page.text
    shows(browser, text, tmp_path)


def test_the_interval_is_that_of_nadeau_and_bengio(data):
    result = an.cross_validate(experiment_of(data), data.folds(5), progress=False)
    values = result.values("accuracy")
    train, validation = (np.mean([one[name] for one in result.folds]) for name in ("train_rows", "validation_rows"))
    error = np.sqrt(1 / 5 + validation / train) * values.std(ddof=1)
    found = result.metrics["accuracy"]
    assert found["mean"] == pytest.approx(values.mean()) and found["error"] == pytest.approx(error)
    assert found["high"] - found["mean"] == pytest.approx(2.7764451 * error)  # t of 4 degrees of freedom
    assert found["mean"] - found["low"] == pytest.approx(2.7764451 * error)


def test_the_corrected_interval_holds_the_truth_more_often_than_the_plain_one():
    """Score the mean of training rows as a predictor of a coin: its expected loss is known."""
    rng, held, plain = np.random.default_rng(0), 0, 0
    for _ in range(300):
        rows = rng.normal(size=60)
        parts = np.split(rows, 10)
        means = [np.mean(np.delete(rows, np.s_[6 * k : 6 * k + 6])) for k in range(10)]
        losses = [((part - mean) ** 2).mean() for part, mean in zip(parts, means, strict=True)]
        mean, error, low, high = corrected_interval(losses, 6 / 54)
        held += low <= 1 + 1 / 54 <= high
        half = (high - mean) * np.sqrt((1 / 10) / (1 / 10 + 6 / 54))
        plain += abs(mean - 1 - 1 / 54) <= half
        assert error > 0
    assert held > plain and held >= 0.95 * 300


@pytest.mark.slow
def test_what_is_finished_is_not_trained_again_and_an_interrupted_fold_goes_on(data, tmp_path, monkeypatch):
    experiment, folds = experiment_of(data), data.folds(3)
    whole = an.cross_validate(experiment, folds, workdir=tmp_path / "whole", progress=False)
    steps = []

    def stop(moment):
        steps.append(moment.step)
        if len(steps) == 7:
            raise KeyboardInterrupt

    broken = experiment.replace(events=[an.Event(an.Every(epochs=1), stop)], save_every=an.Every(epochs=1))
    with pytest.raises(KeyboardInterrupt):  # in the third epoch of the second fold
        an.cross_validate(broken, folds, workdir=tmp_path / "cut", progress=False)
    kept = json.loads((tmp_path / "cut" / "cross_validation.json").read_text())
    assert len(kept["folds"]) == 1 and "metrics" not in kept
    trained, begin = [], ends.begin

    def counted(experiment, *args, **kwargs):
        trained.append(experiment.data.num_examples("validation"))
        return begin(experiment, *args, **kwargs)

    monkeypatch.setattr("accelnet.choosing.cross_validate.begin", counted)
    resumed = an.cross_validate(experiment, folds, workdir=tmp_path / "cut", progress=False)
    assert len(trained) == 2
    assert resumed.metrics == whole.metrics
    again = an.cross_validate(experiment, folds, workdir=tmp_path / "cut", progress=False)
    assert len(trained) == 2 and again.metrics == whole.metrics
    # Each is an ordinary run.
    run = an.evaluate(experiment.replace(data=folds[1]), tmp_path / "cut" / "fold-2")
    assert run.metrics["validation"]["loss"] == pytest.approx(resumed.values("loss")[1], abs=1e-5)
    content = json.loads((tmp_path / "cut" / "cross_validation.json").read_text())
    assert content["metrics"]["loss"]["mean"] == resumed.metrics["loss"]["mean"]


@pytest.mark.slow
def test_a_directory_of_another_cross_validation_is_refused(data, tmp_path):
    experiment = experiment_of(data, epochs=1)
    an.cross_validate(experiment, data.folds(2), workdir=tmp_path, progress=False)
    before = (tmp_path / "cross_validation.json").read_bytes()
    for other, folds in ((experiment, data.folds(2, seed=1)), (experiment.replace(seed=5), data.folds(2))):
        with pytest.raises(an.UserError, match="is of another cross-validation, which differs in"):
            an.cross_validate(other, folds, workdir=tmp_path, progress=False)
    assert (tmp_path / "cross_validation.json").read_bytes() == before
    (tmp_path / "cross_validation.json").write_text('{"folds": 3}')
    with pytest.raises(an.UserError, match="cannot be read as a cross-validation"):
        an.cross_validate(experiment, data.folds(2), workdir=tmp_path, progress=False)


def test_the_result_is_a_table(data):
    result = an.cross_validate(experiment_of(data, epochs=1), data.folds(2), progress=False)
    lines = repr(result).splitlines()
    assert lines[0] == "cross-validation of 'experiment', 2 folds"
    assert re.split(r"\s{2,}", lines[1].strip())[0].startswith("fold")
    assert [line.split()[0] for line in lines[3:]] == ["1", "2", "mean", "standard", "95"]
    assert json.loads(json.dumps(result.to_dict()))["folds"][0]["train_rows"] == 55
    assert isinstance(result, CrossValidation)


def test_one_progress_counts_the_steps_of_all_folds(data, capsys):
    result = an.cross_validate(experiment_of(data, epochs=2), data.folds(2), progress=True)
    shown = capsys.readouterr().err
    steps = 2 * 2 * -(-result.folds[0]["train_rows"] // 16)
    assert f"100 % · step {steps}/{steps}" in shown


def test_a_fold_that_diverges_is_named(data):
    diverging = experiment_of(data).replace(optimizer=an.optim.sgd(1e30))
    with pytest.raises(an.DivergenceError, match="fold 1 of 3: "):
        an.cross_validate(diverging, data.folds(3), progress=False)


def test_folds_of_other_data_are_refused(data):
    other = an.data.from_arrays(np.zeros((20, 3)), np.arange(20) % 2, num_classes=2)
    with pytest.raises(an.UserError, match="the folds are of the data 'arrays', other rows than those of the exper"):
        an.cross_validate(experiment_of(data), other.folds(2), progress=False)
    with pytest.raises(an.UserError, match="the folds are of the data"):
        an.cross_validate(experiment_of(data.sampled("balanced")), data.folds(2), progress=False)
    with pytest.raises(an.UserError, match="folds is 5, expected what experiment"):
        an.cross_validate(experiment_of(data), 5, progress=False)


@pytest.mark.slow
def test_memory_holds_the_arrays_of_one_fold_at_a_time(data):
    before = len([one for one in jax.live_arrays() if one.shape == (122, 3)])
    an.cross_validate(experiment_of(data, epochs=1), data.folds(5), progress=False)
    assert len([one for one in jax.live_arrays() if one.shape == (122, 3)]) <= before + 1
