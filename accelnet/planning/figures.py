"""The figures of a plan: memory, rooflines, times, scaling, and time against cost."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from accelnet.report.charts import ACROSS, UP, Axis, bar, chart, dots, lines, log_axis, path
from accelnet.report.markup import Markup, figure, legend, tag
from accelnet.report.numbers import dollars, duration, percent, short
from accelnet.wording import size

PARTS = {
    "weights": "weights", "optimizer": "optimizer", "model_state": "model state", "gradients": "gradients",
    "activations": "activations", "data": "data", "rest": "the rest",
}  # fmt: skip
LIMITS = {"compute": "compute", "memory": "memory traffic", "communication": "exchanges", "launch": "launches"}
_NAMED = 5  # kernels of a roofline


def rests_on(source: str) -> str:
    """Return what a time rests on."""
    kernels, _, rates = source.partition(", ")
    if rates == "timed":
        return "timed on this machine"
    return f"modelled: {kernels} kernels, {'measured' if rates == 'measured' else 'stated'} rates"


def cost_figure(choice: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw the run's time against its cost, within the limits and beyond."""
    priced = [target for target in targets if target["fits"] and target["usd_per_run"] and target["run_seconds"]]
    if not priced:
        return Markup()
    budget = choice["budget_usd"]
    deadline = None if choice["deadline_hours"] is None else 3600 * choice["deadline_hours"]
    x = log_axis("USD", [target["usd_per_run"] for target in priced], short, ACROSS)
    y = log_axis("run", [target["run_seconds"] for target in priced], duration)
    shapes = []
    if budget is not None and x.low < budget < x.high:
        shapes.append(path(x, y, [(budget, y.low), (budget, y.high)], "ideal"))
    if deadline is not None and y.low < deadline < y.high:
        shapes.append(path(x, y, [(x.low, deadline), (x.high, deadline)], "ideal"))
    for target in priced:
        usd, seconds = target["usd_per_run"], target["run_seconds"]
        within = (budget is None or usd <= budget) and (deadline is None or seconds <= deadline)
        shapes += dots(x, y, [(usd, seconds)], "c0" if within else "c7", 4.0)
        place = {"x": x.at(usd), "y": y.at(seconds) - 7}
        shapes.append(tag("text", target["name"], text_anchor="middle", class_="name", **place))
    words = "; ".join(f"{t['name']}: {dollars(t['usd_per_run'])} USD, {duration(t['run_seconds'])}" for t in priced)
    names = legend({"c0": "within the limits", "c7": "beyond them"})
    caption = "Left and low is better. Dashed lines are the limits."
    return figure("", names, chart("Time against cost", words, x, y, shapes), caption=caption)


def memory_parts(memory: Mapping[str, Any]) -> dict[str, float]:
    """Return bytes that add up to the total: what is modelled yields where it exceeds what was compiled."""
    parts = {name: memory[f"{name}_bytes"] for name in PARTS if name != "rest"}
    over = sum(parts.values()) - memory["total_bytes"]
    for name in ("gradients", "activations", "data", "optimizer", "model_state", "weights"):
        cut = min(parts[name], max(over, 0))
        parts[name], over = parts[name] - cut, over - cut
    return {name: size_ for name, size_ in (parts | {"rest": max(-over, 0)}).items() if size_}


def memory_figure(targets: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw what fills the memory of a device, a bar for each target."""
    rows, used = [], set()
    for target in targets:
        memory, parts = target["memory"], memory_parts(target["memory"])
        used |= set(parts)
        total, limit = memory["total_bytes"], memory["limit_bytes"]
        words = f"{size(total)} of {size(limit)}, {percent(total / limit)}, {memory['source']}"
        shapes = [(name, f"{PARTS[name]}: {size(value)}", value) for name, value in parts.items()]
        drawn = bar(f"Memory of {target['name']}: {words}", shapes, max(total, limit), limit)
        mark = "" if target["fits"] else tag("span", " ✗ does not fit", class_="bad")
        rows.append(tag("div", tag("b", target["name"]), words, mark, drawn, class_="row"))
    names = legend({name: PARTS[name] for name in PARTS if name in used} | {"mark": "what a program can use"})
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


def roofline_figure(target: Mapping[str, Any]) -> Markup:
    """Draw the kernels of a step under the roof of a device."""
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
        legend({name: f"limited by {LIMITS[name]}" for name in ("compute", "memory")}),
        tag("figcaption", caption, tag("ol", *(tag("li", line) for line in lines))),
    )  # fmt: skip


def time_figure(target: Mapping[str, Any]) -> Markup:
    """Draw where the time of a step goes: by what limits it, and by layer."""
    seconds = target["step_seconds"]
    whole, labels = sum(seconds["limits"].values()) or 1.0, list(seconds["labels"].items())

    def words(name: str, value: float) -> str:
        return f"{name}: {duration(value)}, {percent(value / whole)}"

    spent = {name: seconds["limits"][name] for name in LIMITS if seconds["limits"].get(name)}
    limits = [(name, words(LIMITS[name], value), value) for name, value in spent.items()]
    if len(labels) > 7:
        labels = [*labels[:6], (f"{len(labels) - 6} others", sum(value for _, value in labels[6:]))]
    rows = [
        tag("div", told, bar(told, [("rest", told, value)], whole, kind="bar label"), class_="row")
        for told, value in ((words(*label), label[1]) for label in labels)
    ]
    return tag(
        "figure", tag("h3", target["name"]), bar(f"Time of {target['name']} by what limits it", limits, whole),
        tag("div", "; ".join(limit[1] for limit in limits), class_="row"), tag("h4", "By layer or part"), *rows,
        tag("figcaption", f"{duration(seconds['expected'])} expected, {rests_on(seconds['source'])}"),
    )  # fmt: skip


_WAYS = {
    "in-all": ("fixed_global", "the same batch in all"),
    "per-device": ("fixed_per_device", "the same batch per device"),
}


def scaling_figure(family: Mapping[str, Any]) -> Markup:
    """Draw the time of a step, and its efficiency, over the number of devices."""
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
