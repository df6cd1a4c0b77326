"""A plan as one HTML page that needs nothing else: no scripts, fonts or pictures from elsewhere."""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from accelnet.planning.report import amount, duration, size

_PARTS = {
    "weights": "weights", "optimizer": "optimizer", "model_state": "model state", "gradients": "gradients",
    "activations": "activations", "data": "data", "rest": "the rest",
}  # fmt: skip
_LIMITS = {"compute": "compute", "memory": "memory traffic", "communication": "exchanges", "launch": "launches"}
_SOURCES = {
    "compiled": "are memory, kernels and exchanges where the target's own compiler counted them: {}.",
    "measured": "are the rates of devices on which parts of programs were timed: {}.",
    "modelled": "is the rest: times, and so cost and MFU, from kernels and rates; stated ones unless measured.",
}
_SHAPES = frozenset({"circle", "path", "rect"})  # that HTML lets close themselves
_NAMED = 5  # kernels of a roofline
# The palette of Okabe and Ito, which differs for colour-blind people too; every area has an outline besides.
_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f5f6f8;--ink:#1b1f24;--soft:#555d67;--line:#c9ced6;
--good:#00664b;--bad:#a33b00}
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--card:#1d2127;--ink:#e8eaed;--soft:#a9b1bb;--line:#434b55;
--good:#4fd6ab;--bad:#ff9d66}}.weights,.compute{--c:#0072b2}.optimizer,.per-device{--c:#56b4e9}
.model_state{--c:#f0e442}.rest{--c:#999}.gradients,.memory,.in-all{--c:#e69f00}
.activations,.communication{--c:#009e73}.data,.launch{--c:#cc79a7}*{box-sizing:border-box}
body{margin:0 auto;padding:.75rem;max-width:75rem;font:1rem/1.5 system-ui,sans-serif;color:var(--ink);
background:var(--paper);overflow-wrap:anywhere}h1{margin:.2em 0;font-size:1.7rem;line-height:1.2}
h2{margin:2em 0 .5em;font-size:1.3rem}h3,h4{margin:0 0 .4em;font-size:1rem}h4{font-size:.9rem}
p{max-width:48rem;margin:.5em 0}small,figcaption,.caption{color:var(--soft);font-size:.85rem}
small{display:block;font-weight:400}.good{color:var(--good)}.bad{color:var(--bad)}.good,.bad{font-weight:600}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1rem}
figure{margin:0 0 1rem;padding:.75rem;min-width:0;background:var(--card);border-radius:.5rem}.grid figure{margin:0}
figcaption{max-width:48rem;margin-top:.6em}ol{margin:.3em 0;padding-left:1.5em}.row{margin:.6em 0;font-size:.9rem}
.row b{margin-right:.6em}.scroll{overflow-x:auto;margin:.4em 0 1em}
table{border-collapse:collapse;font-size:.9rem;overflow-wrap:normal}
th,td{padding:.35em .9em .35em 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{color:var(--soft)}.n{text-align:right}td.n,.good,.bad{white-space:nowrap}tbody th{min-width:8rem}
.long{display:block;min-width:14rem}td.w{overflow-wrap:break-word}td.w:not(:has(.good,.bad),:empty){min-width:11rem}
.legend{display:flex;flex-wrap:wrap;gap:.2em 1.2em;margin:.5em 0;padding:0;list-style:none;font-size:.85rem}
i{display:inline-block;width:.9em;height:.9em;margin-right:.4em;vertical-align:-.1em;background:var(--c);
border:1px solid var(--ink)}i.mark{width:3px;height:1.1em;background:var(--ink);border:0}
i.ideal{height:0;border:0;border-top:2px dashed var(--soft);vertical-align:.25em}
svg{display:block;width:100%;max-width:27rem;overflow:visible}text{fill:var(--soft);font-size:12px}
.name{fill:var(--ink);font-weight:700;stroke:var(--card);stroke-width:3px;paint-order:stroke}
.bar{height:1.1rem;max-width:none;margin:.2em 0;background:var(--paper);outline:1px solid var(--line)}
.row .label{height:.5rem}rect,circle{fill:var(--c);stroke:var(--ink);stroke-width:.7;vector-effect:non-scaling-stroke}
circle{fill-opacity:.7}path{fill:none;stroke:var(--line);stroke-width:.6;vector-effect:non-scaling-stroke}
path.roof,path.mark{stroke:var(--ink);stroke-width:2}path.mark{stroke-width:3}
path.line{stroke:var(--c);stroke-width:2.5}path.ideal{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:5 4}
:focus-visible{outline:2px solid #0072b2}
details{margin:.5rem 0;padding:.6rem .75rem;background:var(--card);border-radius:.5rem}
summary{cursor:pointer;font-weight:600}@media(max-width:30rem){text{font-size:13px}}
"""


def plan_page(values: Mapping[str, Any]) -> str:
    """Return a plan as a page to read, in light and dark, on a screen and on a phone.

    Args:
        values: what `Plan.to_dict` gives, and plan.json holds.

    Returns:
        A whole HTML document. What comes from the plan is escaped; a browser that shows it asks nobody for anything.

    Example:
        >>> flops = {"forward": 1e9, "backward": 2e9, "optimizer": 0}
        >>> values = {"experiment": "<x>", "steps": 10, "batch_size": 32, "flops": flops, "targets": [], "scaling": []}
        >>> page = plan_page(values)
        >>> "<h1>&lt;x&gt;</h1>" in page, "3.00 GFLOP a step" in page
        (True, True)

    Source: original.
    """
    targets = values["targets"]
    known = [target for target in targets if target["memory"] is not None and target["step_seconds"] is not None]
    flops = values["flops"]
    parts = ", ".join(f"{name} {amount(flops[name])}" for name in ("forward", "backward", "optimizer"))
    total = sum(flops[name] for name in ("forward", "backward", "optimizer"))
    # Of each kind of device the first that fits, else the first.
    drawn = [t for t in sorted(known, key=lambda t: not t["fits"]) if t["kernels"] and t["peaks"]]
    drawn = {target["title"]: target for target in reversed(drawn)}
    body = [
        _tag("h1", values["experiment"]),
        _tag(
            "p",
            f"{values['steps']:,} steps of {values['batch_size']:,} examples, {amount(total)}FLOP a step ({parts}). "
            "What it would do on hardware that is not here.",
        ),
        _section("What to rent", _choice(values["choice"], targets) if values.get("choice") else ""),
        _section("Targets", _targets(targets)),
        _section("Memory of a device", _memory(known) if known else ""),
        _section("Rooflines", _grid(map(_roofline, reversed(drawn.values())))),
        _section("Where the time of a step goes", _legend(_LIMITS) if known else "", _grid(map(_time, known))),
        _section("More devices", *map(_scaling, values.get("scaling", ()))),
        _section("What would make it fit", *(_remedies(t) for t in targets if t["status"] == "does not fit")),
        _section("Details", *(_details(target, is_open=len(targets) == 1) for target in targets)),
        _section("Where the numbers come from", _sources(known)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"{_tag('title', 'Plan of ' + values['experiment'])}\n<style>{_STYLE}</style>\n</head>\n"
        f"{_tag('body', _tag('main', *body))}\n</html>\n"
    )


class _Markup(str):
    """Markup; every other text is escaped where it is put into some."""

    __slots__ = ()


def _tag(name: str, *children: str, **attributes: object) -> _Markup:
    told = "".join(
        f' {key.strip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    inner = "".join(child if isinstance(child, _Markup) else html.escape(str(child)) for child in children)
    return _Markup(f"<{name}{told}/>" if name in _SHAPES and not inner else f"<{name}{told}>{inner}</{name}>")


def _section(title: str, *children: str) -> str:
    return _tag("section", _tag("h2", title), *children, _Markup("\n")) if any(children) else ""


def _grid(children: Iterable[str]) -> str:
    made = list(children)
    return _tag("div", *made, class_="grid") if made else ""


def _legend(names: Mapping[str, str]) -> _Markup:
    return _tag("ul", *(_tag("li", _tag("i", class_=key), name) for key, name in names.items()), class_="legend")


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = ()) -> _Markup:
    """Make a table that scrolls inside its own box; `words` are the columns that hold no numbers, the first aside."""
    kinds = ["w" if column in words else "n" if column else "" for column in range(len(head))]
    tags = [("td", {"class": kind}) if kind else ("th", {"scope": "row"}) for kind in kinds]
    lines = (_tag("tr", *(_tag(tag, cell, **how) for cell, (tag, how) in zip(row, tags, strict=True))) for row in rows)
    heads = (_tag("th", name, scope="col", class_=kind) for name, kind in zip(head, kinds, strict=True))
    table = _tag("table", _tag("thead", _tag("tr", *heads)), _tag("tbody", *lines))
    box = _tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=caption)
    return _Markup(_tag("p", caption, class_="caption") + box)


def _noted(text: str, note: str, **attributes: object) -> _Markup:
    return _Markup(_tag("span", text, **attributes) + _tag("small", note))


def _usd(value: float | None) -> str:
    return "" if value is None else "below 0.01" if 0 < value < 0.01 else f"{value:,.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 1}f}\u00a0%"


def _rates(source: str) -> str:
    kernels, _, rates = source.partition(", ")
    return f"modelled: {kernels} kernels, {'measured' if rates == 'measured' else 'stated'} rates"


def _choice(choice: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> _Markup:
    by_name = {target["name"]: target for target in targets if target["run_seconds"] is not None}
    reason = _tag("p", choice["reason"] + ".")
    front = [by_name[name] for name in choice["pareto"] if name in by_name]
    if not front:
        return reason
    rows = []
    for t in front:
        marks = " and ".join(mark for mark in ("cheapest", "fastest") if choice[mark] == t["name"])
        rows.append((t["name"], _usd(t["usd_per_run"]), duration(t["run_seconds"]), marks, t["price"]))
    caption = "Each is faster than the one above, and dearer. Expected times, list prices."
    return _Markup(reason + _table(caption, ("target", "USD", "run", "within the limits", "price"), rows, (3, 4)))


def _targets(targets: Sequence[Mapping[str, Any]]) -> _Markup:
    rows = []
    for target in targets:
        name = _noted(target["name"], ", ".join(filter(None, (target["title"], target["mesh"]))))
        memory, seconds = target["memory"], target["step_seconds"]
        if memory is None or seconds is None:
            reason = _tag("span", target["reason"][:300], class_="long")
            rows.append((name, _tag("span", "? failed", class_="bad"), "", "", reason, "", "", ""))
            continue
        fits = ("✓ fits", "good") if target["fits"] else ("✗ does not fit", "bad")
        rows.append((
            name,
            _tag("span", fits[0], class_=fits[1]),
            _noted(f"{size(memory['total_bytes'])} of {size(memory['limit_bytes'])}", memory["source"]),
            _noted(f"{duration(seconds['bound'])} to {duration(seconds['expected'])}", _rates(seconds["source"])),
            _tag("span", target["bottleneck"], class_="long"),
            "" if target["run_seconds"] is None else _noted(duration(target["run_seconds"]), "modelled"),
            "" if target["usd_per_run"] is None else _noted(_usd(target["usd_per_run"]), "list price"),
            "" if target["mfu"] is None else _noted(_percent(target["mfu"]), "modelled"),
        ))  # fmt: skip
    head = ("target", "fits", "memory of limit", "step, bound to expected", "limited by", "run", "USD", "MFU at best")
    caption = "Memory is of one device. The bound is what nothing beats, the expected time what such programs reach."
    return _table(caption, head, rows, (1, 4))


def _bar(
    title: str, parts: Sequence[tuple[str, str, float]], whole: float, mark: float = 0.0, kind: str = "bar"
) -> _Markup:
    """Draw (class, words, value) one behind the other, `whole` being the width."""
    at, shapes = 0.0, []
    for name, words, value in parts:
        width = 1000 * value / whole if whole else 0.0
        shapes.append(_tag("rect", _tag("title", words), class_=name, x=f"{at:.1f}", width=f"{width:.1f}", height=20))
        at += width
    if mark and whole:
        shapes.append(_tag("path", d=f"M{1000 * mark / whole:.1f} -4V24", class_="mark"))
    described = _tag("desc", "; ".join(words for _, words, _ in parts))
    box = {"viewBox": "0 0 1000 20", "preserveAspectRatio": "none", "role": "img", "class": kind}
    return _tag("svg", _tag("title", title), described, *shapes, **box)


def _memory_parts(memory: Mapping[str, Any]) -> dict[str, float]:
    """Return bytes that add up to the total: what is modelled yields where it exceeds what was compiled."""
    parts = {name: memory[f"{name}_bytes"] for name in _PARTS if name != "rest"}
    over = sum(parts.values()) - memory["total_bytes"]
    for name in ("gradients", "activations", "data", "optimizer", "model_state", "weights"):
        cut = min(parts[name], max(over, 0))
        parts[name], over = parts[name] - cut, over - cut
    return {name: size_ for name, size_ in (parts | {"rest": max(-over, 0)}).items() if size_}


def _memory(targets: Sequence[Mapping[str, Any]]) -> _Markup:
    rows, used = [], set()
    for target in targets:
        memory, parts = target["memory"], _memory_parts(target["memory"])
        used |= set(parts)
        total, limit = memory["total_bytes"], memory["limit_bytes"]
        words = f"{size(total)} of {size(limit)}, {_percent(total / limit)}, {memory['source']}"
        shapes = [(name, f"{_PARTS[name]}: {size(value)}", value) for name, value in parts.items()]
        bar = _bar(f"Memory of {target['name']}: {words}", shapes, max(total, limit), limit)
        mark = "" if target["fits"] else _tag("span", " ✗ does not fit", class_="bad")
        rows.append(_tag("div", _tag("b", target["name"]), words, mark, bar, class_="row"))
    legend = _legend({name: _PARTS[name] for name in _PARTS if name in used} | {"mark": "what a program can use"})
    caption = (
        "The width of a bar is what a program can use, or the total where that is more. A compiler gives the total and "
        "what goes in; how gradients and activations share what is between is modelled."
    )
    return _tag("figure", legend, *rows, _tag("figcaption", caption))


class _Axis(NamedTuple):
    """One side of a chart, from `start` to `stop` in its picture; `base` is of its logarithm, 0 for none."""

    name: str
    low: float
    high: float
    text: Callable[[float], str]
    base: int
    start: float
    stop: float

    def at(self, value: float) -> float:
        if self.base:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + (self.stop - self.start) * min(max(share, 0.0), 1.0), 1)

    def ticks(self) -> list[float]:
        if not self.base:
            return [self.high * step / 5 for step in range(6)]
        low, high = math.floor(math.log(self.low, self.base)), math.ceil(math.log(self.high, self.base))
        between = (1, 2, 5) if self.base == 10 and high - low <= 3 else (1,)
        ticks = [step * float(self.base) ** power for power in range(low, high + 1) for step in between]
        ticks = [tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001]
        return ticks[:: math.ceil(len(ticks) / 7)]


# Of a picture 360 wide: narrow, so that its text stays readable on a phone.
_ACROSS, _UP = (44.0, 350.0), (214.0, 24.0)


def _log_axis(
    name: str, values: Iterable[float], text: Callable[[float], str], side: tuple[float, float] = _UP, base: int = 10
) -> _Axis:
    made = [value for value in values if value > 0] or [1.0]
    low, high = min(made) / 1.2, max(made) * 1.2
    room = max(1.0, math.sqrt(8 / (high / low)))  # enough for two numbers along it
    return _Axis(name, low / room, high * room, text, base, *side)


def _path(x: _Axis, y: _Axis, points: Iterable[tuple[float, float]], kind: str) -> _Markup:
    return _tag("path", d="M" + "L".join(f"{x.at(a)} {y.at(b)}" for a, b in points), class_=kind)


def _chart(title: str, words: str, x: _Axis, y: _Axis, shapes: Iterable[_Markup]) -> _Markup:
    (left, right), (bottom, top) = _ACROSS, _UP
    axes = [_tag("text", y.name, x=0, y=11), _tag("text", x.name, x=right, y=bottom + 31, text_anchor="end")]
    for tick in x.ticks():
        axes.append(_tag("path", d=f"M{x.at(tick)} {top}V{bottom}"))
        axes.append(_tag("text", x.text(tick), x=x.at(tick), y=bottom + 15, text_anchor="middle"))
    for tick in y.ticks():
        axes.append(_tag("path", d=f"M{left} {y.at(tick)}H{right}"))
        axes.append(_tag("text", y.text(tick), x=left - 5, y=y.at(tick) + 4, text_anchor="end"))
    told = (_tag("title", title), _tag("desc", words))
    return _tag("svg", *told, *axes, *shapes, viewBox="0 0 360 248", role="img")


def _short(value: float, unit: str = "") -> str:
    text = f"{value:.3g} " if value < 1000 else amount(value).replace(".00", "")
    return f"{text}{unit}".strip()


def _merged(kernels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return equal kernels as one, the longest first, without those that neither compute nor move anything."""
    merged: dict[Any, dict[str, Any]] = {}
    for row in kernels:
        key = (row["label"], row["kind"], row["limit"], row["flops"] // row["count"], row["bytes"] // row["count"])
        same = merged.setdefault(key, {**row, "count": 0, "seconds": 0.0, "flops": 0, "bytes": 0})
        same |= {name: same[name] + row[name] for name in ("count", "seconds", "flops", "bytes")}
    rows = [row for row in merged.values() if row["seconds"] > 0 and (row["flops"] or row["bytes"])]
    return sorted(rows, key=lambda row: -row["seconds"])


def _roofline(target: Mapping[str, Any]) -> _Markup:
    peak, bandwidth = target["peaks"]["flops"], target["peaks"]["bytes_per_second"]
    step = target["step_seconds"]["expected"] or 1.0
    rows = _merged(target["kernels"])
    ridge = peak / bandwidth
    both = [row["flops"] / row["bytes"] for row in rows if row["flops"] and row["bytes"]]
    # Kernels without products stand at the left edge as if they computed that little; those without traffic right.
    low, high = max(min([*both, ridge / 30]) / 4, ridge / 1e5), min(max([*both, ridge * 8]) * 2, ridge * 1e4)
    rates = [(row["flops"] or row["bytes"] * low) / row["seconds"] for row in rows]
    x = _Axis("FLOP per byte", low / 2, high, _short, 10, *_ACROSS)
    y = _log_axis("FLOP/s", (max(min([*rates, low * bandwidth / 2]) / 3, peak * 1e-7), peak * 2), _short)
    circles, names, lines = {}, {}, []
    for number, (row, rate) in enumerate(zip(rows, rates, strict=True), 1):
        intensity, share = row["flops"] / row["bytes"] if row["bytes"] else high, row["seconds"] / step
        place = (x.at(max(intensity, low)), y.at(rate), round(max(1.5, 18 * math.sqrt(min(share, 1.0))), 1))
        circles[place] = _tag("circle", class_=row["limit"], cx=place[0], cy=place[1], r=place[2])
        if number <= _NAMED:
            spot = (place[0], place[1] + place[2] + 11)
            near = next((other for other in names if math.dist(spot, other) < 14), spot)
            names.setdefault(near, []).append(str(number))
            told = _short(rate, "FLOP/s") if row["flops"] else _short(row["bytes"] / row["seconds"], "B/s")
            roof = _percent(rate / min(peak, bandwidth * (intensity or low)))
            times = f"{row['kind']}, {row['count']:,} times" if row["count"] > 1 else row["kind"]
            lines.append(f"{row['label']} ({times}): {_percent(share)} of the time, {told}, {roof} of the roof")
    roof = _path(x, y, [(low / 2, bandwidth * low / 2), (ridge, peak), (high, peak)], "roof")
    top = _tag("text", _short(peak, "FLOP/s"), x=x.stop, y=y.at(peak) - 6, text_anchor="end", class_="name")
    numbers = [_tag("text", ", ".join(n), x=a, y=b, text_anchor="middle", class_="name") for (a, b), n in names.items()]
    rates_told = f"{_short(bandwidth, 'B/s')} and {_short(peak, 'FLOP/s')} of a device"
    words = f"{len(rows)} kernels under {rates_told}"
    caption = (
        f"The kernels of {target['name']}, each as large as its share of the time, under {rates_told}. Those without "
        "matrix products stand at the left edge; how far they are below the roof is still what they leave of the "
        "bandwidth. The largest:"
    )
    return _tag(
        "figure", _tag("h3", target["title"]),
        _chart(f"Roofline of {target['title']}", words, x, y, [roof, *circles.values(), top, *numbers]),
        _legend({name: f"limited by {_LIMITS[name]}" for name in ("compute", "memory")}),
        _tag("figcaption", caption, _tag("ol", *(_tag("li", line) for line in lines))),
    )  # fmt: skip


def _time(target: Mapping[str, Any]) -> _Markup:
    seconds = target["step_seconds"]
    whole, labels = sum(seconds["limits"].values()) or 1.0, list(seconds["labels"].items())

    def words(name: str, value: float) -> str:
        return f"{name}: {duration(value)}, {_percent(value / whole)}"

    spent = {name: seconds["limits"][name] for name in _LIMITS if seconds["limits"].get(name)}
    limits = [(name, words(_LIMITS[name], value), value) for name, value in spent.items()]
    if len(labels) > 7:
        labels = [*labels[:6], (f"{len(labels) - 6} others", sum(value for _, value in labels[6:]))]
    rows = [
        _tag("div", told, _bar(told, [("rest", told, value)], whole, kind="bar label"), class_="row")
        for told, value in ((words(*label), label[1]) for label in labels)
    ]
    return _tag(
        "figure", _tag("h3", target["name"]), _bar(f"Time of {target['name']} by what limits it", limits, whole),
        _tag("div", "; ".join(limit[1] for limit in limits), class_="row"), _tag("h4", "By layer or part"), *rows,
        _tag("figcaption", f"{duration(seconds['expected'])} expected, {_rates(seconds['source'])}"),
    )  # fmt: skip


_WAYS = {
    "in-all": ("fixed_global", "the same batch in all"),
    "per-device": ("fixed_per_device", "the same batch per device"),
}
_Line = tuple[str, str, Sequence[tuple[float, float]]]


def _lines(title: str, x: _Axis, y: _Axis, lines: Iterable[_Line]) -> _Markup:
    """Draw (class, words, points); an ideal has no marks."""
    shapes, words = [], []
    for kind, name, points in lines:
        shapes.append(_path(x, y, points, kind if kind == "ideal" else f"line {kind}"))
        if kind != "ideal":
            shapes += [_tag("circle", class_=kind, cx=x.at(a), cy=y.at(b), r=3.5) for a, b in points]
            words.append(f"{name}: {', '.join(f'{y.text(b)} with {a:,}' for a, b in points)}")
    return _tag("div", _tag("h4", title), _chart(title, "; ".join(words), x, y, shapes))


def _scaling(family: Mapping[str, Any]) -> _Markup:
    points, steps, shares = family["points"], [], []
    x = _log_axis("devices", [p["devices"] for p in points], lambda value: f"{value:,.0f}", _ACROSS, 2)
    for kind, (key, name) in _WAYS.items():
        found = [(p["devices"], p[key]) for p in points if p.get(key)]
        first = found[0] if found else (1, {"seconds": 1.0})
        ratio = {devices: first[0] / devices if kind == "in-all" else 1.0 for devices, _ in found}
        steps.append(("ideal", "ideal", [(devices, first[1]["seconds"] * ratio[devices]) for devices, _ in found]))
        steps.append((kind, name, [(devices, p["seconds"]) for devices, p in found]))
        shares.append((kind, name, [(devices, p["efficiency"]) for devices, p in found]))
    every = [value for _, _, line in steps for _, value in line]
    most = max([1.0] + [value for _, _, line in shares for _, value in line])
    percent = _Axis("", 0.0, most, lambda value: f"{100 * value:.0f} %", 0, *_UP)
    ideal = ("ideal", "ideal", [(x.low, 1.0), (x.high, 1.0)])
    charts = [
        _lines("Time of a step", x, _log_axis("", every, lambda value: duration(value).replace(".0 ", " ")), steps),
        _lines("Efficiency", x, percent, [ideal, *shares]),
    ]
    legend = {kind: name for kind, (_, name) in _WAYS.items()} | {"ideal": "ideal"}
    told = f"From {family['from']}: {family['source']}."
    balance = {p["devices"]: p["communication_batch"] for p in points if p["communication_batch"]}
    if balance:
        batch = {p["devices"]: p["fixed_global"]["batch"] / p["devices"] for p in points if p.get("fixed_global")}
        words = "below it, exchanges take longer than the work"
        lines = [
            ("communication", words, list(balance.items())),
            ("in-all", "the same batch in all", list(batch.items())),
        ]
        y = _log_axis("examples per device", [*balance.values(), *batch.values()], _short)
        charts.append(_lines("Where exchanges take over", x, y, lines))
        legend["communication"] = words
        below = [devices for devices in batch if batch[devices] < balance.get(devices, 0)]
        where = f"with {' to '.join(f'{d:,}' for d in sorted({below[0], below[-1]}))} devices" if below else "nowhere"
        told += f" With the same batch in all, exchanges take longer than the work {where}."
    return _tag(
        "figure", _tag("h3", family["accelerator"]), _legend(legend), _tag("div", *charts, class_="grid"),
        _tag("figcaption", told),
    )  # fmt: skip


def _remedies(target: Mapping[str, Any]) -> _Markup:
    reason = _tag("p", _tag("b", target["name"]), f" does not fit: {target['reason'][:2000]}")
    if not target["remedies"]:
        return _Markup(reason + _tag("p", "Nothing that was tried makes it fit: fewer parameters, or larger devices."))
    rows = [
        (
            remedy["change"],
            ", ".join(f"{name}={value!r}" for name, value in remedy["settings"].items() if value is not None),
            _noted(size(remedy["total_bytes"]), remedy.get("source", "")),
            f"{remedy['slowdown']:.2f} times",
        )
        for remedy in target["remedies"]
    ]
    head = ("change", "settings", "memory", "time per example")
    return _Markup(reason + _table(f"What fits on {target['name']}, fastest first", head, rows, (1,)))


def _details(target: Mapping[str, Any], *, is_open: bool) -> _Markup:
    facts = {
        "devices": f"{target['devices']:,}, chips: {target['chips']:,}" if target["devices"] else "",
        "mesh": target["mesh"],
        "reason": target["reason"][:2000],
        "not compiled": target["missing"],
        "price": f"{_usd(target['usd_per_hour'])} USD an hour ({target['price']})" if target["usd_per_hour"] else "",
        "evaluation batch": "" if target["eval_batch_seconds"] is None else duration(target["eval_batch_seconds"]),
        "compiled in": "" if target["compile_seconds"] is None else duration(target["compile_seconds"]),
    }
    if target["memory"] is not None:
        facts |= {_PARTS[name]: size(value) for name, value in _memory_parts(target["memory"]).items()}
    children = [_table("Facts", ("what", "value"), [(name, text) for name, text in facts.items() if text], (1,))]
    whole = (target["step_seconds"] or {}).get("expected") or 1.0
    products = [row for row in target["kernels"] if row["products"]]
    if products:
        rows = [
            (
                row["label"], "; ".join(_product(*product) for product in row["products"][:3]), f"{row['count']:,}",
                amount(row["flops"]).strip(), duration(row["seconds"]), _percent(row["seconds"] / whole),
                _LIMITS[row["limit"]],
            )
            for row in products[:12]
        ]  # fmt: skip
        head = ("layer", "m × k by k × n", "times a step", "FLOP", "time", "share", "limited by")
        children.append(_table("Matrix products by time", head, rows, (1, 6)))
    if target["collectives"]:
        rows = [(c["kind"], size(c["bytes"]), f"{c['count']:,}", f"{c['devices']:,}") for c in target["collectives"]]
        children.append(_table("Exchanges", ("kind", "each", "times a step", "devices"), rows))
    summary = _tag("summary", ": ".join(filter(None, (target["name"], target["title"]))))
    return _tag("details", summary, *children, **({"open": ""} if is_open else {}))


def _product(m: int, n: int, k: int, batch: int, dtype: str) -> str:
    return f"{m:,} × {k:,} by {k:,} × {n:,}{f', {batch:,} of them' if batch > 1 else ''}, {dtype}"


def _sources(targets: Sequence[Mapping[str, Any]]) -> _Markup:
    names = {word: ", ".join(t["name"] for t in targets if word in t["step_seconds"]["source"]) for word in _SOURCES}
    items = [_tag("li", _tag("b", word), " ", text.format(names[word] or "none")) for word, text in _SOURCES.items()]
    prices = "; ".join(dict.fromkeys(f"{t['title']}: {t['price']}" for t in targets if t["price"]))
    told = f" are list prices of a region and a date. {prices or 'None is known'}."
    return _tag("ul", *items, _tag("li", _tag("b", "prices"), told))
