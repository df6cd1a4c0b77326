import jax
import jax.numpy as jnp
import optax
import pytest

from accelnet import optim
from accelnet.errors import UserError


def rates_of(losses, **arguments):
    """Return the rate in effect after each loss."""
    optimizer = optax.chain(optim.sgd(1.0), optim.reduce_on_plateau(**arguments))
    params = jnp.ones(2)

    def one(state, loss):
        updates, state = optimizer.update(params, state, params, value=loss)
        return state, (optim.learning_rate(state), -updates[0])

    _, (rates, steps) = jax.jit(lambda x: jax.lax.scan(one, optimizer.init(params), x))(jnp.asarray(losses))
    assert rates.tolist() == steps.tolist()
    return rates.tolist()


def test_the_rate_falls_when_the_loss_stopped_improving_for_as_long_as_patience():
    losses = [3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0]
    assert rates_of(losses, factor=0.5, patience=2) == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25]


def test_an_improvement_by_less_than_1_in_10000_is_none():
    assert rates_of([1.0, 0.99995], factor=0.5, patience=1) == [1.0, 0.5]
    assert rates_of([1.0, 0.9998], factor=0.5, patience=1) == [1.0, 1.0]


def test_losses_are_averaged_over_windows():
    # Windows of 2: means 2, 2, 1.
    losses = [3.0, 1.0, 1.0, 3.0, 1.0, 1.0]
    assert rates_of(losses, factor=0.5, patience=1, window_steps=2) == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]


def test_after_a_reduction_the_cooldown_waits_and_min_scale_is_the_end():
    losses = [1.0] * 7
    assert rates_of(losses, factor=0.5, patience=1, cooldown=1) == [1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert rates_of(losses, factor=0.5, patience=1, min_scale=0.25) == [1.0, 0.5, *[0.25] * 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 1.0}, r"factor is 1, expected a number in \(0, 1\)"),
        ({"factor": -0.5}, "factor is -0.5"),
        ({"patience": 0}, "patience is 0, expected a whole number of at least 1"),
        ({"window_steps": 1.5}, "window_steps is 1.5"),
        ({"cooldown": -1}, "cooldown is -1"),
        ({"min_scale": 1.0}, "min_scale is 1, expected"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        optim.reduce_on_plateau(**arguments)


def test_a_missing_loss_is_named():
    optimizer = optim.reduce_on_plateau()
    with pytest.raises(UserError, match="needs the loss"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))
