"""A description of a data set as text for a terminal."""

import textwrap
from collections.abc import Mapping
from typing import Any

from accelnet.characters import visible
from accelnet.data.glance.outline import outline_text
from accelnet.terminal import columns


def description_text(values: Mapping[str, Any]) -> str:
    """Return a description as text: the outline, what was read, and what was found.

    Args:
        values: JSON values, as of `Description`.
    """
    lines, width = [outline_text(values)], min(columns(), 100)
    if read := partly_read(values):
        lines += textwrap.wrap(f"{read} were read", width)
    found = values["findings"]
    lines += ["", f"{len(found)} findings" if len(found) != 1 else "1 finding"] if found else ["", "nothing was found"]
    for number, one in enumerate(found, 1):
        words = " ".join(visible(f"{one['name']}: {one['text']}").split())
        lines += textwrap.wrap(words, width, initial_indent=f"{number:2}. ", subsequent_indent="    ")
        lines += textwrap.wrap(visible(one["advice"]), width, initial_indent="    -> ", subsequent_indent="       ")
    return "\n".join(lines)


def partly_read(values: Mapping[str, Any]) -> str:
    """Return in words how many rows of each split were read, nothing where all were.

    Example:
        >>> partly_read({"splits": {"train": 5000, "test": 2}, "read": {"train": 1000, "test": 2}})
        '1,000 of 5,000 rows of train'
    """
    parts = [(split, rows, values["splits"][split]) for split, rows in values["read"].items()]
    return ", ".join(f"{rows:,} of {every:,} rows of {split}" for split, rows, every in parts if rows < every)
