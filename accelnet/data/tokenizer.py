"""Tokenizers: bytes, or an object of the user's."""

import hashlib
from typing import Any

import numpy as np

from accelnet.arguments import integer
from accelnet.errors import UserCodeError, UserError, user_code
from accelnet.wording import shown

_SAMPLE = "The quick brown fox jumps over 13 lazy dogs; naïve café, 東京."


def encode_tokens(tokenizer: Any, text: str) -> np.ndarray:
    """Turn text into tokens.

    Args:
        tokenizer: "bytes" for the bytes of UTF-8, or an object with `encode` (text -> integers, or an object with
            `ids`) and `decode`, such as those of the packages tokenizers, tiktoken, sentencepiece and transformers.
        text: Text.

    Returns:
        int64 [L].

    Raises:
        UserError: if the tokenizer gives no integers of at least 0.

    Example:
        >>> encode_tokens("bytes", "né").tolist()
        [110, 195, 169]
    """
    if _is_bytes(tokenizer):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    with user_code("the tokenizer's encode"):
        tokens = tokenizer.encode(text)
    array = np.asarray(getattr(tokens, "ids", tokens))
    if array.ndim != 1 or (array.size and (array.dtype.kind not in "iu" or array.min() < 0)):
        raise UserError(f"the tokenizer's encode gave {shown(tokens)}, expected a list of whole numbers of at least 0")
    return array.astype(np.int64)


def decode_tokens(tokenizer: Any, tokens: np.ndarray) -> str:
    """Turn tokens into text; bytes that are no UTF-8 become "\N{REPLACEMENT CHARACTER}".

    Args:
        tokenizer: As of `encode_tokens`.
        tokens: Integers [L].

    Example:
        >>> decode_tokens("bytes", np.array([110, 195, 169]))
        'né'
    """
    if _is_bytes(tokenizer):
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < 256:
            raise UserError(f"tokens are {tokens.min()} to {tokens.max()}, expected bytes, 0 to 255")
        return bytes(tokens.tolist()).decode(errors="replace")
    with user_code("the tokenizer's decode"):
        return str(tokenizer.decode(tokens.tolist()))


def num_tokens_of(tokenizer: Any) -> int:
    """Return the number of tokens that a tokenizer knows.

    Raises:
        UserError: if it does not say so.

    Example:
        >>> num_tokens_of("bytes")
        256
    """
    if _is_bytes(tokenizer):
        return 256
    # Those of tiktoken, tokenizers, sentencepiece and transformers, whose vocab_size leaves added tokens out.
    for name in ("n_vocab", "get_vocab_size", "get_piece_size", "__len__", "vocab_size"):
        found = getattr(tokenizer, name, None)
        if found is not None:
            with user_code(f"the tokenizer's {name}"):
                found = found() if callable(found) else found
            return integer(f"the tokenizer's {name}", found, low=1)
    raise UserError(f"tokenizer is {shown(tokenizer)}, expected one with n_vocab, get_vocab_size() or vocab_size")


def identity_of(tokenizer: Any) -> str:
    """Return text that changes with the tokenizer: what it makes of a sample, unless it refuses that."""
    if _is_bytes(tokenizer):
        return "bytes"
    try:
        tokens = encode_tokens(tokenizer, _SAMPLE)
    except (UserError, UserCodeError):  # it knows other words
        tokens = np.zeros(0)
    return f"{num_tokens_of(tokenizer)} {hashlib.blake2b(tokens.tobytes(), digest_size=8).hexdigest()}"


def check_tokenizer(tokenizer: Any) -> None:
    """Raise UserError unless it is "bytes" or has `encode` and `decode`."""
    if isinstance(tokenizer, str):
        if tokenizer != "bytes":
            raise UserError(f"tokenizer is {shown(tokenizer)}, expected 'bytes' or an object with encode and decode")
    elif not all(callable(getattr(tokenizer, name, None)) for name in ("encode", "decode")):
        raise UserError(f"tokenizer is {shown(tokenizer)}, expected 'bytes' or an object with encode and decode")


def _is_bytes(tokenizer: Any) -> bool:
    return isinstance(tokenizer, str)
