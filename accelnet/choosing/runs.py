"""Runs side by side, from what they left in their work directories: nothing of theirs is executed."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelnet import arguments
from accelnet.choosing.runs_page import SPLITS, runs_page
from accelnet.errors import UserError
from accelnet.json_file import parse_json, plain_value, problem, read_json, read_text
from accelnet.report.numbers import duration, shown
from accelnet.terminal import folded, rendered
from accelnet.training.record import ROW_FIELDS, write_report
from accelnet.training.stored import Stored, read_stored

_MOST_POINTS = 300  # of a curve


def compare_runs(paths: Sequence[str | Path], workdir: str | Path | None = None) -> dict[str, Any]:
    """Read what runs left behind, and say in which settings they differ.

    Args:
        paths: Work directories; those that hold no run are named and left out.
        workdir: Directory of compare-runs.json and report.html. None writes nothing.

    Returns:
        JSON values: "runs", each with "name", "experiment", "finished", "step", "epochs", "parameters", "metrics" (by
        split), "directions" (by metric, whether lower is better, where the run says it), "best" (the best validation
        value of each metric whose direction is known, with its step), "seconds", "examples_per_second", "devices",
        "seed" and "curves" (by metric and split, of [step, seconds, value]); "winners" (by split and metric, the names
        of the runs with the best value); "differing", settings with their values by run; "left_out".

    A value is the best among runs of the same data and objective alone, and only where a metric says which is better.

    Raises:
        UserError: if none of them holds a run, a file of one cannot be understood, or the report cannot be written.
    """
    if not arguments.sequence("runs", paths):
        raise UserError("no runs were given: name their work directories, such as runs/*")
    found = {path: read_stored(path) for path in [arguments.path("a run", one) for one in paths]}
    with_runs = [path for path, stored in found.items() if stored.config is not None]
    if workdir is not None:
        workdir = arguments.path("workdir", workdir)
    if not with_runs:
        raise UserError(
            f"{', '.join(map(str, paths[:5]))} hold{'s' if len(paths) == 1 else ''} no run: give work directories in "
            "which `train --workdir` has run"
        )
    names = _names(with_runs)
    settings = {names[path]: {**(found[path].description or {}), **(found[path].config or {})} for path in with_runs}
    runs = [{"name": names[path], **_read(path, found[path])} for path in with_runs]
    values = plain_value({
        "runs": runs,
        "winners": {split: _winners(runs, split) for split in SPLITS},
        "differing": _differing(settings),
        "left_out": [str(path) for path, stored in found.items() if stored.config is None],
    })  # fmt: skip
    if workdir is not None:
        write_report(workdir, "compare-runs", values, runs_page(values))
    return values


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the last part of each path, or the whole where two have the same."""
    last = [path.resolve().name for path in paths]
    return {path: name if last.count(name) == 1 else str(path) for path, name in zip(paths, last, strict=True)}


def _differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    fields = dict.fromkeys(field for values in settings.values() for field in values)
    told = {field: {name: values.get(field) for name, values in settings.items()} for field in fields}
    return {field: values for field, values in told.items() if len({json.dumps(v) for v in values.values()}) > 1}


def _read(path: Path, stored: Stored) -> dict[str, Any]:
    result, rows = _result(path), recorded_rows(path)
    last = {row["split"]: row for row in rows}
    metrics = result.get("metrics") or {split: _metrics(row) for split, row in last.items()}
    timing = result.get("timing") or {}
    description = stored.description or {}
    told = result.get("directions") or stored.directions
    known = told.items() if isinstance(told, dict) else ()  # config.json may be of another version
    directions = {name: lower for name, lower in known if isinstance(lower, bool)}
    validation = [row for row in rows if row["split"] == "validation"]
    return {
        "experiment": str(description.get("experiment", "")),
        "finished": bool(result),
        "step": result.get("step") or max((row["step"] for row in rows), default=0),
        "epochs": result.get("epochs") or max((row.get("epoch") or 0.0 for row in rows), default=0.0),
        "parameters": result.get("parameters"),
        "metrics": {split: values for split, values in metrics.items() if values},
        "directions": directions,
        "task": [description.get("data"), result.get("objective") or stored.objective],
        "best": {
            name: _best(validation, name, directions[name])
            for row in validation[-1:]
            for name in _metrics(row)
            if name in directions
        },
        "seconds": timing.get("total_seconds") or max((row.get("seconds") or 0.0 for row in rows), default=None),
        "examples_per_second": timing.get("examples_per_second"),
        "devices": result.get("devices"),
        "seed": description.get("seed"),
        "curves": _curves(rows),
    }


_NUMBER = (float, None)
_NUMBERS = {str: _NUMBER}
_RESULT = {
    "metrics?": ({str: (_NUMBERS, None)}, None), "timing?": (_NUMBERS, None), "step?": _NUMBER, "epochs?": _NUMBER,
    "parameters?": _NUMBER, "directions?": ({str: (bool, None)}, None), "devices?": ([str], None),
}  # fmt: skip
_ROW = {"step": float, "split": str}


def _result(path: Path) -> dict[str, Any]:
    return read_json(path / "result.json", "a run's result", _RESULT, f"leave {path} out") or {}


def recorded_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl in a work directory; the last one may be unfinished.

    Raises:
        UserError: if they cannot be read.
    """
    file, advice = path / "metrics.jsonl", f"leave {path} out"
    lines = (read_text(file, "a run's metrics", advice) or "").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line, _ROW)
            if wrong := problem({name: value for name, value in row.items() if name != "split"}, _NUMBERS):
                raise ValueError(wrong)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, OverflowError) as error:
            # A run that is writing this very line may not have finished it.
            if number == len(lines):
                break
            raise UserError(f"{file}, line {number} is no row of metrics ({error}): {advice}") from error
    return rows


def _metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ROW_FIELDS}


def _best(rows: Sequence[Mapping[str, Any]], name: str, lower: bool) -> dict[str, Any] | None:
    known = [row for row in rows if _is_number(row.get(name))]
    if not known:
        return None
    best = (min if lower else max)(known, key=lambda row: row[name])
    return {"value": best[name], "step": best["step"]}


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _winners(runs: Sequence[Mapping[str, Any]], split: str) -> dict[str, list[str]]:
    """Return by metric the names of the runs that no comparable run beats, where there are at least two of a kind."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run["metrics"].get(split, ())):
        kinds: dict[str, list[Any]] = {}
        for run in runs:
            # What a run does not say of itself is like nothing else.
            told = run["directions"].get(name) is not None and None not in run["task"]
            if told and _is_number(run["metrics"].get(split, {}).get(name)):
                kinds.setdefault(json.dumps([run["task"], run["directions"][name]]), []).append(run)
        for alike in kinds.values():
            values = [run["metrics"][split][name] for run in alike]
            best = (min if alike[0]["directions"][name] else max)(values)
            if len(alike) > 1:
                found.setdefault(name, []).extend(run["name"] for run in alike if run["metrics"][split][name] == best)
    return found


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[list[float]]]]:
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for row in rows:
        for name, value in _metrics(row).items():
            if value is not None and row["split"] != "test":
                point = [row["step"], row.get("seconds") or 0.0, value]
                curves.setdefault(name, {}).setdefault(row["split"], []).append(point)
    return {name: {split: _thinned(points) for split, points in splits.items()} for name, splits in curves.items()}


def _thinned(points: list[Any]) -> list[Any]:
    every = -(-len(points) // _MOST_POINTS)
    return [*points[:-1:every], points[-1]]


def runs_table(values: Mapping[str, Any]) -> str:
    """Return a comparison as text: one line per run."""
    import rich.box
    import rich.table

    # Metrics of the test, else of the first split that any run has.
    runs = values["runs"]
    split = next((split for split in SPLITS if any(run["metrics"].get(split) for run in runs)), "")
    names = dict.fromkeys(name for run in runs for name in run["metrics"].get(split, ()))
    table = rich.table.Table(box=rich.box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(("run", "steps", "time", *(f"{split} {name}" for name in names))):
        table.add_column(name, justify="right" if number else "left")
    for run in runs:
        time = "" if run["seconds"] is None else duration(run["seconds"])
        own = run["metrics"].get(split, {})
        metrics = (shown(own[name]) if name in own else "" for name in names)
        table.add_row(run["name"] + ("" if run["finished"] else ", unfinished"), f"{run['step']:,}", time, *metrics)
    lines = rendered(table, drop=("steps", "time")).splitlines()
    differing = ", ".join(values["differing"]) or "nothing"
    lines += ["", folded(f"They differ in: {differing}.")]
    if values["left_out"]:
        lines.append(f"No runs: {', '.join(values['left_out'])}.")
    return "\n".join(lines)
