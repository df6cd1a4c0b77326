"""A plan as a table."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import rich.box
import rich.table

from accelnet.report.numbers import amount, dollars, duration, percent
from accelnet.terminal import columns, rendered
from accelnet.wording import size


def plan_table(plan: Mapping[str, Any]) -> str:
    """Return a plan as text: a table as wide as the terminal, and notes of at most 100 columns.

    Args:
        plan: Values of `Plan.to_dict`, as plan.json holds them.
    """
    table = rich.table.Table(box=rich.box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("target", "fits", "memory", "step", "limited by", "run", "USD", "MFU"):
        is_number = name in ("memory", "step", "run", "USD", "MFU")
        table.add_column(name, justify="right" if is_number else "left", no_wrap=name != "limited by")
    for row in plan["targets"]:
        memory, seconds = row["memory"], row["step_seconds"]
        if memory is None or seconds is None:
            table.add_row(row["name"], "?", "", "", "see below", "", "", "")
            continue
        used = percent(memory["total_bytes"] / memory["limit_bytes"]).replace("\u00a0", " ")
        mark = {"compiled": "", "accepted": "≤"}.get(memory["source"], "~")
        guess = "" if "compiled" in seconds["source"] else "~"
        table.add_row(
            row["name"],
            "yes" if row["fits"] else "no",
            f"{mark}{size(memory['total_bytes'])} {used:>6}",
            f"{guess}{duration(seconds['bound'])}–{duration(seconds['expected'])}",
            row["bottleneck"],
            duration(row["run_seconds"] or 0.0),
            dollars(row["usd_per_run"]),
            "" if row["mfu"] is None else percent(row["mfu"]).replace("\u00a0", " "),
        )
    parts = {name: plan["flops"][name] for name in ("forward", "backward", "optimizer")}
    head = (
        f"{plan['experiment']}: {plan['steps']:,} steps of {plan['batch_size']:,} examples, "
        f"{amount(sum(parts.values()))}FLOP a step "
        f"({', '.join(f'{name} {amount(flops)}' for name, flops in parts.items())})"
    )
    shown = rendered(table, 120, drop=("limited by", "MFU", "memory"))
    return "\n".join([*_wrapped([head]), "", shown, "", *_wrapped(_notes(plan))])


def _notes(plan: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "memory: of a device, as its compiler counts it, and the share of what a program can use, on GPUs the share "
        "that JAX takes. step: from the bound, the device's peaks, to what is typical. run, USD: all steps at the "
        "typical time, evaluation, compiling as long as it took here, and moving the data; list prices. MFU: of the "
        "steps at the typical time."
    )
    yield f"run leaves out: {', '.join(plan['run_leaves_out'])}; and compiling, where nothing was compiled."
    rows = plan["targets"]
    sources = {row["step_seconds"]["source"] for row in rows if row["step_seconds"] is not None}
    rates = "measured and stated" if any("measured" in source for source in sources) else "stated"
    yield f"Times are modelled from {rates} rates; ~ marks what no compiler has seen."
    if timed := [row["name"] for row in rows if row["step_seconds"] and "timed" in row["step_seconds"]["source"]]:
        yield f"{', '.join(timed)}: a step was timed on this machine, and its time is the typical one."
    reasons = dict.fromkeys(row["missing"] for row in rows if row["missing"])
    for reason in reasons:
        names = [row["name"] for row in rows if row["missing"] == reason]
        yield f"{', '.join(names)}: memory, kernels and exchanges are estimates from shapes: {reason}"
    if accepted := [row["name"] for row in rows if row["memory"] and row["memory"]["source"] == "accepted"]:
        yield f"{', '.join(accepted)}: the compiler took the program and did not say how much memory it needs (≤)."
    for row in rows:
        if row["status"] == "failed":
            yield f"{row['name']}: {row['reason']}"
        yield from _remedies(row)
    if plan["choice"] is not None:
        yield f"To rent: {plan['choice']['reason']}."
        if plan["choice"]["pareto"]:
            yield f"Each faster than the one before, and dearer: {', '.join(plan['choice']['pareto'])}."


def _remedies(row: Mapping[str, Any]) -> Iterator[str]:
    if row["status"] != "does not fit":
        return
    yield f"{row['name']} does not fit: {row['reason']}"
    for remedy in row["remedies"]:
        settings = ", ".join(f"{name}={value!r}" for name, value in remedy["settings"].items() if value is not None)
        yield (
            f"  fits with {remedy['change']}{f' ({settings})' if settings else ''}: {size(remedy['total_bytes'])}, "
            f"{remedy['slowdown']:.2f} times the time per example"
        )
    if not row["remedies"]:
        yield "  nothing that was tried makes it fit: fewer parameters, or larger devices"


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    width = min(columns(), 100)
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if len(line) <= width:
            yield line
        else:
            yield from textwrap.wrap(line, width, subsequent_indent=" " * (indent + 2))
