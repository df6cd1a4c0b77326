"""Examples of data as parts of a page."""

from collections.abc import Mapping
from typing import Any

from accelnet.report.charts import ACROSS, linear_axis, lines
from accelnet.report.document import NUM_COLORS
from accelnet.report.markup import Markup, tag
from accelnet.report.numbers import number, short

Values = Mapping[str, Any]  # of JSON


def shown_example(one: Values) -> Markup:
    """Return the inputs of an example: a picture, a text, a chart of a series, or a list of numbers and names."""
    if "picture" in one:
        return tag("img", src=one["picture"], alt=f"row {one['row']}")
    if "text" in one:
        return tag("pre", one["text"])
    if "series" in one:
        return _series(one)
    return tag("small", "; ".join(f"{name} {value_words(value)}" for name, value in one["inputs"].items()))


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
