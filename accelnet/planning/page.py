"""A plan as one HTML page: tables, memory bars, rooflines and scaling, without scripts or anything from elsewhere."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from accelnet.planning.report import amount, duration, size

# Okabe and Ito's palette, which differs for colour-blind people too.
_COLORS = {
    "weights": "#0072B2", "optimizer": "#56B4E9", "model_state": "#009E73", "data": "#F0E442", "gradients": "#E69F00",
    "activations": "#D55E00", "rest": "#999999", "compute": "#0072B2", "memory": "#E69F00", "communication": "#D55E00",
    "launch": "#999999",
}  # fmt: skip
_PARTS = ("weights", "optimizer", "model_state", "data", "gradients", "activations")
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --faint: #8886; --accent: #0072B2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #16181b; --accent: #6cc0f0; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  padding: 1rem; max-width: 70rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--faint); }
td.number { text-align: right; white-space: nowrap; } td.name { white-space: nowrap; font-weight: 600; }
.no { color: #D55E00; font-weight: 600; } small { opacity: .75; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; opacity: .8; }
svg { width: 100%; height: auto; max-width: 48rem; display: block; } svg text { fill: var(--ink); font-size: 12px; }
.axis { stroke: var(--faint); fill: none; } .roof { stroke: var(--ink); fill: none; stroke-width: 1.5; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; vertical-align: -.05em; }
details { margin: .4rem 0; } summary { cursor: pointer; }
"""


def plan_page(values: Mapping[str, Any]) -> str:
    """Return a plan as a self-contained page, readable in light and dark and on a phone.

    Args:
        values: what `Plan.to_dict` gives, or plan.json holds.

    Returns:
        HTML.

    Example:
        >>> page = plan_page(
        ...     {
        ...         "experiment": "digits",
        ...         "steps": 10,
        ...         "batch_size": 4,
        ...         "targets": [],
        ...         "scaling": [],
        ...         "choice": None,
        ...         "flops": {"forward": 1, "backward": 2, "optimizer": 3, "matrix_products": 2, "products": []},
        ...     }
        ... )
        >>> page.count("<h1>digits</h1>")
        1

    Source: original.
    """
    targets = values["targets"]
    known = [target for target in targets if target["memory"] is not None]
    flops = values["flops"]
    total = flops["forward"] + flops["backward"] + flops["optimizer"]
    parts = [
        f"<h1>{escape(values['experiment'])}</h1>",
        (
            f"<p>{values['steps']:,} steps of {values['batch_size']:,} examples, {amount(total)}FLOP a step: forward "
            f"{amount(flops['forward'])}, backward {amount(flops['backward'])}, optimizer "
            f"{amount(flops['optimizer'])}.</p>"
        ),
    ]
    if values["choice"] is not None:
        front = ", ".join(map(escape, values["choice"]["pareto"]))
        parts.append(
            f"<h2>What to rent</h2><p>{escape(values['choice']['reason'])}.</p>"
            + (f"<p>Each faster than the one before, and dearer: {front}.</p>" if front else "")
        )
    parts += ["<h2>Targets</h2>", _targets(targets)]
    parts += [_remedies(target) for target in targets if target["status"] == "does not fit"]
    if known:
        parts += ["<h2>Memory of a device</h2>", _memory(known)]
        parts += ["<h2>Where a step's time goes</h2>", _time(known)]
        parts += ["<h2>Rooflines</h2>", *[_roofline(target) for target in _one_per_device(known)]]
    if values["scaling"]:
        parts += ["<h2>Scaling</h2>", *[_scaling(family) for family in values["scaling"]]]
    parts += ["<h2>Details</h2>", *[_details(target) for target in known]]
    parts.append(
        "<h2>What the numbers are</h2><p>Memory, kernels and exchanges are <em>compiled</em> where the table says so: "
        "the target's own compiler counted them. Everything else is <em>modelled</em>: times from rates that are facts "
        "of the device, or <em>measured</em> where that was done; prices are list prices of the dates given.</p>"
    )
    title = f"Plan of {escape(values['experiment'])}"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _targets(targets: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for target in targets:
        name = f'<td class="name">{escape(target["name"])}</td>'
        memory, seconds = target["memory"], target["step_seconds"]
        if memory is None or seconds is None:
            rows.append(f'<tr>{name}<td class="no">?</td><td colspan="6">{escape(target["reason"])}</td></tr>')
            continue
        fits = "yes" if target["fits"] else '<span class="no">no</span>'
        usd, mfu = target["usd_per_run"], target["mfu"]
        rows.append(
            f"<tr>{name}<td>{fits}</td>"
            f'<td class="number">{size(memory["total_bytes"])} of {size(memory["limit_bytes"])}<br>'
            f"<small>{memory['source']}</small></td>"
            f'<td class="number">{duration(seconds["bound"])} to {duration(seconds["expected"])}<br>'
            f"<small>{escape(seconds['source'])}</small></td>"
            f"<td>{escape(target['bottleneck'])}</td>"
            f'<td class="number">{duration(target["run_seconds"])}</td>'
            f'<td class="number">{"" if usd is None else f"{usd:.2g}"}</td>'
            f'<td class="number">{"" if mfu is None else f"{100 * mfu:.2g} %"}</td></tr>'
        )
    head = "".join(f"<th>{name}</th>" for name in ("", "fits", "memory", "step", "limited by", "run", "USD", "MFU"))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _remedies(target: Mapping[str, Any]) -> str:
    items = [
        f"<li>{escape(remedy['change'])}: {size(remedy['total_bytes'])}, {remedy['slowdown']:.2f} times the time per "
        "example</li>"
        for remedy in target["remedies"]
    ]
    found = f"It fits with<ul>{''.join(items)}</ul>" if items else "Nothing that was tried makes it fit."
    return f"<p><strong>{escape(target['name'])}</strong> does not fit: {escape(target['reason'])}. {found}</p>"


def _key(names: Sequence[str]) -> str:
    return "".join(
        f'<span class="key" style="background:{_COLORS[name]}"></span>{name.replace("_", " ")}' for name in names
    )


def _bars(rows: Sequence[tuple[str, Sequence[tuple[str, float]], str]], most: Sequence[float], title: str) -> str:
    """Draw stacked bars, a row each: name, parts with their values, the text behind it, and the value of a full bar."""
    height, left, width = 26, 120, 420
    shapes = []
    for number, (name, parts, text) in enumerate(rows):
        top, x = number * height, float(left)
        shapes.append(f'<text x="{left - 8}" y="{top + 17}" text-anchor="end">{escape(name)}</text>')
        shapes.append(f'<rect class="axis" x="{left}" y="{top + 4}" width="{width}" height="{height - 8}"/>')
        for part, value in parts:
            length = width * value / most[number] if most[number] else 0.0
            shapes.append(
                f'<rect x="{x:.1f}" y="{top + 4}" width="{max(0.0, min(length, left + width - x)):.1f}" '
                f'height="{height - 8}" fill="{_COLORS[part]}"><title>{part.replace("_", " ")}</title></rect>'
            )
            x += length
        shapes.append(f'<text x="{left + width + 8}" y="{top + 17}">{escape(text)}</text>')
    return _svg(720, height * len(rows), shapes, title)


def _svg(width: float, height: float, shapes: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(shapes)}</svg>"
    )


def _memory(targets: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for target in targets:
        memory = target["memory"]
        parts = [(part, float(memory[f"{part}_bytes"])) for part in _PARTS]
        named = sum(value for _, value in parts)
        # Parts that are modelled may add up to more than the compiler's count; then their proportions are shown.
        shrink = min(1.0, memory["total_bytes"] / named) if named else 1.0
        parts = [(part, value * shrink) for part, value in parts]
        parts.append(("rest", max(0.0, memory["total_bytes"] - named)))
        share = 100 * memory["total_bytes"] / memory["limit_bytes"]
        rows.append((target["name"], parts, f"{size(memory['total_bytes'])}, {share:.0f} %"))
    most = [float(max(t["memory"]["total_bytes"], 1)) for t in targets]
    return (
        f"<figure>{_bars(rows, most, 'Memory of a device by what it holds')}<figcaption>{_key([*_PARTS, 'rest'])}<br>"
        "Each bar is that target's total; behind it the total and its share of what a program can use.</figcaption>"
        "</figure>"
    )


def _time(targets: Sequence[Mapping[str, Any]]) -> str:
    names = ("compute", "memory", "communication", "launch")
    rows = []
    for target in targets:
        limits = target["step_seconds"]["limits"]
        rows.append(
            (target["name"], [(n, limits.get(n, 0.0)) for n in names], duration(target["step_seconds"]["expected"]))
        )
    most = [max(sum(value for _, value in parts), 1e-12) for _, parts, _ in rows]
    return (
        f"<figure>{_bars(rows, most, 'Expected time of a step by what limits it')}<figcaption>{_key(names)}<br>"
        "The expected time, kernel by kernel, by what limits each.</figcaption></figure>"
    )


def _one_per_device(targets: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list({target["title"]: target for target in reversed(targets)}.values())[::-1]


def _roofline(target: Mapping[str, Any]) -> str:
    peak, bandwidth = target["peaks"]["flops"], target["peaks"]["bytes_per_second"]
    points = [
        (row["flops"] / row["bytes"], row["flops"] / row["seconds"], row)
        for row in target["kernels"]
        if row["flops"] and row["bytes"] and row["seconds"]
    ]
    ridge = peak / bandwidth
    xs = [point[0] for point in points] + [ridge / 30, ridge * 10]
    ys = [point[1] for point in points] + [peak * 2, peak / 1e4]
    plot = _Plot((min(xs), max(xs)), (max(min(ys), peak / 1e7), max(ys)))
    shapes = plot.axes("FLOP per byte", "FLOP/s")
    low, high = plot.x_range
    corners = [(low, low * bandwidth), (ridge, peak), (high, peak)]
    shapes.append(f'<polyline class="roof" points="{plot.path(corners)}"/>')
    most = max((row["seconds"] for _, _, row in points), default=1.0)
    for index, (x, y, row) in enumerate(sorted(points, key=lambda point: -point[2]["seconds"])):
        px, py = plot.place(x, y)
        radius = 3 + 11 * math.sqrt(row["seconds"] / most)
        shapes.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{radius:.1f}" fill="{_COLORS[row["limit"]]}" fill-opacity=".6">'
            f"<title>{escape(row['label'])}: {duration(row['seconds'])}, {amount(row['flops'])}FLOP</title></circle>"
        )
        if index < 2:
            shapes.append(f'<text x="{px + radius + 3:.1f}" y="{py + 4:.1f}">{escape(row["label"])}</text>')
    caption = (
        f"{escape(target['title'])}: {amount(peak)}FLOP/s, {amount(bandwidth)}B/s. Every matrix product of a step at "
        "its expected time; the area is its share of the time."
    )
    figure = _svg(plot.width, plot.height, shapes, f"Roofline of {target['title']}")
    return f"<figure>{figure}<figcaption>{caption} {_key(('compute', 'memory', 'launch'))}</figcaption></figure>"


def _scaling(family: Mapping[str, Any]) -> str:
    lines = {"fixed_global": "#0072B2", "fixed_per_device": "#D55E00"}
    points = {
        name: [(p["devices"], 100 * p[name]["efficiency"]) for p in family["points"] if name in p] for name in lines
    }
    every = [x for line in points.values() for x, _ in line]
    plot = _Plot((min(every), max(*every, 2 * min(every))), (0.0, 110.0), log_y=False)
    shapes = plot.axes("devices", "efficiency, %")
    for name, color in lines.items():
        if points[name]:
            shapes.append(
                f'<polyline points="{plot.path(points[name])}" fill="none" stroke="{color}" stroke-width="2"/>'
            )
            shapes += [
                f'<circle cx="{plot.place(*p)[0]:.1f}" cy="{plot.place(*p)[1]:.1f}" r="3" fill="{color}"/>'
                for p in points[name]
            ]
    last = family["points"][-1]
    batch = last["communication_batch"]
    takes_over = (
        f" On {last['name']}, exchanges take longer than work below {batch:,} examples a device." if batch else ""
    )
    key = "".join(
        f'<span class="key" style="background:{color}"></span>{text}'
        for color, text in zip(lines.values(), ("the same batch for all", "the same batch per device"), strict=True)
    )
    figure = _svg(plot.width, plot.height, shapes, f"Efficiency of {family['accelerator']} by number of devices")
    return (
        f"<figure>{figure}<figcaption>{escape(family['accelerator'])} ({escape(family['source'])}), from "
        f"{escape(family['from'])}.{escape(takes_over)} {key}</figcaption></figure>"
    )


class _Plot:
    """A plane with a logarithmic x axis, and a y axis that is one too unless told otherwise."""

    width, height, left, bottom = 640, 320, 70, 40

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float], *, log_y: bool = True) -> None:
        self.x_range = (x_range[0] / 1.15, x_range[1] * 1.15)
        self.y_range = (y_range[0] / 1.3, y_range[1] * 1.3) if log_y else y_range
        self.log_y = log_y

    def place(self, x: float, y: float) -> tuple[float, float]:
        low, high = map(math.log, self.x_range)
        across = (math.log(max(x, self.x_range[0])) - low) / (high - low)
        bottom, top = map(math.log, self.y_range) if self.log_y else self.y_range
        value = math.log(max(y, self.y_range[0])) if self.log_y else y
        up = (value - bottom) / (top - bottom)
        inner_width, inner_height = self.width - self.left - 10, self.height - self.bottom - 10
        return self.left + across * inner_width, 10 + (1 - min(max(up, 0.0), 1.0)) * inner_height

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join("{:.1f},{:.1f}".format(*self.place(*point)) for point in points)

    def axes(self, x_title: str, y_title: str) -> list[str]:
        x0, y0 = self.left, self.height - self.bottom
        shapes = [f'<path class="axis" d="M{x0} 10V{y0}H{self.width - 10}"/>']
        for x in _ticks(*self.x_range):
            px = self.place(x, self.y_range[0])[0]
            shapes.append(f'<text x="{px:.1f}" y="{y0 + 16}" text-anchor="middle">{_short(x)}</text>')
        for y in _ticks(*self.y_range) if self.log_y else (0.0, 25.0, 50.0, 75.0, 100.0):
            py = self.place(self.x_range[0], y)[1]
            shapes.append(f'<text x="{x0 - 6}" y="{py + 4:.1f}" text-anchor="end">{_short(y)}</text>')
            shapes.append(f'<path class="axis" d="M{x0} {py:.1f}H{self.width - 10}" stroke-dasharray="2 4"/>')
        middle = (self.left + self.width) / 2
        shapes.append(f'<text x="{middle:.0f}" y="{self.height - 4}" text-anchor="middle">{x_title}</text>')
        shapes.append(f'<text x="{x0 + 6}" y="20">{y_title}</text>')
        return shapes


def _ticks(low: float, high: float) -> list[float]:
    """Return powers of ten inside a range, of two where it is short; at most about eight."""
    base = 10.0 if high / low > 1000 else 2.0
    first, last = math.ceil(math.log(low, base)), math.floor(math.log(high, base))
    step = max(1, math.ceil((last - first + 1) / 8))
    return [base**power for power in range(first, last + 1, step)]


def _short(number: float) -> str:
    if number >= 1000:
        for prefix, unit in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if number >= unit:
                return f"{number / unit:.3g}{prefix}"
    return f"{number:.3g}"


def _details(target: Mapping[str, Any]) -> str:
    products = [row for row in target["kernels"] if row["products"]][:8]
    rows = "".join(
        f"<tr><td>{escape(row['label'])}</td><td>{' and '.join(_product(p) for p in row['products'][:2])}</td>"
        f'<td class="number">{row["count"]:,}</td><td class="number">{duration(row["seconds"])}</td>'
        f"<td>{row['limit']}</td></tr>"
        for row in products
    )
    sent = "".join(
        f"<li>{escape(c['kind'])} of {size(c['bytes'])} over {c['devices']} devices, {c['count']:,} times a step</li>"
        for c in target["collectives"]
    )
    head = "".join(f"<th>{name}</th>" for name in ("layer", "matrix product", "times", "seconds", "limited by"))
    price = (
        f"<p>{target['usd_per_hour']:.4g} USD an hour: {escape(target['price'])}</p>" if target["usd_per_hour"] else ""
    )
    missing = f"<p>Not compiled: {escape(target['missing'])}</p>" if target["missing"] else ""
    return (
        f"<details><summary>{escape(target['name'])}: {escape(target['title'])}, {target['devices']} device(s), mesh "
        f"{escape(target['mesh'])}</summary>{missing}{price}"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        + (f"<ul>{sent}</ul>" if sent else "")
        + "</details>"
    )


def _product(product: Sequence[Any]) -> str:
    m, n, k, batch, dtype = product
    times = f"{batch} x " if batch > 1 else ""
    return f"{times}[{m}, {k}] x [{k}, {n}] {escape(str(dtype))}"
