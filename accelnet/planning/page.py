"""A plan as one HTML page that needs nothing else: no scripts, fonts or pictures from elsewhere."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from accelnet.report.charts import ACROSS, UP, Axis, bar, chart, lines, log_axis, path
from accelnet.report.document import document
from accelnet.report.markup import Markup, grid, legend, noted, section, table, tag
from accelnet.report.numbers import amount, duration, percent, short, size

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
_NAMED = 5  # kernels of a roofline
_COLORS = """.weights,.compute{--c:#0072b2}.optimizer,.per-device{--c:#56b4e9}.model_state{--c:#f0e442}
.gradients,.memory,.in-all{--c:#e69f00}.activations,.communication{--c:#009e73}.data,.launch{--c:#cc79a7}"""


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
        tag("h1", values["experiment"]),
        tag(
            "p",
            f"{values['steps']:,} steps of {values['batch_size']:,} examples, {amount(total)}FLOP a step ({parts}). "
            "What it would do on hardware that is not here.",
        ),
        section("What to rent", _choice(values["choice"], targets) if values.get("choice") else ""),
        section("Targets", _targets(targets, values.get("run_leaves_out", ()))),
        section("Memory of a device", _memory(known) if known else ""),
        section("Rooflines", grid(map(_roofline, reversed(drawn.values())))),
        section("Where the time of a step goes", legend(_LIMITS) if known else "", grid(map(_time, known))),
        section("More devices", *map(_scaling, values.get("scaling", ()))),
        section("What would make it fit", *(_remedies(t) for t in targets if t["status"] == "does not fit")),
        section("Details", *(_details(target, is_open=len(targets) == 1) for target in targets)),
        section("Where the numbers come from", _sources(known)),
    ]
    return document("Plan of " + values["experiment"], body, _COLORS)


def _usd(value: float | None) -> str:
    return "" if value is None else "below 0.01" if 0 < value < 0.01 else f"{value:,.2f}"


def _rates(source: str) -> str:
    kernels, _, rates = source.partition(", ")
    return f"modelled: {kernels} kernels, {'measured' if rates == 'measured' else 'stated'} rates"


def _choice(choice: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> Markup:
    by_name = {target["name"]: target for target in targets if target["run_seconds"] is not None}
    reason = tag("p", choice["reason"] + ".")
    front = [by_name[name] for name in choice["pareto"] if name in by_name]
    if not front:
        return reason
    rows = []
    for t in front:
        marks = " and ".join(mark for mark in ("cheapest", "fastest") if choice[mark] == t["name"])
        rows.append((t["name"], _usd(t["usd_per_run"]), duration(t["run_seconds"]), marks, t["price"]))
    caption = "Each is faster than the one above, and dearer. Expected times, list prices."
    return Markup(reason + table(caption, ("target", "USD", "run", "within the limits", "price"), rows, (3, 4)))


def _run_parts(target: Mapping[str, Any]) -> str:
    parts = target.get("run_parts") or {}
    told = [f"{name.removesuffix('_seconds')} {duration(value)}" for name, value in parts.items() if value is not None]
    return "modelled" + (": " + " + ".join(told) if told else "")


def _targets(targets: Sequence[Mapping[str, Any]], left_out: Sequence[str]) -> Markup:
    rows = []
    for target in targets:
        name = noted(target["name"], ", ".join(filter(None, (target["title"], target["mesh"]))))
        memory, seconds = target["memory"], target["step_seconds"]
        if memory is None or seconds is None:
            reason = tag("span", target["reason"][:300], class_="long")
            rows.append((name, tag("span", "? failed", class_="bad"), "", "", reason, "", "", ""))
            continue
        fits = ("✓ fits", "good") if target["fits"] else ("✗ does not fit", "bad")
        rows.append((
            name,
            tag("span", fits[0], class_=fits[1]),
            noted(f"{size(memory['total_bytes'])} of {size(memory['limit_bytes'])}", memory["source"]),
            noted(f"{duration(seconds['bound'])} to {duration(seconds['expected'])}", _rates(seconds["source"])),
            tag("span", target["bottleneck"], class_="long"),
            "" if target["run_seconds"] is None else noted(duration(target["run_seconds"]), _run_parts(target)),
            "" if target["usd_per_run"] is None else noted(_usd(target["usd_per_run"]), "list price"),
            "" if target["mfu"] is None else noted(percent(target["mfu"]), "modelled"),
        ))  # fmt: skip
    head = ("target", "fits", "memory of limit", "step, bound to expected", "limited by", "run", "USD", "MFU of steps")
    caption = (
        "Memory is of one device. The bound is what the device's peaks allow, the expected time what such programs "
        "reach."
    )
    if left_out:
        caption += f" The run leaves out {', '.join(left_out)}."
    return table(caption, head, rows, (1, 4))


def _memory_parts(memory: Mapping[str, Any]) -> dict[str, float]:
    """Return bytes that add up to the total: what is modelled yields where it exceeds what was compiled."""
    parts = {name: memory[f"{name}_bytes"] for name in _PARTS if name != "rest"}
    over = sum(parts.values()) - memory["total_bytes"]
    for name in ("gradients", "activations", "data", "optimizer", "model_state", "weights"):
        cut = min(parts[name], max(over, 0))
        parts[name], over = parts[name] - cut, over - cut
    return {name: size_ for name, size_ in (parts | {"rest": max(-over, 0)}).items() if size_}


def _memory(targets: Sequence[Mapping[str, Any]]) -> Markup:
    rows, used = [], set()
    for target in targets:
        memory, parts = target["memory"], _memory_parts(target["memory"])
        used |= set(parts)
        total, limit = memory["total_bytes"], memory["limit_bytes"]
        words = f"{size(total)} of {size(limit)}, {percent(total / limit)}, {memory['source']}"
        shapes = [(name, f"{_PARTS[name]}: {size(value)}", value) for name, value in parts.items()]
        drawn = bar(f"Memory of {target['name']}: {words}", shapes, max(total, limit), limit)
        mark = "" if target["fits"] else tag("span", " ✗ does not fit", class_="bad")
        rows.append(tag("div", tag("b", target["name"]), words, mark, drawn, class_="row"))
    names = legend({name: _PARTS[name] for name in _PARTS if name in used} | {"mark": "what a program can use"})
    caption = (
        "The width of a bar is what a program can use, or the total where that is more. A compiler gives the total and "
        "what goes in; how gradients and activations share what is between is modelled."
    )
    return tag("figure", names, *rows, tag("figcaption", caption))


def _merged(kernels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return equal kernels as one, the longest first, without those that neither compute nor move anything."""
    merged: dict[Any, dict[str, Any]] = {}
    for row in kernels:
        key = (row["label"], row["kind"], row["limit"], row["flops"] // row["count"], row["bytes"] // row["count"])
        same = merged.setdefault(key, {**row, "count": 0, "seconds": 0.0, "flops": 0, "bytes": 0})
        same |= {name: same[name] + row[name] for name in ("count", "seconds", "flops", "bytes")}
    rows = [row for row in merged.values() if row["seconds"] > 0 and (row["flops"] or row["bytes"])]
    return sorted(rows, key=lambda row: -row["seconds"])


def _roofline(target: Mapping[str, Any]) -> Markup:
    peak, bandwidth = target["peaks"]["flops"], target["peaks"]["bytes_per_second"]
    step = target["step_seconds"]["expected"] or 1.0
    rows = _merged(target["kernels"])
    ridge = peak / bandwidth
    both = [row["flops"] / row["bytes"] for row in rows if row["flops"] and row["bytes"]]
    # Kernels without products stand at the left edge as if they computed that little; those without traffic right.
    low, high = max(min([*both, ridge / 30]) / 4, ridge / 1e5), min(max([*both, ridge * 8]) * 2, ridge * 1e4)
    rates = [(row["flops"] or row["bytes"] * low) / row["seconds"] for row in rows]
    x = Axis("FLOP per byte", low / 2, high, short, 10, *ACROSS)
    y = log_axis("FLOP/s", (max(min([*rates, low * bandwidth / 2]) / 3, peak * 1e-7), peak * 2), short)
    circles, names, lines = {}, {}, []
    for number, (row, rate) in enumerate(zip(rows, rates, strict=True), 1):
        intensity, share = row["flops"] / row["bytes"] if row["bytes"] else high, row["seconds"] / step
        place = (x.at(max(intensity, low)), y.at(rate), round(max(1.5, 18 * math.sqrt(min(share, 1.0))), 1))
        circles[place] = tag("circle", class_=row["limit"], cx=place[0], cy=place[1], r=place[2])
        if number <= _NAMED:
            spot = (place[0], place[1] + place[2] + 11)
            near = next((other for other in names if math.dist(spot, other) < 14), spot)
            names.setdefault(near, []).append(str(number))
            told = short(rate, "FLOP/s") if row["flops"] else short(row["bytes"] / row["seconds"], "B/s")
            roof = percent(rate / min(peak, bandwidth * (intensity or low)))
            times = f"{row['kind']}, {row['count']:,} times" if row["count"] > 1 else row["kind"]
            lines.append(f"{row['label']} ({times}): {percent(share)} of the time, {told}, {roof} of the roof")
    roof = path(x, y, [(low / 2, bandwidth * low / 2), (ridge, peak), (high, peak)], "roof")
    top = tag("text", short(peak, "FLOP/s"), x=x.stop, y=y.at(peak) - 6, text_anchor="end", class_="name")
    numbers = [tag("text", ", ".join(n), x=a, y=b, text_anchor="middle", class_="name") for (a, b), n in names.items()]
    rates_told = f"{short(bandwidth, 'B/s')} and {short(peak, 'FLOP/s')} of a device"
    words = f"{len(rows)} kernels under {rates_told}"
    caption = (
        f"The kernels of {target['name']}, each as large as its share of the time, under {rates_told}. Those without "
        "matrix products stand at the left edge; how far they are below the roof is still what they leave of the "
        "bandwidth. The largest:"
    )
    return tag(
        "figure", tag("h3", target["title"]),
        chart(f"Roofline of {target['title']}", words, x, y, [roof, *circles.values(), top, *numbers]),
        legend({name: f"limited by {_LIMITS[name]}" for name in ("compute", "memory")}),
        tag("figcaption", caption, tag("ol", *(tag("li", line) for line in lines))),
    )  # fmt: skip


def _time(target: Mapping[str, Any]) -> Markup:
    seconds = target["step_seconds"]
    whole, labels = sum(seconds["limits"].values()) or 1.0, list(seconds["labels"].items())

    def words(name: str, value: float) -> str:
        return f"{name}: {duration(value)}, {percent(value / whole)}"

    spent = {name: seconds["limits"][name] for name in _LIMITS if seconds["limits"].get(name)}
    limits = [(name, words(_LIMITS[name], value), value) for name, value in spent.items()]
    if len(labels) > 7:
        labels = [*labels[:6], (f"{len(labels) - 6} others", sum(value for _, value in labels[6:]))]
    rows = [
        tag("div", told, bar(told, [("rest", told, value)], whole, kind="bar label"), class_="row")
        for told, value in ((words(*label), label[1]) for label in labels)
    ]
    return tag(
        "figure", tag("h3", target["name"]), bar(f"Time of {target['name']} by what limits it", limits, whole),
        tag("div", "; ".join(limit[1] for limit in limits), class_="row"), tag("h4", "By layer or part"), *rows,
        tag("figcaption", f"{duration(seconds['expected'])} expected, {_rates(seconds['source'])}"),
    )  # fmt: skip


_WAYS = {
    "in-all": ("fixed_global", "the same batch in all"),
    "per-device": ("fixed_per_device", "the same batch per device"),
}


def _scaling(family: Mapping[str, Any]) -> Markup:
    points, steps, shares = family["points"], [], []
    x = log_axis("devices", [p["devices"] for p in points], lambda value: f"{value:,.0f}", ACROSS, 2)
    for kind, (key, name) in _WAYS.items():
        found = [(p["devices"], p[key]) for p in points if p.get(key)]
        first = found[0] if found else (1, {"seconds": 1.0})
        ratio = {devices: first[0] / devices if kind == "in-all" else 1.0 for devices, _ in found}
        steps.append(("ideal", "ideal", [(devices, first[1]["seconds"] * ratio[devices]) for devices, _ in found]))
        steps.append((kind, name, [(devices, p["seconds"]) for devices, p in found]))
        shares.append((kind, name, [(devices, p["efficiency"]) for devices, p in found]))
    every = [value for _, _, line in steps for _, value in line]
    most = max([1.0] + [value for _, _, line in shares for _, value in line])
    share = Axis("", 0.0, most, lambda value: f"{100 * value:.0f} %", 0, *UP)
    ideal = ("ideal", "ideal", [(x.low, 1.0), (x.high, 1.0)])
    charts = [
        lines("Time of a step", x, log_axis("", every, lambda value: duration(value).replace(".0 ", " ")), steps),
        lines("Efficiency", x, share, [ideal, *shares]),
    ]
    names = {kind: name for kind, (_, name) in _WAYS.items()} | {"ideal": "ideal"}
    told = f"From {family['from']}: {family['source']}."
    balance = {p["devices"]: p["communication_batch"] for p in points if p["communication_batch"]}
    if balance:
        batch = {p["devices"]: p["fixed_global"]["batch"] / p["devices"] for p in points if p.get("fixed_global")}
        words = "below it, exchanges take longer than the work"
        both = [
            ("communication", words, list(balance.items())),
            ("in-all", "the same batch in all", list(batch.items())),
        ]
        y = log_axis("examples per device", [*balance.values(), *batch.values()], short)
        charts.append(lines("Where exchanges take over", x, y, both))
        names["communication"] = words
        below = [devices for devices in batch if batch[devices] < balance.get(devices, 0)]
        where = f"with {' to '.join(f'{d:,}' for d in sorted({below[0], below[-1]}))} devices" if below else "nowhere"
        told += f" With the same batch in all, exchanges take longer than the work {where}."
    return tag(
        "figure", tag("h3", family["accelerator"]), legend(names), tag("div", *charts, class_="grid"),
        tag("figcaption", told),
    )  # fmt: skip


def _remedies(target: Mapping[str, Any]) -> Markup:
    reason = tag("p", tag("b", target["name"]), f" does not fit: {target['reason'][:2000]}")
    if not target["remedies"]:
        return Markup(reason + tag("p", "Nothing that was tried makes it fit: fewer parameters, or larger devices."))
    rows = [
        (
            remedy["change"],
            ", ".join(f"{name}={value!r}" for name, value in remedy["settings"].items() if value is not None),
            noted(size(remedy["total_bytes"]), remedy.get("source", "")),
            f"{remedy['slowdown']:.2f} times",
        )
        for remedy in target["remedies"]
    ]
    head = ("change", "settings", "memory", "time per example")
    return Markup(reason + table(f"What fits on {target['name']}, fastest first", head, rows, (1,)))


def _details(target: Mapping[str, Any], *, is_open: bool) -> Markup:
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
        counted = {name: target["memory"][f"{name}_bytes"] for name in ("arguments", "results", "temporaries")}
        facts["the compiler's count"] = " + ".join(f"{n} {size(b)}" for n, b in counted.items() if b is not None)
        facts |= {_PARTS[name]: size(value) for name, value in _memory_parts(target["memory"]).items()}
    children = [table("Facts", ("what", "value"), [(name, text) for name, text in facts.items() if text], (1,))]
    whole = (target["step_seconds"] or {}).get("expected") or 1.0
    products = [row for row in target["kernels"] if row["products"]]
    if products:
        rows = [
            (
                row["label"], "; ".join(_product(*product) for product in row["products"][:3]), f"{row['count']:,}",
                amount(row["flops"]).strip(), duration(row["seconds"]), percent(row["seconds"] / whole),
                _LIMITS[row["limit"]],
            )
            for row in products[:12]
        ]  # fmt: skip
        head = ("layer", "m × k by k × n", "times a step", "FLOP", "time", "share", "limited by")
        children.append(table("Matrix products by time", head, rows, (1, 6)))
    if target["collectives"]:
        rows = [(c["kind"], size(c["bytes"]), f"{c['count']:,}", f"{c['devices']:,}") for c in target["collectives"]]
        children.append(table("Exchanges", ("kind", "each", "times a step", "devices"), rows))
    summary = tag("summary", ": ".join(filter(None, (target["name"], target["title"]))))
    return tag("details", summary, *children, **({"open": ""} if is_open else {}))


def _product(m: int, n: int, k: int, batch: int, dtype: str) -> str:
    return f"{m:,} × {k:,} by {k:,} × {n:,}{f', {batch:,} of them' if batch > 1 else ''}, {dtype}"


def _sources(targets: Sequence[Mapping[str, Any]]) -> Markup:
    names = {word: ", ".join(t["name"] for t in targets if word in t["step_seconds"]["source"]) for word in _SOURCES}
    items = [tag("li", tag("b", word), " ", text.format(names[word] or "none")) for word, text in _SOURCES.items()]
    prices = "; ".join(dict.fromkeys(f"{t['title']}: {t['price']}" for t in targets if t["price"]))
    told = f" are list prices of a region and a date. {prices or 'None is known'}."
    return tag("ul", *items, tag("li", tag("b", "prices"), told))
