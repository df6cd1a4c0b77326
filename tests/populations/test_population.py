"""Populations: a member is its solo run, whatever it trains beside."""

import dataclasses
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import accelnet as an
from accelnet.populations import programs
from accelnet.populations.members import Member, Sweep, grid
from accelnet.populations.population import Population


@dataclass(frozen=True)
class Config:
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.01
    dropout: float = 0.1
    smoothing: float = 0.0
    width: int = 8
    epochs: float = 3
    kind: str = "mlp"
    seed: int = 0


class Net(nnx.Module):
    """A user's own module with flax's own dropout."""

    def __init__(self, width: int, dropout: float, *, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(6, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.head(self.dropout(nnx.relu(self.norm(self.hidden(inputs)))))


RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(90, 6)).astype(np.float32)
TARGETS = (np.abs(INPUTS @ RNG.normal(size=(6, 3))).argmax(1)).astype(np.int32)


def experiment(config: Config) -> an.Experiment:
    return an.Experiment(
        data=an.data.from_arrays(INPUTS, TARGETS, num_classes=3),
        model=lambda rngs: (
            Net(config.width, config.dropout, rngs=rngs)
            if config.kind == "net"
            else an.models.MLP(6, (config.width,), 3, dropout=config.dropout, rngs=rngs)
        ),
        optimizer=an.optim.momentum(config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay),
        objective=an.objectives.softmax_cross_entropy(label_smoothing=config.smoothing),
        batch_size=16,
        epochs=config.epochs,
        seed=config.seed,
    )


def solo(function, config, member):
    run = an.fit(function(dataclasses.replace(config, seed=member.seed, **member.fields)), progress=False)
    return run.metrics


def assert_is_solo(run, function, config, index):
    # Sums over a batch are taken in another order for many members than for one.
    for split, metrics in solo(function, config, run.members[index]).items():
        for name, value in metrics.items():
            if split in run.metrics:
                assert run.metrics[split][name][index] == pytest.approx(value, rel=2e-5, abs=1e-6)


MEMBERS = (
    Member(0, {"learning_rate": 0.01, "momentum": 0.5, "weight_decay": 0.0, "dropout": 0.01, "smoothing": 0.01}),
    Member(1, {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.1, "dropout": 0.3, "smoothing": 0.2}),
    Member(2, {"learning_rate": 0.3, "momentum": 0.0, "weight_decay": 0.01, "dropout": 0.1, "smoothing": 0.1}),
)


@pytest.mark.parametrize(("kind", "alone"), [("mlp", (0, 1, 2)), pytest.param("net", (1,), marks=pytest.mark.slow)])
def test_a_member_is_its_solo_run(kind, alone):
    config = Config(kind=kind)
    run = Population(experiment, config, MEMBERS).train(progress=False)
    assert run.compiles == {"init": 1, "train": 1, "eval": 1}
    for index in alone:
        assert_is_solo(run, experiment, config, index)


@pytest.mark.slow
def test_shared_batches_are_those_of_the_first_member():
    members = (Member(3, {"learning_rate": 0.01}), Member(4, {"learning_rate": 0.01}))
    shared = Population(experiment, Config(), members, batches="shared").train(progress=False)
    own = Population(experiment, Config(), members).train(progress=False)
    assert_is_solo(shared, experiment, Config(), 0)
    assert shared.metrics["train"]["loss"][1] != own.metrics["train"]["loss"][1]


@pytest.mark.slow
def test_waves_and_devices_change_no_result():
    population = Population(experiment, Config(), grid(range(4), learning_rate=(0.01, 0.1, 0.3)), evaluations=2)
    eight = population.train(progress=False)
    one = population.train(progress=False, devices=jax.devices()[:1])
    assert (eight.wave_size, one.wave_size) == (16, 12)
    needed = _bytes(population, 12)
    waves = population.train(progress=False, devices=jax.devices()[:1], memory_bytes=int(0.7 * needed))
    assert 1 < waves.wave_size < 12 and waves.compiles == one.compiles
    for other in (one, waves):
        np.testing.assert_allclose(other.curves["loss"], eight.curves["loss"], rtol=2e-5)
        np.testing.assert_allclose(other.train["loss"], eight.train["loss"], rtol=2e-5)


def _bytes(population, size):
    sweep = Sweep(population.function, population.config, population.members)
    _, made = programs.programs_of_size(sweep, population.batches, jax.devices()[:1], size)
    memory = made.train.compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes


def test_one_member_that_does_not_fit_is_said_before_it_crashes():
    with pytest.raises(an.UserError, match="one member takes"):
        Population(experiment, Config(), grid((0, 1))).train(progress=False, memory_bytes=1000)


def test_a_member_that_diverges_is_marked_and_the_others_go_on():
    members = grid((0, 1), learning_rate=(0.05, 1e30))
    run = Population(experiment, Config(), members).train(progress=False)
    assert (run.failed[:2] == -1).all() and (run.failed[2:] > 0).all()
    assert_is_solo(run, experiment, Config(), 0)
    assert np.isfinite(run.curves["loss"][:, :2]).all() and not np.isfinite(run.curves["loss"][-1, 2:]).any()


def test_curves_begin_at_the_untrained_weights_and_end_at_the_final_ones():
    run = Population(experiment, Config(), grid((0,), learning_rate=(0.0, 0.1)), evaluations=3).train(progress=False)
    assert run.split == "validation" and run.steps.tolist() == [0, 5, 10, 15]
    chex.assert_shape(run.curves["loss"], (4, 2))
    np.testing.assert_array_equal(run.curves["loss"][:, 0], run.curves["loss"][0, 0])
    np.testing.assert_array_equal(run.curves["loss"][-1], run.metrics["validation"]["loss"])


@pytest.mark.slow
def test_what_only_jax_functions_take_can_vary_too():
    def powers(config: Config) -> an.Experiment:
        made = experiment(config)
        rate = jnp.exp(-jnp.log(1.0 / config.learning_rate))
        return made.replace(optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate)))

    members = grid((0,), learning_rate=(0.01, 0.1))
    run = Population(powers, Config(), members).train(progress=False)
    assert_is_solo(run, powers, Config(), 1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": (4, 8)}, "width takes values from 4 to 8"),
        ({"epochs": (1, 2)}, "change the number of steps"),
        ({"kind": (1, 2)}, "kind is no field that can vary"),
        ({"rate": (1, 2)}, "expected a number of the Config's: learning_rate, momentum"),
        ({"seed": (1, 2)}, "seed is no field that can vary"),
        ({"learning_rate": (0.1, -0.1)}, "learning_rate is -0.1"),
        ({"dropout": (0.1, 1.5)}, "dropout is 1.5"),
        ({"dropout": (0.0, 0.1)}, "Python asks whether it is 0 of it: .* take one near it"),
    ],
)
def test_a_field_that_cannot_vary_is_one_message(values, words):
    with pytest.raises(an.UserError, match=words):
        Population(experiment, Config(), grid((0,), **values)).train(progress=False)


def test_a_fault_of_the_users_own_is_not_said_to_be_of_what_varies():
    def faulty(config: Config) -> an.Experiment:
        def loss(outputs, targets):
            return jnp.dot(outputs, targets["missing"])

        return experiment(config).replace(objective=loss)

    with pytest.raises(Exception, match="the loss failed") as fault:
        Population(faulty, Config(), grid((0,), learning_rate=(0.1, 0.2))).train(progress=False)
    assert "cannot vary" not in str(fault.value)


def test_early_stopping_is_left_out_and_said(capsys):
    def stopping(config: Config) -> an.Experiment:
        return experiment(config).replace(early_stopping=an.EarlyStopping(patience=1))

    run = Population(stopping, Config(), grid((0,), learning_rate=(0.0, 0.1)), evaluations=5).train()
    assert run.steps[-1] == 15 and np.isfinite(run.curves["loss"]).all()
    assert "events and early stopping are left out" in capsys.readouterr().err


def test_a_field_that_decides_what_python_does_is_named():
    def branching(config: Config) -> an.Experiment:
        return experiment(dataclasses.replace(config, kind="net" if config.momentum > 0.5 else "mlp"))

    with pytest.raises(an.UserError, match=r"momentum takes values from .* and Python asks whether"):
        Population(branching, Config(), grid((0,), momentum=(0.1, 0.9))).train(progress=False)
