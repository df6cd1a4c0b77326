"""How much a server takes on, and how a request is refused."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from accelnet.arguments import integer, number
from accelnet.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Say how much a server takes on.

    Attributes:
        batch_rows: Most rows that are computed at once; the next lower power of two is taken.
        steps: Most steps of a sequence, where they may be any number; the next lower power of two is taken.
        body_bytes: Most bytes of a request's body. All requests together may hold 16 times as many.
        queue_rows: Most rows that wait.
        seconds: Time that a client may take to send its request, that a request waits for its answer, and that a client
            may leave its answer unread.

    Example:
        >>> Limits(batch_rows=0)
        Traceback (most recent call last):
        accelnet.errors.UserError: batch_rows is 0, expected a whole number of at least 1
    """

    batch_rows: int = 64
    steps: int = 256
    body_bytes: int = 16 << 20
    queue_rows: int = 1024
    seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("batch_rows", "steps", "body_bytes", "queue_rows"):
            integer(name, getattr(self, name), 1)
        number("seconds", self.seconds, above=0)


@dataclass(eq=False)
class Refused(Exception):  # noqa: N818, it is an answer
    """Report why a request gets no prediction.

    Attributes:
        status: Status code of HTTP.
        message: What came, what was expected, what to do.
        headers: Further headers of the answer.

    Example:
        >>> str(Refused(404, "there is no /x"))
        'there is no /x'
    """

    status: int
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Refuse a request, with 422, whose inputs are not what the model takes, or what NumPy cannot make of them.

    Example:
        >>> with refusing():
        ...     int("much")
        Traceback (most recent call last):
        accelnet.serving.limits.Refused: the inputs cannot be read: invalid literal for int() with base 10: 'much'
    """
    try:
        yield
    except UserError as error:
        raise Refused(422, str(error)) from None
    except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise Refused(422, f"the inputs cannot be read: {error}") from None
