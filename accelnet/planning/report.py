"""A plan as a table, and as the files plan.json and plan.html."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import rich.box
import rich.table

from accelnet.planning.run_time import NOT_COUNTED
from accelnet.report.numbers import amount, duration, size
from accelnet.terminal import rendered
from accelnet.training.record import write_atomically

if TYPE_CHECKING:
    from accelnet.planning.plan import Plan
    from accelnet.planning.rows import Row


def plan_table(plan: "Plan") -> str:
    """Return a plan as text, at most 100 columns wide.

    Args:
        plan: the answers.
    """
    table = rich.table.Table(box=rich.box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("target", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("limited by")
    table.add_column("run", justify="right", no_wrap=True)
    table.add_column("USD", justify="right", no_wrap=True)
    table.add_column("MFU", justify="right", no_wrap=True)
    for row in plan.rows:
        if row.memory is None or row.time is None:
            table.add_row(row.name, "?", "", "", "see below", "", "", "")
            continue
        mark = {"compiled": "", "accepted": "≤"}.get(row.memory.source, "~")
        table.add_row(
            row.name,
            "yes" if row.fits else "no",
            f"{mark}{size(row.memory.total)} {100 * row.memory.total / row.memory.limit:3.0f} %",
            f"{'' if 'compiled' in row.time.source else '~'}{duration(row.time.bound)}–{duration(row.time.expected)}",
            row.time.bottleneck,
            duration(row.run_seconds or 0.0),
            "" if row.usd_per_run is None else f"{row.usd_per_run:.2g}",
            "" if row.mfu is None else f"{100 * row.mfu:.2g} %",
        )
    head = (
        f"{plan.experiment}: {plan.steps:,} steps of {plan.batch_size:,} examples, "
        f"{amount(plan.flops['forward'] + plan.flops['backward'] + plan.flops['optimizer'])}FLOP a step "
        f"(forward {amount(plan.flops['forward'])}, backward {amount(plan.flops['backward'])}, "
        f"optimizer {amount(plan.flops['optimizer'])})"
    )
    lines = rendered(table).splitlines()
    return "\n".join(_wrapped([head, "", *lines, "", *_notes(plan)]))


def _notes(plan: "Plan") -> Iterator[str]:
    yield (
        "memory: of a device, as its compiler counts it, and the share of what a program can use, on GPUs the share "
        "that JAX takes. step: from the bound, the device's peaks, to what is typical. run, USD: all steps at the "
        "typical time, evaluation, compiling as long as it took here, and moving the data; list prices. MFU: of the "
        "steps at the typical time."
    )
    yield f"run leaves out: {', '.join(NOT_COUNTED)}; and compiling, where nothing was compiled."
    sources = {row.time.source for row in plan.rows if row.time is not None}
    rates = "measured and stated" if any("measured" in source for source in sources) else "stated"
    yield f"Times are modelled from {rates} rates; ~ marks what no compiler has seen."
    reasons = dict.fromkeys(row.missing for row in plan.rows if row.missing)
    for reason in reasons:
        names = [row.name for row in plan.rows if row.missing == reason]
        yield f"{', '.join(names)}: memory, kernels and exchanges are estimates from shapes: {reason}"
    if accepted := [row.name for row in plan.rows if row.memory is not None and row.memory.source == "accepted"]:
        yield f"{', '.join(accepted)}: the compiler took the program and did not say how much memory it needs (≤)."
    for row in plan.rows:
        if row.status == "failed":
            yield f"{row.name}: {row.reason}"
        yield from _remedies(row)
    if plan.choice is not None:
        yield f"To rent: {plan.choice['reason']}."
        if plan.choice["pareto"]:
            yield f"Each faster than the one before, and dearer: {', '.join(plan.choice['pareto'])}."


def _remedies(row: "Row") -> Iterator[str]:
    if row.status != "does not fit":
        return
    yield f"{row.name} does not fit: {row.reason}"
    for remedy in row.remedies:
        settings = ", ".join(f"{name}={value!r}" for name, value in remedy["settings"].items() if value is not None)
        yield (
            f"  fits with {remedy['change']}{f' ({settings})' if settings else ''}: {size(remedy['total_bytes'])}, "
            f"{remedy['slowdown']:.2f} times the time per example"
        )
    if not row.remedies:
        yield "  nothing that was tried makes it fit: fewer parameters, or larger devices"


def _wrapped(lines: list[str], width: int = 100) -> Iterator[str]:
    import textwrap

    for line in lines:
        indent = len(line) - len(line.lstrip())
        if len(line) <= width:
            yield line
        else:
            yield from textwrap.wrap(line, width, subsequent_indent=" " * (indent + 2))


def write_plan(plan: "Plan", workdir: Path) -> None:
    """Write plan.json and plan.html, each whole or not at all.

    Args:
        plan: the answers.
        workdir: where; made if needed.

    Raises:
        UserError: if it cannot be written to.
    """
    from accelnet.planning.page import plan_page

    write_atomically(workdir / "plan.json", json.dumps(plan.to_dict(), indent=1) + "\n")
    write_atomically(workdir / "plan.html", plan_page(plan.to_dict()))
