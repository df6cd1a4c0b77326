"""Initial weights and frozen parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import accelnet as an
from tests.users import toy

pytestmark = pytest.mark.usefixtures("no_pictures")


class Net(nnx.Module):
    def __init__(self, rngs, width=2):
        self.backbone, self.norm = nnx.Linear(8, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, width, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.backbone(x))))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.relu(nn.Dense(8, name="backbone")(x)))


STILL = {"optimizer": optax.sgd(0.0), "steps": 1}


def same(a, b):
    chex.assert_trees_all_equal(a, b)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run = an.fit(toy.experiment(Net), workdir=workdir, progress=False)
    return run, workdir


@pytest.mark.slow
def test_a_run_a_work_directory_and_a_tree_give_the_same_start(trained):
    run, workdir = trained
    for source in (run, workdir, str(workdir), run.params, an.Initial(workdir, best=True)):
        started = toy.fit(Net, initial=source, **STILL)
        same(started.params, run.params)
    # Batch statistics come along from a run and its directory; one step has moved them on.
    moved = toy.fit(Net, initial=run, **STILL).state.model_state["norm"]["mean"]
    fresh = toy.fit(Net, **STILL).state.model_state["norm"]["mean"]
    assert float(jnp.abs(moved - run.model_state["norm"]["mean"]).max()) < float(jnp.abs(fresh - moved).max())


def test_a_part_is_taken_by_paths_and_the_rest_follows_the_seed(trained):
    run, _ = trained
    part = an.Initial(run, paths=["backbone.*", "norm.*"])
    one, other = (toy.fit(lambda rngs: Net(rngs, 3), initial=part, seed=seed, **STILL) for seed in (0, 1))
    for started in (one, other):
        same(started.params["backbone"], run.params["backbone"])
    assert not np.array_equal(one.params["head"]["kernel"], other.params["head"]["kernel"])


def test_a_function_of_the_new_params_and_several_sources():
    run = toy.fit(
        LinenNet(),
        initial=[
            lambda params: jax.tree.map(jnp.zeros_like, params),
            an.Initial({"head": {"bias": np.ones(2)}}, paths=["head.bias"]),
        ],
        **STILL,
    )
    assert float(jnp.abs(run.params["backbone"]["kernel"]).max()) == 0.0
    np.testing.assert_array_equal(run.params["head"]["bias"], np.ones(2))


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ({"backbone": {"kernel": np.zeros((8, 8))}}, "initial has no 'backbone.bias', .*take a part of it"),
        (an.Initial({"head.bias": np.zeros(7)}, paths=["head.bias"]), r"head.bias is \[7\], expected \[2\]"),
        (an.Initial({}, paths=["body.*"]), r"'body\.\*', which matches none of the 6 parameters"),
        ("/nowhere/at/all", "holds no checkpoint"),
        (3, "initial is 3, expected nested dicts"),
    ],
)
def test_what_does_not_fit_is_named(initial, message):
    with pytest.raises(an.UserError, match=message):
        toy.fit(Net, initial=initial, **STILL)


@pytest.mark.slow
def test_averaged_weights_of_a_directory_are_asked_for_as_a_run(tmp_path):
    chain = optax.chain(optax.sgd(0.1), an.optim.average_params(0.5))
    experiment = toy.experiment(Net, optimizer=chain)
    run = an.fit(experiment, workdir=tmp_path, progress=False)
    with pytest.raises(an.UserError, match="keeps averaged weights: give the Run"):
        toy.fit(Net, initial=tmp_path, **STILL)
    same(toy.fit(Net, initial=an.evaluate(experiment, tmp_path, splits=[]), **STILL).params, run.params)


@pytest.mark.parametrize("model", [Net, LinenNet()], ids=["nnx", "linen"])
def test_frozen_parameters_have_no_gradient_no_optimizer_state_and_stay(model):
    run = toy.fit(model, frozen=["backbone.*"], steps=4, data=toy.ROW_DATA)
    fresh, _ = run.experiment.pure_model.init(jax.random.key(0), toy.X)
    free = toy.fit(model, steps=4)
    assert set(run.state.frozen) == {"backbone"} and "backbone" not in run.state.params
    moments = [leaf for leaf in jax.tree.leaves(run.state.opt_state) if leaf.shape == (8, 8)]
    assert not moments and [leaf for leaf in jax.tree.leaves(free.state.opt_state) if leaf.shape == (8, 8)]
    assert jax.tree.structure(run.params) == jax.tree.structure(fresh)
    still = toy.fit(model, frozen=["backbone.*"], steps=1, optimizer=optax.sgd(0.0))
    same(run.params["backbone"], still.params["backbone"])
    assert not np.array_equal(run.params["head"]["kernel"], still.params["head"]["kernel"])


def test_frozen_training_is_that_of_a_chain_that_sets_updates_to_zero():
    labels = {"frozen": optax.set_to_zero(), "trained": optax.adam(1e-2)}

    def label(params):
        return {
            name: jax.tree.map(lambda _, n=name: "frozen" if n == "backbone" else "trained", tree)
            for name, tree in params.items()
        }

    by_chain = toy.fit(LinenNet(), optimizer=optax.partition(labels, label), steps=5)
    run = toy.fit(LinenNet(), frozen=["backbone.*"], steps=5)
    chex.assert_trees_all_close(run.params, by_chain.params, rtol=1e-6)


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (["bone.*"], r"frozen has 'bone\.\*', which matches none"),
        ([".*"], "nothing would be trained"),
        (["(a"], "no regular expression"),
        ("backbone.*", "frozen is 'backbone.*', expected a list"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything_are_refused(frozen, message):
    with pytest.raises(an.UserError, match=message):
        toy.fit(Net, frozen=frozen)


@pytest.mark.slow
def test_a_frozen_run_resumes_and_goes_on_in_another_layout(tmp_path):
    experiment = toy.experiment(Net, frozen=["backbone.*"], steps=6)
    whole = an.fit(experiment, progress=False)
    an.fit(experiment.replace(steps=3), workdir=tmp_path, progress=False)
    run = an.fit(experiment, workdir=tmp_path, resume=True, mesh="data=2,fsdp=4", progress=False)
    chex.assert_trees_all_close(run.params, whole.params, rtol=1e-4, atol=1e-6)
    with pytest.raises(an.UserError, match="frozen is another"):
        an.fit(toy.experiment(Net, steps=8), workdir=tmp_path, resume=True, progress=False)


def test_an_experiment_is_made_without_its_model():
    made = []

    def model(rngs):
        made.append(rngs)
        return Net(rngs)

    toy.experiment(model)
    assert made == []
