"""The declaration of an algorithm: its arguments and their ranges, its docstring, and one of the user's own."""

import doctest
import inspect

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from accelnet import optim
from accelnet.errors import UserError

CONSTANT = optim.schedules.constant()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate is -0.1, expected a number of at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"learning_rate": np.ones(2)}, "learning_rate is an array"),
        ({"learning_rate": optax.constant_schedule(0.1)}, "a schedule of the rate goes to schedule="),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"b1": 1.0}, r"b1 is 1, expected a number in \[0, 1\)"),
        ({"b2": 2}, "b2 is 2"),
        ({"eps": -1e-8}, "eps is -1e-08"),
        ({"schedule": 0.5}, r"schedule is 0.5, expected a function such as schedules.cosine\(\)"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        optim.adamw(**{"learning_rate": 0.1, **arguments})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.momentum(0.1, momentum=1.0), "momentum is 1"),
        (lambda: optim.nesterov(0.1, momentum=-0.1), "momentum is -0.1"),
        (lambda: optim.lars(0.1, trust_coefficient=-1.0), "trust_coefficient is -1"),
        (lambda: optim.rmsprop(0.1, decay=1.0), "decay is 1"),
        (lambda: optim.adadelta(0.1, decay=-1.0), "decay is -1"),
        (lambda: optim.adagrad(0.1, initial_accumulator=-1.0), "initial_accumulator is -1"),
        (lambda: optim.adafactor(0.1, decay_rate=1.1), r"decay_rate is 1.1, expected a number in \[0, 1\]"),
        (lambda: optim.adafactor(0.1, min_factored_size=0), "min_factored_size is 0"),
        (lambda: optim.schedule_free_adamw(0.1, b1=0.0), "b1 is 0"),
        (lambda: optim.muon(0.1, momentum=2.0), "momentum is 2"),
        (lambda: optim.average_params(1.0), "decay is 1"),
        (
            lambda: optim.adamw(0.1, beta1=0.9),
            "adamw: got an unexpected keyword argument 'beta1', expected learning_rate",
        ),
        (optim.adamw, "adamw: missing a required argument: 'learning_rate'"),
    ],
)
def test_each_algorithm_checks_its_own_arguments(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("name", optim.algorithms)
def test_its_example_runs_and_its_arguments_are_explained(name):
    make = optim.algorithms[name]
    test = doctest.DocTestParser().get_doctest(make.__doc__, dict(make.__wrapped__.__globals__), name, None, 0)
    assert len(test.examples) >= 3
    assert doctest.DocTestRunner().run(test).failed == 0
    for argument in inspect.signature(make).parameters:
        assert f"\n    {argument}" in make.__doc__.partition("\nArgs:")[2]


def test_the_signature_shows_rate_schedule_and_operands():
    parameters = inspect.signature(optim.momentum).parameters
    assert list(parameters) == ["learning_rate", "schedule", "momentum", "weight_decay", "decay_mask"]
    assert parameters["momentum"].default == 0.9
    assert [one.kind for one in parameters.values()] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] + [
        inspect.Parameter.KEYWORD_ONLY
    ] * 4


@pytest.fixture
def scaled_sign(monkeypatch):
    from accelnet.optim import declare

    monkeypatch.setattr(declare, "_declared", declare._declared.copy())

    @optim.algorithm(gamma="(0, 2]", fixed={"eps": "[0, inf)"})
    def scaled_sign(learning_rate, *, schedule=CONSTANT, gamma=1.0, eps=0.0):
        return optax.chain(optax.scale_by_sign(), optax.scale(-(learning_rate * schedule * gamma + eps)))

    return scaled_sign


def test_an_algorithm_of_ones_own_has_operands_in_its_declared_ranges(scaled_sign):
    params = jnp.array([1.0, -1.0])
    optimizer = scaled_sign(0.5, gamma=0.5)
    state = optimizer.init(params)
    assert {name: float(value) for name, value in optim.hyperparams(state).items()} == {
        "learning_rate": 0.5,
        "gamma": 0.5,
    }
    updates, state = optimizer.update(params, state, params)
    assert updates.tolist() == [-0.25, 0.25]
    updates, _ = optimizer.update(params, optim.with_hyperparams(state, gamma=2), params)
    assert updates.tolist() == [-1.0, 1.0]
    for give in (lambda: scaled_sign(0.5, gamma=0.0), lambda: optim.with_hyperparams(state, gamma=0.0)):
        with pytest.raises(UserError, match=r"gamma is 0, expected a number in \(0, 2\]"):
            give()
    with pytest.raises(UserError, match="eps is -1, expected a number of at least 0"):
        scaled_sign(0.5, eps=-1)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"gamma": "[0, 1)"}, "rule has no argument gamma, but one is declared"),
        ({"b1": "0 to 1"}, "a range is '0 to 1', expected an interval such as"),
        ({"b1": "[1, 0)"}, r"a range is '\[1, 0\)'"),
        ({"b1": (0.0, 1.0)}, r"a range is \(0.0, 1.0\)"),
    ],
)
def test_a_declaration_that_cannot_be_is_named(ranges, message):
    def rule(learning_rate, *, schedule=None, b1=0.9):
        raise AssertionError

    with pytest.raises(UserError, match=message):
        optim.algorithm(**ranges)(rule)


def test_an_algorithm_of_ones_own_cannot_take_the_name_of_another():
    def adam(learning_rate, *, schedule=None):
        raise AssertionError

    with pytest.raises(UserError, match=r"an algorithm adam is declared in accelnet.optim.adam: choose another name"):
        optim.algorithm()(adam)
