"""Text as characters: any file, cut into windows for next-character prediction."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet import arguments
from accelnet.data.dataset import Data
from accelnet.data.files import read_text
from accelnet.data.tokenizer import check_tokenizer, encode_tokens, identity_of, num_tokens_of
from accelnet.data.vocabulary import code_points
from accelnet.data.windows import HeldOut, held_out_windows, with_cast_tokens
from accelnet.errors import UserError
from accelnet.wording import shown


def text(
    path: str | os.PathLike[str] | None = None,
    window: int = 128,
    encoding: str = "utf-8-sig",
    held_out: HeldOut = "end",
    tokenizer: Any = None,
    seed: int = 0,
    fitted: Mapping[str, Any] | None = None,
) -> Data:
    r"""Load a text file as windows of characters, each with the character that follows as its target.

    Windows do not overlap. A tenth is for the test and a tenth for validation. One window is left out between
    two splits, as the last target of a split would otherwise be the first input of the next; less than `window`
    characters at the very start are left out, so that the last window ends the file. The vocabulary is that of the
    whole file: held-out parts hold no unknown symbol.

    The King James Bible, after `apt-get install bible-kjv bible-kjv-text`:
    `bible -f "Gen1:1-Rev22:21" </dev/null | sed 's/^[^ ]* //' > kjv.txt`

    Args:
        path: Text file; line ends are read as "\n". None for the topics of Python's `help` (0.7 MB of English
            about Python, part of every Python, different between its versions).
        window: Characters per example, at least 1.
        encoding: Encoding of the file; the default is UTF-8 with or without a byte order mark.
        held_out: Place of the rows held out. "end": the test split is the last tenth, validation the tenth before it,
            as for text that is to come. "blocks": each is ten of a hundred equal blocks of the file, drawn at random,
            so that both are like the rest of it; the end of a collection of books is another book.
        tokenizer: "bytes" for the bytes of UTF-8, or an object with `encode` (text -> integers, or an object with
            `ids`) and `decode`, such as those of the packages tokenizers, tiktoken, sentencepiece and transformers.
            Windows are then so many tokens. None: characters.
        seed: Seed of the draw, at least 0.
        fitted: `data.fitted` of an earlier run, to take over its vocabulary; a tokenizer must be the same.

    Returns:
        Data with inputs and targets [N, window] (uint8 up to 256 symbols, uint16 up to 65,536),
        cast to int32 by `prepare`. `info` has `num_classes` and the `vocabulary` (a str, symbol i is its i-th
        character), or the `tokenizer`.

    Raises:
        UserError: if the file is missing, empty, too short for a window per split, or not of that encoding.

    Example:
        >>> data = text(window=32)
        >>> data.arrays["inputs"].shape[1], sorted(data.splits)
        (32, ['test', 'train', 'validation'])
        >>> data.decode(data.encode("import"))
        ['import']
    """
    window = arguments.integer("window", window, low=1)
    arguments.word("held_out", held_out, ("end", "blocks"))
    arguments.word("encoding", encoding)
    if path is None:
        from pydoc_data import topics

        name, content = "python_topics", "\n".join(topics.topics[topic] for topic in sorted(topics.topics))
    else:
        name = (file := arguments.path("path", path)).stem
        content = read_text(file, "text file", encoding).replace("\r\n", "\n").replace("\r", "\n")
        if not content:
            raise UserError(f"text file {path} is empty")
    own, info, symbols = _tokenized(name, content, tokenizer, fitted)
    num_windows = (len(symbols) - 1) // window  # one is for the last target
    # One window per split and one between two; or three blocks of two.
    if num_windows < (needed := 5 if held_out == "end" else 6):
        raise UserError(
            f"{path} has {len(symbols)} {'characters' if tokenizer is None else 'tokens'}, expected at least "
            f"{needed * window + 1} for window={window}: give a longer text or a smaller window"
        )
    order, splits = held_out_windows(num_windows, held_out, seed, between=1, what=name)
    symbols = symbols[len(symbols) - 1 - num_windows * window :].astype(_smallest(info["num_classes"]))
    arrays = {"inputs": symbols[:-1].reshape(-1, window), "targets": symbols[1:].reshape(-1, window)}
    if held_out == "end":  # the splits lie one after the other already
        splits = {split: range(order[rows.start], order[rows.stop - 1] + 1) for split, rows in splits.items()}
    else:
        arrays = {name: array[order] for name, array in arrays.items()}
    data = Data(name, arrays, splits, with_cast_tokens, info=info, fitted=own)
    return data if fitted is None else data.refitted(fitted)


def _tokenized(
    name: str, content: str, tokenizer: Any, fitted: Any
) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """Return what is fitted, the info, and the symbols of a text."""
    if tokenizer is not None:
        check_tokenizer(tokenizer)
        info = {"num_classes": num_tokens_of(tokenizer), "tokenizer": tokenizer}
        return {"tokenizer": identity_of(tokenizer)}, info, encode_tokens(tokenizer, content)
    points = code_points(content)
    symbols = _symbols(points) if fitted is None else _known_symbols(name, points, fitted)
    table = np.zeros(int(symbols.max()) + 1, dtype=np.int32)
    table[symbols] = np.arange(len(symbols))
    return {"vocabulary": "".join(map(chr, symbols))}, {"num_classes": len(symbols)}, table[points]


def _smallest(num_symbols: int) -> type:
    return np.uint8 if num_symbols <= 1 << 8 else np.uint16 if num_symbols <= 1 << 16 else np.int32


def _symbols(points: np.ndarray) -> np.ndarray:
    """Return the code points that occur, by a table: sorting 4 million would take 0.4 s, this takes 0.02 s."""
    table = np.zeros(int(points.max()) + 1, dtype=bool)
    table[points] = True
    return np.flatnonzero(table)


def _known_symbols(name: str, points: np.ndarray, fitted: Any) -> np.ndarray:
    """Return the symbols of an earlier run; raise UserError unless the text has no others."""
    vocabulary = fitted.get("vocabulary") if isinstance(fitted, Mapping) else None
    if not isinstance(vocabulary, str):
        raise UserError(f"fitted is {shown(fitted)}, expected a dict such as data.fitted, with a vocabulary")
    symbols = code_points(vocabulary)
    if unknown := np.setdiff1d(_symbols(points), symbols).tolist():
        raise UserError(
            f"text {name!r} has characters {shown(''.join(map(chr, unknown)))}, which the vocabulary to take over "
            f"does not have: leave them out"
        )
    return symbols
