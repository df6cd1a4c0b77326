"""A plan as one HTML page that needs nothing else: no scripts, fonts or pictures from elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelnet.planning.figures import (
    LIMITS,
    PARTS,
    cost_figure,
    memory_figure,
    memory_parts,
    rests_on,
    roofline_figure,
    scaling_figure,
    time_figure,
)
from accelnet.report.document import document
from accelnet.report.markup import Markup, grid, legend, noted, section, table, tag, verdict
from accelnet.report.numbers import amount, dollars, duration, percent
from accelnet.wording import size

_SOURCES = {
    "compiled": "are memory, kernels and exchanges where the target's own compiler counted them: {}.",
    "measured": "are the rates of devices on which parts of programs were timed: {}.",
    "modelled": "is the rest: times, and so cost and MFU, from kernels and rates; stated ones unless measured.",
}
_COLORS = """.weights,.compute{--c:#0072b2}.optimizer,.per-device{--c:#56b4e9}.model_state{--c:#f0e442}
.gradients,.memory,.in-all{--c:#e69f00}.activations,.communication{--c:#009e73}.data,.launch{--c:#cc79a7}"""


def plan_page(values: Mapping[str, Any]) -> str:
    """Return a plan as a page to read, in light and dark, on a screen and on a phone.

    Args:
        values: Values of `Plan.to_dict`, as plan.json holds them.

    Returns:
        A whole HTML document, which loads nothing from elsewhere. What comes from the plan is escaped.

    Example:
        >>> flops = {"forward": 1e9, "backward": 2e9, "optimizer": 0}
        >>> values = {"experiment": "<x>", "steps": 10, "batch_size": 32, "flops": flops, "targets": [], "scaling": []}
        >>> page = plan_page(values)
        >>> "<h1>&lt;x&gt;</h1>" in page, "3.00 GFLOP a step" in page
        (True, True)
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
        verdict(
            _verdict(values),
            f"{values['steps']:,} steps of {values['batch_size']:,} examples, {amount(total)}FLOP a step ({parts}). "
            "What it would do on hardware that is not here.",
        ),
        section("What to rent", _choice(values["choice"], targets) if values.get("choice") else ""),
        section("Targets", _targets(targets, values.get("run_leaves_out", ()))),
        section("Memory of a device", memory_figure(known) if known else ""),
        section("Rooflines", grid(map(roofline_figure, reversed(drawn.values())))),
        section("Where the time of a step goes", legend(LIMITS) if known else "", grid(map(time_figure, known))),
        section("More devices", *map(scaling_figure, values.get("scaling", ()))),
        section("What would make it fit", *(_remedies(t) for t in targets if t["status"] == "does not fit")),
        section("Details", *(_details(target, is_open=len(targets) == 1) for target in targets)),
        section("Where the numbers come from", _sources(known)),
    ]
    return document("Plan of " + values["experiment"], body, _COLORS)


def _verdict(values: Mapping[str, Any]) -> str:
    fitting = [target for target in values["targets"] if target["fits"]]
    told = f"It fits on {len(fitting)} of {len(values['targets'])} targets."
    timed = [target for target in fitting if target["run_seconds"] is not None]
    if len(timed) > 1:
        fastest = min(timed, key=lambda target: target["run_seconds"])
        told += f" The fastest run is expected on {fastest['name']}, in {duration(fastest['run_seconds'])}."
        if priced := [target for target in timed if target["usd_per_run"] is not None]:
            cheapest = min(priced, key=lambda target: target["usd_per_run"])
            told += f" The cheapest costs {dollars(cheapest['usd_per_run'])} USD, on {cheapest['name']}."
    return told


def _choice(choice: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> Markup:
    by_name = {target["name"]: target for target in targets if target["run_seconds"] is not None}
    reason = tag("p", choice["reason"] + ".")
    front = [by_name[name] for name in choice["pareto"] if name in by_name]
    if not front:
        return reason
    rows = []
    for t in front:
        marks = " and ".join(mark for mark in ("cheapest", "fastest") if choice[mark] == t["name"])
        rows.append((t["name"], dollars(t["usd_per_run"]), duration(t["run_seconds"]), marks, t["price"]))
    caption = "Each is faster than the one above, and dearer. Expected times, list prices."
    head = ("target", "USD", "run", "within the limits", "price")
    return Markup(reason + table(caption, head, rows, (3, 4)) + cost_figure(choice, targets))


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
            noted(f"{duration(seconds['bound'])} to {duration(seconds['expected'])}", rests_on(seconds["source"])),
            tag("span", target["bottleneck"], class_="long"),
            "" if target["run_seconds"] is None else duration(target["run_seconds"]),
            dollars(target["usd_per_run"]),
            "" if target["mfu"] is None else percent(target["mfu"]),
        ))  # fmt: skip
    head = ("target", "fits", "memory of limit", "step, bound to expected", "limited by", "run", "USD", "MFU of steps")
    caption = (
        "Memory is of one device. The bound is what the device's peaks allow, the expected time what such programs "
        "reach. Runs and MFU are modelled; prices are list prices."
    )
    if left_out:
        caption += f" The run leaves out {', '.join(left_out)}."
    return table(caption, head, rows, (1, 4))


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
        "price": f"{dollars(target['usd_per_hour'])} USD an hour ({target['price']})" if target["usd_per_hour"] else "",
        "a run": " + ".join(
            f"{name.removesuffix('_seconds')} {duration(value)}"
            for name, value in (target.get("run_parts") or {}).items()
            if value is not None
        ),
        "evaluation batch": "" if target["eval_batch_seconds"] is None else duration(target["eval_batch_seconds"]),
        "compiled in": "" if target["compile_seconds"] is None else duration(target["compile_seconds"]),
    }
    if target["memory"] is not None:
        counted = {name: target["memory"][f"{name}_bytes"] for name in ("arguments", "results", "temporaries")}
        facts["the compiler's count"] = " + ".join(f"{n} {size(b)}" for n, b in counted.items() if b is not None)
        facts |= {PARTS[name]: size(value) for name, value in memory_parts(target["memory"]).items()}
    children = [table("Facts", ("what", "value"), [(name, text) for name, text in facts.items() if text], (1,))]
    whole = (target["step_seconds"] or {}).get("expected") or 1.0
    products = [row for row in target["kernels"] if row["products"]]
    if products:
        rows = [
            (
                row["label"], "; ".join(_product(*product) for product in row["products"][:3]), f"{row['count']:,}",
                amount(row["flops"]).strip(), duration(row["seconds"]), percent(row["seconds"] / whole),
                LIMITS[row["limit"]],
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
