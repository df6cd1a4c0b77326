"""Rows of tables that wait as they came, and are encoded with all that are computed together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from accelnet.serving.limits import Refused, refusing
from accelnet.serving.sizes import Answers, Encoded, Sizes


@dataclass(frozen=True, eq=False)
class TableRows:
    """Hold rows of a table.

    Attributes:
        rows: Values by column.
        padded: No number of steps: these rows are not computed with others that are encoded already.
    """

    rows: Sequence[Mapping[str, Any]]
    padded: int = -1

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, first: int, last: int) -> "TableRows":
        """Return some of the rows."""
        return replace(self, rows=self.rows[first:last])


class Tables:
    """Compute batches of a model of tables: one pass over the columns encodes the rows of all requests in a batch.

    Args:
        sizes: What computes encoded rows.
        encode: Function of rows that returns an array [B, ...].

    Attributes:
        rows: Sizes of batches, rising.
    """

    def __init__(self, sizes: Sizes, encode: Callable[[list[Mapping[str, Any]]], np.ndarray]) -> None:
        self._sizes, self._encode, self.rows = sizes, encode, sizes.rows

    def compute(self, parts: Sequence[TableRows | Encoded]) -> list[Answers | Refused]:
        """Compute rows of several requests together.

        Args:
            parts: Rows of tables, or rows that are encoded already.

        Returns:
            Answers of each, arrays [B, ...] by name, or why there are none.
        """
        waiting = [part for part in parts if isinstance(part, TableRows)]
        found = self._encoded(waiting) if waiting else [part for part in parts if isinstance(part, Encoded)]
        good = [one for one in found if isinstance(one, Encoded)]
        answers = iter(self._sizes.compute(good) if good else ())
        return [next(answers) if isinstance(one, Encoded) else one for one in found]

    def _encoded(self, parts: Sequence[TableRows]) -> list[Encoded | Refused]:
        """Encode all rows at once; if that fails, each half of the requests, down to the one that is to blame."""
        try:
            with refusing():
                whole = self._encode([row for part in parts for row in part.rows])
        except Refused as error:
            if len(parts) == 1:
                return [error]
            half = len(parts) // 2
            return self._encoded(parts[:half]) + self._encoded(parts[half:])
        ends = np.cumsum([len(part) for part in parts])
        return [Encoded([one], 0, 0) for one in np.split(whole, ends[:-1])]
