"""What became of an export: values, and how they look in a terminal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD = "export.json"


@dataclass(frozen=True, eq=False, repr=False)
class Exported:
    """Hold the result of an export.

    Attributes:
        folder: Directory of the files.
        values: Content of export.json: "experiment", "step", "rows", "tolerance", "metrics" and, by name of the format,
            "formats", each with "files", "runtime", "batch", "steps", "largest", "differences", "changed", "metrics"
            and "latency"; and "earlier", files of formats that lie there from an earlier export.
    """

    folder: Path
    values: dict[str, Any]

    @property
    def files(self) -> list[Path]:
        """The files that were written."""
        names = dict.fromkeys(name for form in self.values["formats"].values() for name in form["files"])
        return [self.folder / name for name in names]

    def __repr__(self) -> str:
        from rich.table import Table

        from accelnet.terminal import rendered

        rows, metric = self.values["rows"], _shown_metric(self.values["metrics"])
        sizes = sorted({one["batch_size"] for form in self.values["formats"].values() for one in form["latency"]})
        times = [f"ms, {one} row{'s' * (one > 1)}" for one in sizes]
        table = Table(
            "format", "checked by", "difference", *([metric] if metric else []), *times, box=None, pad_edge=False
        )
        for name, form in self.values["formats"].items():
            cells = [name, form["runtime"] + _limits(form), f"{form['largest']:.1e}"]
            cells += [_change(*form["metrics"][metric])] if metric else []
            found = {one["batch_size"]: one for one in form["latency"]}
            table.add_row(*cells, *(_time(found[one]) if one in found else "" for one in sizes))
        what = f"{self.values['experiment']}, step {self.values['step']:,}, on {rows['count']:,} rows ({rows['of']})"
        lines = [f"{what}; times beside accelnet's own", rendered(table, 140, drop=times)]
        lines.append(f"in {self.folder}: {', '.join(path.name for path in self.files)}, {RECORD}")
        lines += [f"{name} in {self.folder} is of an earlier export" for name in self.values["earlier"]]
        return "\n".join(lines)


def _shown_metric(metrics: dict[str, float]) -> str | None:
    """Return the metric that is shown: one beside the loss, where there is one."""
    return next((name for name in metrics if name != "loss"), next(iter(metrics), None))


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "undefined"
    return f"{after:.4f} ({after - before:+.4f})" if after != before else f"{after:.4f} (same)"


def _limits(form: dict[str, Any]) -> str:
    batch = "" if form["batch"] == "any" else f", {form['batch']} row{'s' * (form['batch'] > 1)} at once"
    return batch + ("" if form["steps"] in (None, "any") else f", {form['steps']} steps")


def _time(one: dict[str, Any]) -> str:
    return f"{one['seconds'] * 1e3:.3g} | {one['accelnet_seconds'] * 1e3:.3g}"
