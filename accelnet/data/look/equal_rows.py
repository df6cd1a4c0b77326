"""Rows that are equal: in two splits, within one, and with different targets."""

import hashlib
from collections.abc import Mapping
from itertools import combinations, islice
from typing import Any

import numpy as np

from accelnet.data.arrays import leaves
from accelnet.data.look.finding import Finding, place_of
from accelnet.data.look.reading import SplitRows, blocks

_NAMED = 3  # pairs of rows


def equal_rows(data: Any, held: Mapping[str, SplitRows]) -> list[Finding]:
    """Find rows whose inputs are equal.

    Args:
        data: A `Data`.
        held: Rows by split.

    Returns:
        Findings: rows of one split that another has, rows that the training split has twice, and those of them whose
        targets differ.

    Example:
        >>> import accelnet as an
        >>> from accelnet.data.look.reading import read_splits
        >>> data = an.data.from_arrays(np.ones((10, 2)), np.arange(10.0), test=0)
        >>> [finding.name for finding in equal_rows(data, read_splits(data, 10, lambda text: None))]
        ['equal rows in two splits', 'duplicates', 'equal inputs with different targets']
    """
    inputs = {split: _hashes(one.arrays["inputs"], len(one.rows)) for split, one in held.items()}
    targets = {split: _hashes(one.arrays["targets"], len(one.rows)) for split, one in held.items()}
    found = []
    for first, second in combinations(held, 2):
        at, where = np.unique(inputs[first], return_index=True)
        place = np.minimum(np.searchsorted(at, inputs[second]), len(at) - 1)
        rows = np.flatnonzero(at[place] == inputs[second])
        if len(rows):
            twins = where[place[rows]]
            pairs = zip(held[second].rows[rows].tolist(), held[first].rows[twins].tolist(), strict=True)
            named = ", ".join(f"{place_of(data, a)} = {place_of(data, b)}" for a, b in islice(pairs, _NAMED))
            same = np.isin(_both(inputs[second], targets[second])[rows], _both(inputs[first], targets[first])).sum()
            found.append(Finding(
                "equal rows in two splits", len(rows),
                f"{len(rows):,} of {len(inputs[second]):,} rows of {second} have the inputs of a row of {first}, "
                f"{same:,} of them with its target: {named}{', ...' if len(rows) > _NAMED else ''}{_partly(held)}",
                f"remove them from one of the splits, or keep equal rows in one: metrics of {second} may be too good",
            ))  # fmt: skip
    return found + _within(data, held, inputs["train"], targets["train"])


def _within(data: Any, held: Mapping[str, SplitRows], inputs: np.ndarray, targets: np.ndarray) -> list[Finding]:
    _, first, kind, counts = np.unique(inputs, return_index=True, return_inverse=True, return_counts=True)
    repeated = len(inputs) - len(first)
    if not repeated:
        return []
    rows = held["train"].rows
    again = np.setdiff1d(np.arange(len(inputs)), first)[:_NAMED]
    pairs = zip(rows[again].tolist(), rows[first[kind[again]]].tolist(), strict=True)
    named = ", ".join(f"{place_of(data, a)} = {place_of(data, b)}" for a, b in pairs)
    found = [Finding(
        "duplicates", repeated,
        f"{repeated:,} of {len(inputs):,} rows of train have the inputs of an earlier one: {named}"
        f"{', ...' if repeated > _NAMED else ''}{_partly(held)}",
        "keep one of each, unless they are observations of their own",
    )]  # fmt: skip
    differing = np.bincount(kind[np.unique(_both(inputs, targets), return_index=True)[1]], minlength=len(first)) > 1
    if differing.any():
        among, example = int(counts[differing].sum()), int(first[np.argmax(differing)])
        found.append(Finding(
            "equal inputs with different targets", among,
            f"{among:,} of {len(inputs):,} rows of train have the inputs of another one and a different target, such "
            f"as {place_of(data, rows[example])}{_partly(held)}",
            "correct or remove wrong targets; where they are right, the inputs do not determine the target",
        ))  # fmt: skip
    return found


def _hashes(tree: Any, num_rows: int) -> np.ndarray:
    """Return a number for each row, uint64 [n], of the bytes of all its arrays."""
    parts = [blocks(array) for _, array in leaves(tree)]
    # Arrays of wide rows have shorter blocks than others beside them: each is hashed alone, then what comes of it.
    columns = [np.concatenate([_hashed(block) for block in part]) for part in parts]
    together = columns[0] if len(columns) == 1 else _hashed(np.stack(columns, axis=1))
    assert len(together) == num_rows
    return together


def _hashed(block: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(block).reshape(len(block), -1).view(np.uint8)
    # 64 bits: among ten million rows, two are taken for equal by chance once in 400,000 data sets.
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, np.uint64)


def _both(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return _hashed(np.stack([inputs, targets], axis=1))


def _partly(held: Mapping[str, SplitRows]) -> str:
    if all(one.is_whole for one in held.values()):
        return ""
    return f" (among {', '.join(f'{len(one.rows):,} rows of {split}' for split, one in held.items())} that were read)"
