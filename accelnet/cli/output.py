"""Results on standard output: tables of metrics, and the end of every verb."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelnet.terminal import rendered, show


@dataclass(frozen=True)
class JsonOutput:
    """Form of the answer."""

    json: bool = False
    """Print the result as one JSON object, on the last line of standard output."""


@dataclass(frozen=True)
class Output(JsonOutput):
    """Form of the answer."""

    quiet: bool = False
    """Show no progress."""


def finish(
    output: JsonOutput,
    text: object,
    values: Mapping[str, Any],
    workdir: Path | None,
    *files: str,
    next_command: str | None = None,
) -> None:
    """Show an answer as text, where it is kept, what comes next, and as JSON with --json.

    Args:
        output: Options of the command line.
        text: The answer.
        values: The answer as JSON values.
        workdir: Directory of the files; None if there are none.
        *files: Their names.
        next_command: What can be typed next.
    """
    show(text)
    if workdir is not None:
        show(f"kept in {' and '.join(str(workdir / name) for name in files)}")
    if next_command is not None:
        show(f"next: {next_command}")
    if output.json:
        show(json.dumps(values))


def show_metrics(metrics: Any) -> None:
    """Show a table of metrics by split and name, without the splits that are empty."""
    from rich.table import Table

    splits = [split for split in metrics if metrics[split]]
    table = Table("metric", *splits, box=None, pad_edge=False)
    for name in dict.fromkeys(name for split in splits for name in metrics[split]):
        table.add_row(name, *[_value(metrics[split].get(name)) for split in splits])
    show(rendered(table))


def show_intervals(values: Any) -> None:
    """Show the metrics of an assessment with their intervals."""
    from accelnet.report.numbers import interval

    few = any(found["low"] is None and found["value"] is not None for found in values["metrics"].values())
    show(f"\n{values['split']}, {values['examples']:,} examples, {'too few for' if few else 'with 95 %'} intervals")
    width = max(map(len, values["metrics"]))
    for name, found in values["metrics"].items():
        within = interval(found)
        show(f"{name:{width}}  {_value(found['value'])}" + (f"  {within}" if within else ""))


def _value(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
