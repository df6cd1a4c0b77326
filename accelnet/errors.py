"""The errors a person can do something about."""

import contextlib
import linecache
import sys
import traceback
from collections.abc import Iterator

from accelnet.characters import visible

# Their frames do not help to find a mistake in a user's function.
_LIBRARIES = frozenset((
    "accelnet", "chex", "equinox", "flax", "jax", "jaxlib", "numpy", "optax", "orbax", "scipy", "tyro", "treescope",
))  # fmt: skip


class _Told(Exception):  # noqa: N818, the errors below have the name
    """An error whose message, wherever it is printed, steers no terminal: it quotes files and names of others."""

    def __str__(self) -> str:
        return visible(super().__str__())


class UserError(_Told, ValueError):
    """Report a user's mistake: what came, what was expected, what to do.

    The command line prints the message alone and exits with code 2.

    Example:
        >>> raise UserError("batch_size is 0, expected at least 1: pass --batch-size")
        Traceback (most recent call last):
        accelnet.errors.UserError: batch_size is 0, expected at least 1: pass --batch-size
    """

    exit_code = 2


class DivergenceError(_Told, ArithmeticError):
    """Report a loss that became NaN or infinite. The command line exits with code 3.

    Example:
        >>> DivergenceError.exit_code
        3
    """

    exit_code = 3


class PreemptedError(_Told, RuntimeError):
    """Report a run that got SIGTERM and saved its state. The command line exits with code 4.

    Example:
        >>> PreemptedError.exit_code
        4
    """

    exit_code = 4


class Interrupted(KeyboardInterrupt):
    """Report a training that Ctrl-C ended after its state was saved; all its processes raise it at one step.

    The command line exits with code 130.

    Example:
        >>> Interrupted.exit_code
        130
    """

    exit_code = 130


class LostProcessError(_Told, RuntimeError):
    """Report a process of the run that died or does not respond. The command line exits with code 5.

    Example:
        >>> LostProcessError.exit_code
        5
    """

    exit_code = 5


class UserCodeError(Exception):
    """Report an exception inside a user's function. The command line shows it and exits with code 1.

    Args:
        role: Role of the function, such as "the loss".
        error: The exception.
        given: Arguments of the function in words, such as "outputs float32[16, 10]". Empty: they are not shown.

    Example:
        >>> print(UserCodeError("the loss", ZeroDivisionError("division by zero"), "outputs float32[16, 10]"))
        the loss failed, given outputs float32[16, 10]:
        ZeroDivisionError: division by zero
    """

    exit_code = 1

    def __init__(self, role: str, error: BaseException, given: str = "") -> None:
        super().__init__(role, error, given)
        self.role, self.error, self.given = role, error, given

    def __str__(self) -> str:
        shapes = f", given {self.given}" if self.given else ""
        return visible(f"{self.role} failed{shapes}:\n{user_traceback(self.error)}")


def user_traceback(error: BaseException) -> str:
    """Return the traceback of an exception with the user's own frames, without those of accelnet and its libraries.

    Args:
        error: An exception that was raised.

    Example:
        >>> print(user_traceback(KeyError("labels")))
        KeyError: 'labels'
    """
    summary = traceback.TracebackException(type(error), error, None)
    # jax attaches a note about the frames that it hides.
    summary.__notes__ = [note for note in getattr(error, "__notes__", ()) if not str(note).startswith("-----")]
    return "\n".join([*own_frames(error), "".join(summary.format_exception_only()).strip()])


def own_frames(error: BaseException) -> list[str]:
    """Return the user's own frames of an exception's traceback, as lines with their source.

    Example:
        >>> own_frames(KeyError("labels"))
        []
    """
    lines = []
    for frame, number in traceback.walk_tb(error.__traceback__):
        package = (frame.f_globals.get("__name__") or "").partition(".")[0]
        if package not in _LIBRARIES and package not in sys.stdlib_module_names:
            code = frame.f_code
            lines.append(f'  File "{code.co_filename}", line {number}, in {code.co_name}')
            source = linecache.getline(code.co_filename, number, frame.f_globals).strip()
            lines += [f"    {source}"] if source else []
    return lines


@contextlib.contextmanager
def user_code(role: str, given: str = "") -> Iterator[None]:
    """Turn an exception of the user's code into a `UserCodeError`; accelnet's own errors pass.

    One that has no frame of the user's, as of a Flax layer that gets inputs of another width, becomes a `UserError`.

    Args:
        role: Role of the code, such as "the loss".
        given: Its arguments in words.

    Example:
        >>> with user_code("the script's after_train"):
        ...     [].pop()
        Traceback (most recent call last):
        accelnet.errors.UserError: the script's after_train failed: IndexError: pop from empty list
    """
    try:
        yield
    except (UserError, DivergenceError, PreemptedError, LostProcessError, UserCodeError):
        raise
    except Exception as error:
        failed = UserCodeError(role, error, given)
        # Without code to show (an error of syntax shows its own), what was given does not fit.
        if not own_frames(error) and not isinstance(error, SyntaxError):
            raise UserError(" ".join(str(failed).split())) from error
        raise failed from error
