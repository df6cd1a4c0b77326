"""Examples of data as parts of a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelnet.report.charts import ACROSS, linear_axis, lines
from accelnet.report.document import NUM_COLORS
from accelnet.report.markup import Markup, table, tag
from accelnet.report.numbers import number, short

Values = Mapping[str, Any]  # of JSON


def shown_example(one: Values) -> Markup:
    """Return the inputs of an example: a picture, a text or a chart of a series; nothing where it is none of these."""
    if "picture" in one:
        return tag("img", src=one["picture"], alt=f"row {one['row']}")
    if "text" in one:
        return tag("pre", one["text"])
    if "series" in one:
        return _series(one)
    return Markup()


def example_table(examples: Sequence[Values], caption: str) -> Markup:
    """Make a table of examples that are numbers and names.

    Args:
        examples: Examples, each with "row", "target" and "inputs" of the same names; at least one.
        caption: Text above it.
    """
    names = list(examples[0]["inputs"])
    rows = [
        (f"{one['row']:,}", one["target"], *(value_words(one["inputs"][name]) for name in names)) for one in examples
    ]
    return table(caption, ("row", "target", *names), rows, (1,))


def value_words(value: Any) -> str:
    """Return a number or a name in words.

    Example:
        >>> value_words(0.123456), value_words("blue")
        ('0.1235', 'blue')
    """
    return number(value) if isinstance(value, int | float) else str(value)


def _series(one: Values) -> Markup:
    series = [part for part in one["series"] if part] or [[0.0]]
    x = linear_axis("step", range(len(series[0])), short, ACROSS)
    y = linear_axis("", [value for part in series for value in part], short)
    kinds = [(f"c{place % NUM_COLORS}", f"dimension {place}") for place in range(len(series))]
    return lines("", x, y, [(*kind, list(enumerate(part))) for kind, part in zip(kinds, series, strict=True)])
