"""What a module does is looked at, not what its arguments are called."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import accelnet as an
from tests.users import toy


class Deaf(nnx.Module):
    """Passes a flag to its dropout that nobody can set."""

    def __init__(self, rngs, rate=0.5):
        self.block = nnx.Sequential(nnx.Linear(8, 8, rngs=rngs))
        self.drop = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x, inference=True):
        return self.block(self.drop(x, deterministic=inference))[:, :2]


class Still(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.head = nnx.BatchNorm(8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(x, use_running_average=True))


class LinenStill(nn.Module):
    @nn.compact
    def __call__(self, x, inference=True):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=inference, name="norm")(x))


class LinenLoud(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=False, name="drop")(x))


class LinenMoving(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=False, name="norm")(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Deaf, r"drop \(Dropout of rate 0.5\) dropped nothing in training"),
        (Still, r"norm \(BatchNorm\) leaves its statistics alone in training"),
        (LinenStill(), r"norm \(BatchNorm\) leaves its statistics alone in training"),
        (LinenLoud(), r"drop \(Dropout of rate 0.5\) drops in evaluation"),
        (LinenMoving(), r"norm \(BatchNorm\) moves its statistics in evaluation"),
    ],
    ids=["nnx dropout", "nnx norm", "linen norm", "linen dropout", "linen norm in evaluation"],
)
def test_a_layer_that_does_not_do_what_its_mode_asks_for_is_named_with_the_remedy(model, message):
    with pytest.raises(an.UserError, match=rf"{message}.*effects_are_intended = True"):
        toy.fit(model)


def test_a_module_that_means_it_says_so():
    class Meant(Still):
        effects_are_intended = True

    class LinenMeant(LinenMoving):
        effects_are_intended = True

    run = toy.fit(Meant)
    np.testing.assert_array_equal(run.state.model_state["norm"]["mean"], np.zeros(8))
    toy.fit(LinenMeant())
    toy.fit(lambda rngs: Deaf(rngs, rate=0.0))  # nothing to drop


def test_statistics_of_a_frozen_layer_may_stay():
    with pytest.raises(an.UserError, match="leaves its statistics alone"):
        toy.fit(Still)
    run = toy.fit(Still, frozen=["norm.*"])
    assert set(run.state.frozen) == {"norm"}


def test_a_parameter_that_the_call_makes_is_refused_and_a_variable_lives_for_the_call():
    class Makes(nnx.Module):
        def __init__(self, rngs, kind):
            self.head, self.kind = nnx.Linear(8, 2, rngs=rngs), kind

        def __call__(self, x):
            self.last = self.kind(x.mean())
            return self.head(x)

    assert not toy.fit(lambda rngs: Makes(rngs, nnx.Variable)).state.model_state
    with pytest.raises(an.UserError, match="call made a parameter, last"):
        toy.fit(lambda rngs: Makes(rngs, nnx.Param))


def test_a_variable_that_changes_its_shape_is_named():
    class Grows(nnx.Module):
        def __init__(self, rngs):
            self.head, self.seen = nnx.Linear(8, 2, rngs=rngs), nnx.Variable(jnp.zeros((1, 8)))

        def __call__(self, x):
            self.seen.set_value(x)
            return self.head(x)

    with pytest.raises(an.UserError, match=r"changed its variable seen from float32\[1, 8\] to float32\[8, 8\]"):
        toy.fit(Grows)


@pytest.mark.parametrize("array", [jnp.arange(8.0), np.arange(8.0, dtype=np.float32)], ids=["jax", "numpy"])
def test_arrays_that_a_module_holds_are_constants(array):
    class Inner(nnx.Module):
        def __init__(self):
            self.table = array

    class Holds(nnx.Module):
        def __init__(self, rngs):
            self.head, self.inner, self.flags = nnx.Linear(8, 2, rngs=rngs), Inner(), nnx.Param(jnp.ones(8, jnp.int32))

        def __call__(self, x):
            return self.head((x + self.inner.table[None]) * self.flags[...][None])

    for model in (Holds, Holds(nnx.Rngs(0))):
        run = toy.fit(model)
        np.testing.assert_array_equal(run.state.model_state["inner"]["table"], np.arange(8.0))
        np.testing.assert_array_equal(run.state.model_state["flags"], np.ones(8, np.int32))
        assert set(run.params) == {"head"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Dense, "the class Dense, expected a Linen module: call it"),
        (lambda: nnx.Linear(8, 2, rngs=nnx.Rngs(0)), "does not take rngs"),
        (lambda params, x: x, "does not take rngs"),
        (nnx.Linear, "also requires in_features, out_features"),
        (lambda rngs: 3, "returned 3, expected an nnx.Module"),
        ("mlp", "of type str"),
        (None, "of type NoneType"),
    ],
)
def test_what_is_no_model_is_refused_with_what_was_expected(model, message):
    with pytest.raises(an.UserError, match=message):
        toy.fit(model)


def test_inputs_that_the_call_does_not_name_are_refused_and_one_argument_gets_them_whole():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, image, table):
            return self.head(image + table)

    class Whole(Two):
        def __call__(self, batch):
            return self.head(batch["image"] + batch["table"])

    both = toy.data({"image": toy.X, "table": toy.X})
    assert toy.fit(Two, both).metrics == toy.fit(Whole, both).metrics
    with pytest.raises(an.UserError, match=r"named image, x, .* does not take x, only image, table"):
        toy.fit(Two, toy.data({"image": toy.X, "x": toy.X}))


def test_a_wrong_width_of_inputs_is_the_models_fault_by_name():
    # A layer of Flax's own has no line of the user's to show, and is one line; a module of the user's has one.
    with pytest.raises(an.UserError, match=r"the model failed, given float32\[8,8\]: TypeError") as caught:
        toy.fit(lambda rngs: nnx.Linear(7, 2, rngs=rngs))
    assert "\n" not in str(caught.value)

    class Own(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(7, 2, rngs=rngs)

        def __call__(self, x):
            return self.layer(x)

    with pytest.raises(an.errors.UserCodeError, match=r"float32\[8,8\](.|\n)*return self.layer\(x\)"):
        toy.fit(Own)
