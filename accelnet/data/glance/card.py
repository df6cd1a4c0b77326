"""A data set in a notebook: its outline as a table, and a few examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet.data.glance.examples import examples
from accelnet.data.glance.outline import labels_of, outline, outline_text
from accelnet.report.examples import example_table, shown_example
from accelnet.report.markup import Markup, joined, tag

_MOST_EXAMPLES = 12
# A notebook has a background of its own, light or dark: the text's colour is the only one that is readable on it.
_STYLE = """
.accelnet-data pre{margin:0 0 .5em;white-space:pre-wrap;color:inherit;background:none}
.accelnet-data>div{display:flex;flex-wrap:wrap;gap:.75em}
.accelnet-data figure{margin:0;width:8.5em;font-size:.85em;overflow-wrap:anywhere}
.accelnet-data figure.wide{width:16em}.accelnet-data small{display:block;opacity:.7}
.accelnet-data img{width:100%;image-rendering:pixelated}.accelnet-data svg{width:100%;overflow:visible}
.accelnet-data text{fill:currentColor;font-size:12px;opacity:.7}.accelnet-data h4{margin:0}
.accelnet-data path{fill:none;stroke:currentColor;stroke-opacity:.25;stroke-width:.6}
.accelnet-data path.line{stroke:var(--c);stroke-opacity:1;stroke-width:2.5}
.accelnet-data th,.accelnet-data td{text-align:left;padding:.1em .8em .1em 0}.accelnet-data p{margin:0}
.accelnet-data .table{min-width:0;max-width:100%}.accelnet-data .scroll{overflow-x:auto}
.accelnet-data circle{fill:var(--c)}
.accelnet-data .c0{--c:#0072b2}.accelnet-data .c1{--c:#e69f00}.accelnet-data .c2{--c:#009e73}
.accelnet-data .c3{--c:#cc79a7}.accelnet-data .c4{--c:#56b4e9}.accelnet-data .c5{--c:#d55e00}
"""


def card(data: Any) -> str:
    """Return a data set as HTML for a notebook; at most 12 rows are read, of a stream from its first batch.

    Args:
        data: A `Data`.

    Raises:
        UserError: if a row that is read is not as the data says.

    Example:
        >>> import accelnet as an
        >>> card(an.data.xor()).startswith('<div class="accelnet-data"><style>')
        True
    """
    rows = _rows(data)
    found = examples(data, data.raw(rows), rows)
    shown = [example_table(found, "Rows of train.")] if "inputs" in found[0] else map(_example, found)
    return joined(tag(
        "div", tag("style", Markup(_STYLE)), tag("pre", outline_text(outline(data))), tag("div", *shown),
        class_="accelnet-data",
    ))  # fmt: skip


def _rows(data: Any) -> np.ndarray:
    """Choose training rows: the first of each class where targets are in memory, else the first."""
    train, targets = data.splits["train"], data.arrays["targets"]
    first = np.arange(train.start, min(train.stop, train.start + _MOST_EXAMPLES))
    if data.num_rows and isinstance(targets, np.ndarray):
        labels = labels_of(data, targets[train.start : train.stop])
        if labels is not None:
            chosen = train.start + np.sort(np.unique(labels, return_index=True)[1])[:_MOST_EXAMPLES]
            return np.concatenate([chosen, np.setdiff1d(first, chosen)])[:_MOST_EXAMPLES]
    return first


def _example(one: Mapping[str, Any]) -> Markup:
    kind = "" if "picture" in one else "wide"
    return tag("figure", shown_example(one), tag("b", one["target"]), tag("small", f"row {one['row']:,}"), class_=kind)
