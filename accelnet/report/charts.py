"""Charts as SVG. The page gives the colours, light and dark."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from accelnet.report.markup import Markup, tag
from accelnet.report.numbers import short

# Sides of the axes in a picture 360 wide: narrow, so that its text is readable on a phone.
ACROSS, UP = (44.0, 350.0), (214.0, 24.0)


class Axis(NamedTuple):
    """Axis of a chart, from `start` to `stop` in the picture; `base` is the base of its logarithm, 0 for none."""

    name: str
    low: float
    high: float
    text: Callable[[float], str]
    base: int
    start: float
    stop: float

    def at(self, value: float) -> float:
        """Return the place of a value in the picture; values beyond the ends lie at the end."""
        share = (value - self.low) / (self.high - self.low)
        if self.base:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return round(self.start + (self.stop - self.start) * min(max(share, 0.0), 1.0), 1)

    def ticks(self) -> list[float]:
        """Return the values that have a line and a number, about six."""
        if not self.base:
            rough = (self.high - self.low) / 6
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            return [number * step for number in range(first, last + 1)]
        low, high = math.floor(math.log(self.low, self.base)), math.ceil(math.log(self.high, self.base))
        between = (1, 2, 5) if self.base == 10 and high - low <= 3 else (1,)
        ticks = [step * float(self.base) ** power for power in range(low, high + 1) for step in between]
        ticks = [tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001]
        return ticks[:: math.ceil(len(ticks) / 7)]


def log_axis(
    name: str, values: Iterable[float], text: Callable[[float], str], side: tuple[float, float] = UP, base: int = 10
) -> Axis:
    """Return a logarithmic axis with room for the values above 0."""
    made = [value for value in values if value > 0] or [1.0]
    low, high = min(made) / 1.2, max(made) * 1.2
    room = max(1.0, math.sqrt(8 / (high / low)))  # enough for two numbers along it
    return Axis(name, low / room, high * room, text, base, *side)


def linear_axis(
    name: str, values: Iterable[float], text: Callable[[float], str], side: tuple[float, float] = UP
) -> Axis:
    """Return an axis with a little room around the finite values.

    Example:
        >>> linear_axis("", [0.0, 10.0, math.nan], str).ticks()
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    made = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(made), max(made)
    room = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(name, low - room, high + room, text, 0, *side)


def value_axis(values: Sequence[float]) -> Axis:
    """Return the upward axis of the values of curves, which a few values far from all others do not flatten.

    It is logarithmic where most values are small beside the largest. Otherwise it shows the middle 90 % with half of
    their spread on either side, if that is less than a third of the whole; what lies beyond is drawn at its end.

    Example:
        >>> value_axis([2.3, 0.4, 0.2, 0.15, 0.12, 0.1]).base, value_axis([0.1, 0.8, 0.9, 0.95, 0.97]).base
        (10, 0)
        >>> value_axis([-300.0, *np.linspace(0.8, 0.9, 30)]).ticks()[0] > 0
        True
    """
    found = np.array([value for value in values if math.isfinite(value)] or [0.0])
    low, high, spread = found.min(), found.max(), np.ptp(found)
    if low > 0 and high > 3 * low and np.median(found) < low + 0.2 * spread:
        return log_axis("", values, short)
    first, last = np.quantile(found, (0.05, 0.95))
    if 0 < 2 * (last - first) < spread / 3:
        room = (last - first) / 2
        return linear_axis("", [max(low, first - room), min(high, last + room)], short)
    return linear_axis("", values, short)


def path(x: Axis, y: Axis, points: Iterable[tuple[float, float]], kind: str) -> Markup:
    """Draw a line through points."""
    return tag("path", d="M" + "L".join(f"{x.at(a)} {y.at(b)}" for a, b in points), class_=kind)


def chart(title: str, words: str, x: Axis, y: Axis, shapes: Iterable[Markup]) -> Markup:
    """Draw axes with shapes between them; `words` describe them for a person who cannot see."""
    (left, right), (bottom, top) = ACROSS, UP
    axes = [tag("text", y.name, x=0, y=11), tag("text", x.name, x=right, y=bottom + 31, text_anchor="end")]
    for tick in x.ticks():
        axes.append(tag("path", d=f"M{x.at(tick)} {top:g}V{bottom:g}"))
        axes.append(tag("text", x.text(tick), x=x.at(tick), y=bottom + 15, text_anchor="middle"))
    for tick in y.ticks():
        axes.append(tag("path", d=f"M{left:g} {y.at(tick)}H{right:g}"))
        axes.append(tag("text", y.text(tick), x=left - 5, y=y.at(tick) + 4, text_anchor="end"))
    told = (tag("title", title), tag("desc", words))
    above, below = 0 if y.name else 14, 248 if x.name else 234
    return tag("svg", *told, *axes, *shapes, viewBox=f"0 {above} 360 {below - above}", role="img")


Line = tuple[str, str, Sequence[tuple[float, float]]]
_LONGEST = 16  # letters of a name beside a matrix
_MARKED = 30  # points of a line that are few enough to be marked


def lines(title: str, x: Axis, y: Axis, series: Iterable[Line]) -> Markup:
    """Draw lines, each a class, a name and points; lines of class "ideal" have no marks."""
    shapes, words = [], []
    for kind, name, points in series:
        if kind == "ideal":
            shapes.append(path(x, y, points, kind))
            continue
        shapes.append(path(x, y, points, f"line {kind}"))
        few = len(points) <= _MARKED
        shapes += dots(x, y, points, kind, 3.5) if few else []
        told = points if few else [points[0], points[-1]]
        words.append(f"{name}: {', '.join(f'{y.text(b)} with {a:,}' for a, b in told)}")
    return tag("div", tag("h4", title), chart(title, "; ".join(words), x, y, shapes))


def dots(x: Axis, y: Axis, points: Iterable[tuple[float, float]], kind: str, radius: float = 2.0) -> list[Markup]:
    """Draw the finite points."""
    return [
        tag("circle", class_=kind, cx=x.at(a), cy=y.at(b), r=radius)
        for a, b in points
        if math.isfinite(a) and math.isfinite(b)
    ]


def ranges(x: Axis, y: Axis, spans: Iterable[tuple[float, float, float]], kind: str) -> list[Markup]:
    """Draw intervals, a line from low to high for each (x, low, high)."""
    return [path(x, y, [(at, low), (at, high)], f"line {kind}") for at, low, high in spans]


def histogram(title: str, name: str, counts: Sequence[int], edges: Sequence[float], kind: str = "c0") -> Markup:
    """Draw the counts of values between edges; there is one edge more than counts."""
    x = linear_axis(name, edges, short, ACROSS)
    y = Axis("", 0.0, max([*counts, 1]), short, 0, *UP)
    shapes = [
        tag(
            "rect", class_=kind, x=x.at(left), y=y.at(count), width=round(x.at(right) - x.at(left), 1),
            height=round(UP[0] - y.at(count), 1),
        )
        for count, (left, right) in zip(counts, pairwise(edges), strict=True)
    ]  # fmt: skip
    words = f"{sum(counts):,} values from {short(edges[0])} to {short(edges[-1])}"
    return tag("div", tag("h4", title), chart(title, words, x, y, shapes))


def matrix(title: str, words: str, counts: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Draw how often each row's name was predicted as each column's, as shares of the row."""
    size = len(counts)
    labels = [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…" for name in names]
    longest = max(map(len, labels))
    left = top = 34.0 + 6.0 * max(0, longest - 3)
    cell = (354.0 - left) / size
    upright = longest <= 3
    shapes = [
        tag("text", "predicted", x=left + (354.0 - left) / 2, y=12, text_anchor="middle"),
        tag("text", "true", x=0, y=12),
    ]
    numbered = size <= 12
    every = max(1, math.ceil(size / 25))
    for a, row in enumerate(counts):
        place, total = round((a + 0.5) * cell, 1), sum(row) or 1
        if a % every == 0:
            shapes.append(tag("text", labels[a], x=left - 5, y=round(top + place + 4, 1), text_anchor="end"))
            x, y = round(left + place + (0 if upright else 4), 1), top - 6
            how = {"text_anchor": "middle"} if upright else {"transform": f"rotate(-90 {x} {y})"}
            shapes.append(tag("text", labels[a], x=x, y=y, **how))
        for b, count in enumerate(row):
            spot = {"x": round(left + b * cell, 1), "y": round(top + a * cell, 1)}
            box = {"width": round(cell, 1), "height": round(cell, 1), "class": f"cell {'c0' if a == b else 'c5'}"}
            told = tag("title", f"{names[a]} as {names[b]}: {count:,} of {total:,}")
            # Mistakes are few: only their square root is visible.
            shapes.append(tag("rect", told, fill_opacity=round(math.sqrt(count / total), 2), **spot, **box))
            if numbered and count:
                middle = {"x": round(left + (b + 0.5) * cell, 1), "y": round(top + place + 4, 1)}
                shapes.append(tag("text", short(count), text_anchor="middle", class_="name", **middle))
    described = (tag("title", title), tag("desc", words))
    return tag("svg", *described, *shapes, viewBox="0 0 360 360", role="img")


def bar(
    title: str, parts: Sequence[tuple[str, str, float]], whole: float, mark: float = 0.0, kind: str = "bar"
) -> Markup:
    """Draw (class, words, value) one after the other, in a bar whose width is `whole`."""
    at, shapes = 0.0, []
    for name, words, value in parts:
        width = 1000 * value / whole if whole else 0.0
        shapes.append(tag("rect", tag("title", words), class_=name, x=f"{at:.1f}", width=f"{width:.1f}", height=20))
        at += width
    if mark and whole:
        shapes.append(tag("path", d=f"M{1000 * mark / whole:.1f} -4V24", class_="mark"))
    described = tag("desc", "; ".join(words for _, words, _ in parts))
    box = {"viewBox": "0 0 1000 20", "preserveAspectRatio": "none", "role": "img", "class": kind}
    return tag("svg", tag("title", title), described, *shapes, **box)
