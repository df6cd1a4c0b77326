"""Text as characters: any file, cut into windows for next-character prediction."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from accelnet import arguments
from accelnet.data.dataset import Data
from accelnet.data.files import read_text
from accelnet.data.normalize import with_cast_targets
from accelnet.data.splits import random_order
from accelnet.data.vocabulary import code_points
from accelnet.errors import UserError
from accelnet.wording import shown

# Of a text, for held-out parts that are like the rest: enough to meet all its kinds of pages, few enough that what is
# held out is pages and not single windows between known ones.
_NUM_BLOCKS = 100


def text(
    path: str | os.PathLike[str] | None = None,
    window: int = 128,
    encoding: str = "utf-8-sig",
    held_out: Literal["end", "blocks"] = "end",
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
        seed: Seed of the draw, at least 0.
        fitted: `data.fitted` of an earlier run, to take over its vocabulary.

    Returns:
        Data with inputs and targets [N, window] (uint8 up to 256 symbols, uint16 up to 65,536),
        cast to int32 by `prepare`. `info` has the `vocabulary` (a str, symbol i is its i-th character) and
        `num_classes`.

    Raises:
        UserError: if the file is missing, empty, too short for a window per split, or not of that encoding.

    Example:
        >>> data = text(window=32)
        >>> data.arrays["inputs"].shape[1], sorted(data.splits)
        (32, ['test', 'train', 'validation'])
        >>> data.decode(data.encode("import"))
        ['import']
    """
    window, seed = arguments.integer("window", window, low=1), arguments.integer("seed", seed, low=0)
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
    points = code_points(content)
    # One character is for the last target. Five windows: one per split and two between; or three blocks of two.
    num_windows, needed = (len(points) - 1) // window, 5 if held_out == "end" else 6
    if num_windows < needed:
        raise UserError(
            f"{path} has {len(points)} characters, expected at least {needed * window + 1} for window={window}: "
            f"give a longer text or a smaller window"
        )
    symbols = _symbols(points) if fitted is None else _known_symbols(name, points, fitted)
    tokens = _tokens(points[len(points) - 1 - num_windows * window :], symbols)
    arrays = {"inputs": tokens[:-1].reshape(-1, window), "targets": tokens[1:].reshape(-1, window)}
    if held_out == "end":
        tenth = max(1, round(0.1 * num_windows))
        splits = {
            "train": range(num_windows - 2 * tenth - 2),
            "validation": range(num_windows - 2 * tenth - 1, num_windows - tenth - 1),
            "test": range(num_windows - tenth, num_windows),
        }
    else:
        rows, splits = _blocks(num_windows, seed)
        arrays = {name: array[rows] for name, array in arrays.items()}
    own = {"vocabulary": "".join(map(chr, symbols))}
    data = Data(name, arrays, splits, _prepare, info={"num_classes": len(symbols)}, fitted=own)
    return data if fitted is None else data.refitted(fitted)


def _blocks(num_windows: int, seed: int) -> tuple[np.ndarray, dict[str, range]]:
    """Return the windows of each split, split after split, and where each split is among them."""
    num_blocks = min(_NUM_BLOCKS, num_windows // 2)  # one window of a block may be left out
    tenth = max(1, round(0.1 * num_blocks))
    kinds = np.full(num_blocks, 0)
    drawn = random_order(num_blocks, seed)
    kinds[drawn[:tenth]], kinds[drawn[tenth : 2 * tenth]] = 2, 1
    kind = kinds[np.arange(num_windows) * num_blocks // num_windows]
    before_another = np.append(kind[1:] != kind[:-1], False)
    rows = [np.flatnonzero((kind == number) & ~before_another) for number in range(3)]
    stops = np.cumsum([len(part) for part in rows]).tolist()
    ranges = map(range, [0, *stops], stops)
    return np.concatenate(rows), dict(zip(("train", "validation", "test"), ranges, strict=True))


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


def _tokens(points: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    table = np.zeros(int(symbols.max()) + 1, dtype=np.int32)
    table[symbols] = np.arange(len(symbols))
    dtype = np.uint8 if len(symbols) <= 1 << 8 else np.uint16 if len(symbols) <= 1 << 16 else np.int32
    return table.astype(dtype)[points]


def _prepare(batch: Any) -> Any:
    return with_cast_targets({**batch, "inputs": jnp.asarray(batch["inputs"]).astype(jnp.int32)})
