"""Values in the form that messages show: short, on one line, without control characters."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

_MOST_NAMES = 20  # in a message


def shown(value: Any) -> str:
    r"""Return a value in the form that messages show: short, on one line, without control characters.

    Args:
        value: Anything.

    Returns:
        About 80 characters at most.

    Example:
        >>> import numpy as np
        >>> shown("red\x1b[31m"), shown(np.zeros((3, 4))), shown(len)
        ("'red\\x1b[31m'", 'an array of float64 [3, 4]', 'builtin_function_or_method len')
    """
    if hasattr(value, "shape") and hasattr(value, "dtype") and getattr(value, "ndim", 0):
        return f"an array of {value.dtype} {list(value.shape)}"
    if callable(value):
        return f"{type(value).__name__} {getattr(value, '__name__', '')}".strip()
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001, a repr of the user's own may fail in any way
        text = f"a {type(value).__name__}"
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= 80 else f"{text[:60]}... ({type(value).__name__})"


def listed(values: Iterable[Any]) -> str:
    """Return values in the form that messages show, separated by commas; of more than 20, the first.

    Example:
        >>> listed(["a", "b"]), listed([])
        ("'a', 'b'", 'none')
    """
    values = list(values)
    rest = f" and {len(values) - _MOST_NAMES} more" if len(values) > _MOST_NAMES else ""
    return (", ".join(map(shown, values[:_MOST_NAMES])) or "none") + rest


def did_you_mean(value: Any, choices: Iterable[str]) -> str:
    """Return the end of a message that names the choice that was probably meant, or nothing.

    Args:
        value: What came.
        choices: What is allowed.

    Example:
        >>> did_you_mean("prize", ["price", "size"])
        "; did you mean 'price'?"
    """
    close = get_close_matches(value, list(choices), n=1) if isinstance(value, str) else []
    return f"; did you mean {shown(close[0])}?" if close else ""


def size(number: float) -> str:
    """Return bytes as people read them, in powers of 1,024.

    Example:
        >>> size(3 << 30), size(1500)
        ('3.0 GiB', '1.5 KiB')
    """
    for prefix, unit in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= unit:
            return f"{number / unit:.1f} {prefix}"
    return f"{number:.0f} B"
