"""What one run of an experiment has traced and compiled serves the next, and what was changed in between counts."""

import copy
import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.training.reuse import Reused

pytestmark = pytest.mark.usefixtures("no_pictures")
FACTOR = 1.0


class Scaled(nnx.Module):
    factor = 1.0

    def __init__(self, rngs):
        self.dense = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, inputs):
        return self.factor * self.dense(inputs)


@pytest.fixture
def lowered():
    """Names of the programs that jax has lowered."""
    names = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **more: names.append(more["fun_name"]) if event.endswith("to_mlir_module_duration") else None
    )
    return names


def make_experiment():
    rows = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    table = {"factor": 1.0}

    def loss(outputs, batch):
        def scaled(value):
            return FACTOR * table["factor"] * value

        return scaled(((outputs - batch["targets"]) ** 2).sum(-1))

    made = an.Experiment(
        data=an.data.from_arrays(rows, rows[:, ::-1]),
        model=Scaled,
        optimizer=an.optim.adam(1e-2),
        objective=an.objectives.Objective(loss),
        batch_size=8,
        steps=6,
    )
    return made, table


def losses(run):
    return {split: float(metrics["loss"]) for split, metrics in run.metrics.items()}


def test_another_seed_or_workdir_and_an_evaluation_compile_nothing_and_change_no_bit(lowered, tmp_path):
    made, _ = make_experiment()
    an.fit(made, progress=False)
    assert {"jit(init)", "jit(train_chunk)", "jit(eval_chunk)"} <= set(lowered)
    lowered.clear()
    runs = [an.fit(made.replace(seed=seed), workdir=tmp_path / str(seed), progress=False) for seed in (0, 1)]
    again = an.evaluate(made, tmp_path / "1")
    assert not {name for name in lowered if name.endswith(("init)", "chunk)"))}
    assert losses(again) == losses(runs[1]) != losses(runs[0])
    made.data.kept.clear()
    alone = an.fit(made.replace(seed=1), progress=False)
    assert "jit(train_chunk)" in lowered
    chex.assert_trees_all_equal(alone.params, runs[1].params)


def test_a_changed_global_closure_or_class_counts(monkeypatch):
    made, table = make_experiment()
    made = made.replace(optimizer=an.optim.sgd(0.0))
    one = losses(an.fit(made, progress=False))["train"]
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert losses(an.fit(made, progress=False))["train"] == pytest.approx(2 * one, rel=1e-6)
    table["factor"] = 2.0
    assert losses(an.fit(made, progress=False))["train"] == pytest.approx(4 * one, rel=1e-6)
    monkeypatch.setattr(Scaled, "factor", 0.0)
    targets = made.data.arrays["targets"][: made.data.num_examples("train")]
    zero = losses(an.fit(made, progress=False))["train"]
    assert zero == pytest.approx(4 * float((targets**2).sum(-1).mean()), rel=1e-5)


def test_other_means_and_a_copy_of_the_data_count():
    made, _ = make_experiment()
    one = an.fit(made, progress=False)
    fitted = {name: [3.0 * number for number in numbers] for name, numbers in made.data.fitted.items()}
    for data in (made.data.refitted(fitted), copy.copy(made.data)):
        object.__setattr__(data, "augment", lambda key, batch: {**batch, "inputs": 0.5 * batch["inputs"]})
        other = an.fit(made.replace(data=data), progress=False)
        assert losses(other)["train"] != losses(one)["train"]


def test_settings_of_jax_count(lowered):
    made, _ = make_experiment()
    an.fit(made, progress=False)
    lowered.clear()
    with jax.default_matmul_precision("highest"):
        an.fit(made, progress=False)
    assert "jit(train_chunk)" in lowered


def test_what_is_kept_is_bounded_and_lives_as_long_as_the_data():
    def make(experiment):
        return object()

    made, _ = make_experiment()
    other, _ = make_experiment()
    an.fit(made, progress=False)
    assert len(made.data.kept) == 3
    first = Reused(other)(make)
    for steps in range(1, 32):
        Reused(made.replace(steps=steps))(make)
    assert len(made.data.kept) == 31 and Reused(other)(make) is first
    Reused(made.replace(steps=50))(make)
    assert len(made.data.kept) == 31 and len(other.data.kept) == 1
    data = weakref.ref(made.data)
    del made
    gc.collect()
    assert data() is None


def test_arrays_of_a_model_that_was_changed_count():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    rows = np.ones((10, 2), np.float32)
    made = an.Experiment(
        data=an.data.from_arrays(rows, rows, normalize=False),
        model=model,
        optimizer=an.optim.sgd(0.0),
        objective=an.objectives.squared_error(num_outputs=2),
        batch_size=4,
        steps=1,
    )
    before = losses(an.fit(made, progress=False))["train"]
    model.kernel[...] = jnp.zeros((2, 2))
    after = losses(an.fit(made.replace(seed=0), progress=False))["train"]
    assert before != after == pytest.approx(1.0)
