"""Sealed lines: JSON that only a process of this run can have written, for one connection.

The run's secret, ACCELNET_TOKEN, is never sent: a line carries an HMAC of its content, its purpose and the other
side's nonce. Without a secret anybody can seal a line, and a seal means only that the line is whole.
"""

import hmac
import json
import os
import secrets
from collections.abc import Mapping
from typing import Any

VARIABLE = "ACCELNET_TOKEN"


def has_secret() -> bool:
    """Say whether this process was given the run's secret.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, ACCELNET_TOKEN="0123"):
        ...     has_secret()
        True
    """
    return bool(os.environ.get(VARIABLE))


def make_nonce() -> str:
    """Return a number that was never used before, 32 hexadecimal digits.

    Example:
        >>> len(make_nonce())
        32
    """
    return secrets.token_hex(16)


def seal(content: Mapping[str, Any], purpose: str, nonce: str) -> bytes:
    r"""Return content as a sealed line.

    Args:
        content: JSON values.
        purpose: Word for what the line is; a line of one purpose is none of another.
        nonce: Nonce of the receiver.

    Example:
        >>> seal({"rank": 1}, "hello", "ab").partition(b" ")[2]
        b'{"rank": 1}\n'
    """
    text = json.dumps(content)
    return f"{_mac(text, purpose, nonce)} {text}\n".encode()


def unseal(line: bytes, purpose: str, nonce: str) -> dict[str, Any] | None:
    """Read a sealed line; None if it is another's, damaged, for another purpose or nonce, or no JSON object.

    Example:
        >>> unseal(seal({"rank": 1}, "hello", "ab"), "hello", "ab")
        {'rank': 1}
        >>> unseal(seal({"rank": 1}, "hello", "ab"), "hello", "another nonce") is None
        True
    """
    try:
        mac, _, text = line.decode().removesuffix("\n").partition(" ")
        # Nothing is made of the content of a stranger's line.
        if not mac.isascii() or not hmac.compare_digest(mac, _mac(text, purpose, nonce)):
            return None
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _mac(text: str, purpose: str, nonce: str) -> str:
    secret = os.environ.get(VARIABLE, "").encode(errors="surrogateescape")
    return hmac.new(secret, f"{purpose}\n{nonce}\n{text}".encode(), "sha256").hexdigest()
