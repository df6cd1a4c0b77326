"""The first operation that made a number that is not finite, in loops, branches and gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from accelnet.ops.origin import find_origin


def found(function, *operands):
    closed = jax.make_jaxpr(function)(*operands)
    result = find_origin(closed, operands, [range(len(closed.jaxpr.outvars))])
    return None if result is None else result[1]


@jax.jit
def own(x):
    return jnp.log(x)


def line_of(origin):
    return int(origin.line.partition(" (")[0].rpartition(":")[2])


def test_the_line_is_that_of_the_users_function_that_was_traced_before_by_another():
    jax.grad(lambda x: own(x).sum())(jnp.ones(3))
    origin = found(lambda x: jnp.exp(own(x)) + own(x), jnp.array([1.0, -1.0, 2.0]))
    assert (origin.operation, origin.made, origin.positions.tolist()) == ("log", "nan", [[1]])
    assert "own" in origin.line and line_of(origin) == own.__wrapped__.__code__.co_firstlineno + 2


def test_a_mask_of_infinities_that_does_no_harm_is_not_blamed():
    def masked(x):
        scores = jnp.where(x > 0, x, -jnp.inf)
        return jax.nn.softmax(scores) * jnp.sqrt(x - 2.5)

    assert found(masked, jnp.array([3.0, 3.0])) is None
    assert found(masked, jnp.array([-1.0, 3.0])).operation == "sqrt"


@pytest.mark.parametrize("reverse", [False, True])
def test_in_a_loop_the_trip_is_told(reverse):
    def loop(x):
        return jax.lax.scan(lambda c, t: (c + jnp.log(t - 2.5), c), x, jnp.arange(3.0, 8.0) - 2.0, reverse=reverse)[0]

    origin = found(loop, jnp.float32(0))
    assert (origin.operation, origin.trips, origin.made) == ("log", (1 if reverse else 0,), "nan")


def test_loops_of_unknown_length_and_branches_are_looked_into():
    def grown(x, n):
        return jax.lax.fori_loop(0, n, lambda i, c: jax.lax.cond(i > 1, jnp.sqrt, lambda c: c - 1, c), x)

    origin = found(grown, jnp.float32(0.5), 4)
    assert (origin.operation, origin.trips) == ("sqrt", (2,))


def test_the_gradient_of_a_branch_not_taken_is_found():
    origin = found(jax.grad(lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()), jnp.array([1.0, 0.0]))
    assert (origin.operation, origin.made, origin.then.operation) == ("div", "inf", "mul")
    assert origin.positions.tolist() == [[1]]


def test_an_operand_that_is_not_finite_is_named_by_its_number():
    origin = found(lambda x, y: x + y, jnp.ones(3), jnp.array([1.0, np.nan, 1.0]))
    assert (origin.operand, origin.operation, origin.positions.tolist()) == (1, "", [[1]])
