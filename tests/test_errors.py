"""An exception of the user's own code, as it is shown."""

import jax
import jax.numpy as jnp
import pytest

from accelnet.errors import DivergenceError, UserCodeError, UserError, user_code, user_traceback


def inner(x):
    return x @ x


def outer(x):
    return jax.grad(lambda y: jnp.sum(inner(y)))(x)


def raised(function, *args):
    with pytest.raises(TypeError) as found:
        function(*args)
    return found.value


def test_a_traceback_has_the_users_frames_and_no_librarys():
    error = raised(jax.jit(outer), jnp.ones((2, 3)))
    text = user_traceback(error)
    files = {line.split('"')[1] for line in text.splitlines() if line.startswith("  File")}
    assert files == {__file__}
    places = [line.rsplit(" in ", 1)[1] for line in text.splitlines() if line.startswith("  File")]
    assert places == ["raised", "outer", "<lambda>", "inner"]
    assert "    return x @ x" in text and text.splitlines()[-1].startswith("TypeError: dot_general")
    assert "JAX has removed its internal frames" not in text


def test_a_note_of_the_users_own_stays():
    error = ValueError("wrong")
    error.add_note("see the manual")
    assert user_traceback(error) == "ValueError: wrong\nsee the manual"


def test_the_message_names_role_shapes_and_error():
    error = UserCodeError("the loss", raised(inner, jnp.ones((2, 3))), "outputs float32[16, 10]")
    lines = str(error).splitlines()
    assert lines[0] == "the loss failed, given outputs float32[16, 10]:"
    assert any("in inner" in line for line in lines) and lines[-1].startswith("TypeError")
    assert error.role == "the loss" and error.exit_code == 1 and not isinstance(error, ValueError)


@pytest.mark.parametrize("error", [UserError("a"), DivergenceError("b"), UserCodeError("c", KeyError("d"))])
def test_an_error_with_a_message_of_its_own_passes(error):
    with pytest.raises(type(error)) as found, user_code("the script"):
        raise error
    assert found.value is error


def test_interrupts_and_exits_are_no_errors_of_the_user():
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), user_code("the script"):
            raise kind
