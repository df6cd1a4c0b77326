"""What `find-batch` shows: report.html, the noise scale along the training."""

from collections.abc import Mapping
from typing import Any

from accelnet.report.charts import ACROSS, chart, dots, linear_axis, log_axis, path, ranges
from accelnet.report.document import document
from accelnet.report.markup import Markup, figure, legend, section, sentences, table, tag, verdict
from accelnet.report.numbers import number, short
from accelnet.wording import size


def page(found: Mapping[str, Any]) -> str:
    """Return the report as a page of its own, from the values of `BatchSizes.to_dict`."""
    rows = []
    for scale in found["scales"]:
        ends = (scale[name] for name in ("value", "low", "high"))
        rows.append([f"{scale['step']:,}", *("unknown" if end is None else short(end) for end in ends)])
    title = f"Batch size of {found['experiment']}"
    fits = f"The largest batch that fits, {found['largest']:,} examples, takes {size(found['largest_bytes'])}"
    names = {"c0": "noise scale", "c1": f"the batch of {found['batch_size']}"}
    body = [
        tag("h1", title),
        verdict(*sentences(found["reason"])),
        section(
            "Along the training",
            *([figure("Gradient noise scale", _chart(found), legend(names))] if _known(found) else []),
            table("Examples, with 95 % intervals", ["step", "noise scale", "from", "to"], rows),
        ),
        tag("p", f"{fits} of {size(found['limit_bytes'])}."),
    ]
    return document(title, body)


def _known(found: Mapping[str, Any]) -> list[tuple[int, float, float, float]]:
    scales = [(s["step"], s["value"], s["low"], s["high"]) for s in found["scales"]]
    return [scale for scale in scales if None not in scale]


def _chart(found: Mapping[str, Any]) -> Markup:
    points = _known(found)
    x = linear_axis("step", [0, *(step for step, *_ in points)], number, ACROSS)
    y = log_axis("examples", [found["batch_size"], *(value for _, *values in points for value in values)], short)
    values = [(step, value) for step, value, _, _ in points]
    shapes = [
        *ranges(x, y, [(step, low, high) for step, _, low, high in points], "c0"),
        path(x, y, values, "line c0"),
        *dots(x, y, values, "c0", 3.5),
        path(x, y, [(end, found["batch_size"]) for end in (x.low, x.high)], "line c1"),
    ]
    return chart("Gradient noise scale", found["reason"], x, y, shapes)
