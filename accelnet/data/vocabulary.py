"""Text to numbers of its characters, and back."""

from typing import Any

import numpy as np

from accelnet.errors import UserError
from accelnet.wording import shown


def encode(content: str, vocabulary: str) -> np.ndarray:
    """Turn text into symbols.

    Args:
        content: text of L characters.
        vocabulary: its characters in ascending order, as in `info["vocabulary"]`.

    Returns:
        int32 [L].

    Raises:
        UserError: if a character is not in the vocabulary, or this is not in ascending order.

    Example:
        >>> encode("cab", "abc")
        array([2, 0, 1], dtype=int32)
    """
    _check(vocabulary)
    if not isinstance(content, str):
        raise UserError(f"content is {shown(content)}, expected text")
    unknown = sorted(set(content) - set(vocabulary))
    if unknown:
        raise UserError(
            f"characters {shown(''.join(unknown))} are not in the vocabulary {shown(vocabulary)}: leave them out"
        )
    return np.searchsorted(code_points(vocabulary), code_points(content)).astype(np.int32)


def decode(tokens: Any, vocabulary: str) -> str:
    """Turn symbols into text.

    Args:
        tokens: integers [L], 0 to `len(vocabulary) - 1`.
        vocabulary: as in `info["vocabulary"]`.

    Returns:
        Text of L characters.

    Raises:
        UserError: if tokens are not such integers.

    Example:
        >>> decode([2, 0, 1], "abc")
        'cab'
        >>> decode([7], "abc")
        Traceback (most recent call last):
        accelnet.errors.UserError: tokens are 7 to 7, expected 0 to 2: the vocabulary has 3 characters
    """
    _check(vocabulary)
    array = np.asarray(tokens)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise UserError(f"tokens are {shown(tokens)}, expected integers [L]")
    if array.size and not 0 <= array.min() <= array.max() < len(vocabulary):
        raise UserError(
            f"tokens are {array.min()} to {array.max()}, expected 0 to {len(vocabulary) - 1}: "
            f"the vocabulary has {len(vocabulary)} characters"
        )
    return "".join(vocabulary[token] for token in array.tolist())


def code_points(content: str) -> np.ndarray:
    """Return the numbers of characters in Unicode, uint32 [L].

    Example:
        >>> code_points("ab")
        array([97, 98], dtype=uint32)
    """
    return np.frombuffer(content.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _check(vocabulary: Any) -> None:
    if not isinstance(vocabulary, str) or list(vocabulary) != sorted(set(vocabulary)):
        raise UserError(f"vocabulary is {shown(vocabulary)}, expected different characters in ascending order")
