"""Curves as a CSV file: a row for each step, a column for each number."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelnet.arguments import path as checked_path
from accelnet.disk import write_atomically


class CsvTracker:
    """Write the curves of a run into a CSV file, which is whole at every instant.

    Args:
        path: The file. A run that goes on adds to what it holds.

    Raises:
        UserError: if the path is none.

    Example:
        >>> import tempfile
        >>> tracker = CsvTracker(Path(tempfile.mkdtemp()) / "run.csv")
        >>> _ = tracker.start({}, "toy", None)
        >>> tracker.log(5, {"train/loss": 0.5})
        >>> tracker.path.read_text().splitlines()
        ['step,train/loss', '5,0.5']
    """

    name = "csv"

    def __init__(self, path: str | Path) -> None:
        self.path = checked_path("path", path)
        self._rows: list[dict[str, Any]] = []

    def start(self, config: Mapping[str, Any], name: str, resume_id: str | None) -> str:
        """Begin, or go on with the rows that are there."""
        if resume_id is not None and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                self._rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
        return str(self.path.absolute())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row."""
        self._rows.append({"step": step, **values})
        text = io.StringIO()
        columns = dict.fromkeys(name for row in self._rows for name in row)
        rows = csv.DictWriter(text, list(columns), lineterminator="\n")
        rows.writeheader()
        rows.writerows(self._rows)
        write_atomically(self.path, text.getvalue())

    def file(self, path: Path) -> None:
        """Do nothing: files stay where they are."""

    def finish(self, status: str) -> None:
        """Do nothing: the file is whole."""
