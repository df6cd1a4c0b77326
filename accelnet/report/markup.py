"""HTML and SVG as text that escapes what is put into it."""

import html
from collections.abc import Iterable, Mapping, Sequence

from accelnet.characters import visible

_SHAPES = frozenset({"circle", "image", "path", "rect"})  # that HTML lets close themselves
_VOID = frozenset({"img", "input"})  # that have no end


class Markup(str):
    """Markup; every other text is escaped where it is put into some."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """Make an element.

    Args:
        name: Name of the element.
        *children: Markup, or text, which is escaped.
        **attributes: Attributes; `class_` and `aria_label` stand for class and aria-label.

    Example:
        >>> tag("p", "1 < 2", class_="note")
        '<p class="note">1 &lt; 2</p>'
    """
    told = "".join(f' {key.strip("_").replace("_", "-")}="{_escaped(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{told}>")
    inner = joined(*children)
    return Markup(f"<{name}{told}/>" if name in _SHAPES and not inner else f"<{name}{told}>{inner}</{name}>")


def _escaped(text: object) -> str:
    return html.escape(visible(str(text)))


def joined(*children: str) -> Markup:
    """Join markup and text, which is escaped."""
    return Markup("".join(child if isinstance(child, Markup) else _escaped(child) for child in children))


def verdict(text: str, *told: str) -> Markup:
    """Make what a page says first, and below it how that was found.

    Args:
        text: Answer, a sentence or two.
        *told: What stands behind it.

    Example:
        >>> verdict("It fits.", "2 targets were tried.")
        '<p class="verdict">It fits.</p><p>2 targets were tried.</p>'
    """
    return joined(tag("p", text, class_="verdict"), *([tag("p", *told)] if any(told) else []))


def sentences(text: str) -> tuple[str, str]:
    """Return the first sentence of a text, and the others.

    Example:
        >>> sentences("Take 0.1. It is best.")
        ('Take 0.1.', 'It is best.')
    """
    first, _, others = text.partition(". ")
    return (f"{first}.", others) if others else (first, "")


def section(title: str, *children: str) -> Markup:
    """Make a section of a page with its heading; nothing if it is empty."""
    return tag("section", tag("h2", title), *children, Markup("\n")) if any(children) else Markup()


def grid(children: Iterable[str]) -> Markup:
    """Place figures side by side where there is room."""
    made = list(children)
    return tag("div", *made, class_="grid") if made else Markup()


def figure(title: str, *children: str, caption: str = "") -> Markup:
    """Make a card: a heading, pictures, and a caption."""
    told = [tag("figcaption", caption)] if caption else []
    return tag("figure", *([tag("h3", title)] if title else []), *children, *told)


def legend(names: Mapping[str, str]) -> Markup:
    """Make a legend of colours: names by class."""
    return tag("ul", *(tag("li", tag("i", class_=key), name) for key, name in names.items()), class_="legend")


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = ()) -> Markup:
    """Make a table that scrolls inside its own box.

    Args:
        caption: Text above it, which screen readers read too.
        head: Names of the columns.
        rows: Cells, text or markup; the first of a row is its heading.
        words: Columns with words instead of numbers, beside the first.
    """
    kinds = ["w" if column in words else "n" if column else "" for column in range(len(head))]
    tags = [("td", {"class": kind}) if kind else ("th", {"scope": "row"}) for kind in kinds]
    lines = (tag("tr", *(tag(name, cell, **how) for cell, (name, how) in zip(row, tags, strict=True))) for row in rows)
    heads = (
        tag("th", name, scope="col", **({"class": kind} if kind else {}))
        for name, kind in zip(head, kinds, strict=True)
    )
    made = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *lines))
    box = tag("div", made, class_="scroll", tabindex=0, role="region", aria_label=caption)
    return tag("div", tag("p", caption, class_="caption"), box, class_="table")


def noted(text: str, note: str, **attributes: object) -> Markup:
    """Add a note in small letters below a text."""
    return joined(tag("span", text, **attributes), tag("small", note))
