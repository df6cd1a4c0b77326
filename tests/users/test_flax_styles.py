"""The ways in which Flax's own guides and examples write modules: each trains, and what is written has its effect."""

import functools

import chex
import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import accelnet as an
from accelnet.parallel.mesh import make_mesh
from accelnet.training.program import prepare
from tests.users import toy
from tests.users.flax_modules import LINEN, NNX, LinenMnist, Mixture

# nnx


# Linen


ALL = {**NNX, **LINEN}


@pytest.fixture(scope="module")
def trained():
    """Return a function that gives the run of a module; a module is trained once."""
    return functools.cache(lambda name: toy.fit(*ALL[name]))


@pytest.mark.parametrize("name", ALL)
def test_a_module_as_flax_writes_it_trains_and_is_evaluated(name, trained):
    run = trained(name)
    assert np.isfinite(run.metrics["test"]["loss"])
    start = prepare(run.experiment)[1].init(np.uint32(0)).params
    assert jax.tree.structure(start) == jax.tree.structure(run.params)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), start, run.params)
    assert all(jax.tree.leaves(moved)), moved


@pytest.mark.parametrize(
    "name",
    [
        "MNIST tutorial, rngs in the call", "a flag by keyword", "layers scanned",
        "a Transformer with a table of positions", "VAE", "scan with dropout", "has_rng", "LM1B, a module per mode",
    ],
)  # fmt: skip
def test_noise_is_drawn_anew_from_each_key_in_training_and_not_in_evaluation(name, trained):
    run = trained(name)
    inputs = run.experiment.data.arrays["inputs"]

    @jax.jit
    def outputs(key):
        apply = functools.partial(run.experiment.pure_model.apply, run.params, run.model_state, inputs, key=key)
        return apply(train=True)[0], apply(train=False)[0]

    (one, quiet), (again, _), (other, as_quiet) = (outputs(jax.random.key(seed)) for seed in (1, 1, 2))
    chex.assert_trees_all_equal(one, again)
    assert not all(map(np.array_equal, *map(jax.tree.leaves, (one, other))))
    if name != "VAE":  # its noise comes by an argument, in evaluation too
        chex.assert_trees_all_equal(quiet, as_quiet)


def test_a_sown_loss_counts(trained):
    without = toy.fit(Mixture(), objective=an.objectives.Objective(lambda o, b: -jax.nn.log_softmax(o)[:, 0]))
    with_it = trained("mixture with a sown loss")
    assert with_it.metrics["train"]["loss"] != without.metrics["train"]["loss"]
    assert not jax.tree.leaves(with_it.state.model_state)


def test_a_counter_counts_training_steps_and_evaluation_leaves_it_alone(trained):
    run = trained("a Variable of an own type")
    assert int(run.state.model_state["count"]) == run.step == 3


def test_a_linen_module_that_is_bound_starts_from_its_weights(trained):
    params = trained("MNIST").params
    bound = LinenMnist().bind({"params": params})
    run = toy.fit(bound, toy.IMAGE_DATA, optimizer=an.optim.sgd(0.0), steps=1)
    chex.assert_trees_all_equal(run.params, params)


def test_partitioned_initializers_are_sharding_rules():
    class Columns(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model")))(x)

    class NnxColumns(nnx.Module):
        def __init__(self, rngs):
            init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
            self.dense = nnx.Linear(8, 2, kernel_init=init, rngs=rngs)

        def __call__(self, x):
            return self.dense(x)

    for model in (Columns(), NnxColumns):
        whole = an.fit(toy.experiment(model), progress=False)
        mesh = make_mesh({"data": 2, "model": 2}, jax.devices()[:4])
        cut = an.fit(toy.experiment(model), mesh=mesh, progress=False)
        name = "Dense_0" if isinstance(model, nn.Module) else "dense"
        assert tuple(cut.state.params[name]["kernel"].sharding.spec) == (None, "model")
        assert cut.metrics["train"]["loss"] == pytest.approx(whole.metrics["train"]["loss"], rel=1e-5)
