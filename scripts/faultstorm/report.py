"""What a storm found: the table, and benchmarks/faults.json."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.faultstorm.storm import Ground, Verdict

Row = dict[str, Any]


def summary(faults: Mapping[str, Row], references: Mapping[str, Row]) -> dict[str, Any]:
    """Return the counts of each kind of fault and of all.

    Args:
        faults: Rows of faults by number, as `row_of` makes them.
        references: What each kind of run is like when nothing happens, as `reference_of` says.
    """
    rows = [faults[number] for number in sorted(faults, key=int)]
    kinds = dict.fromkeys(row["kind"] for row in rows)
    return {
        "kinds": {kind: _counts([row for row in rows if row["kind"] == kind], references) for kind in kinds},
        "all": _counts(rows, references),
    }


def reference_of(ground: Ground) -> Row:
    """Return the seconds and the steps of a run to which nothing happens."""
    return {"seconds": round(ground.seconds, 3), "steps": ground.reference.outcome.rows[-1]["step"]}


def row_of(verdict: Verdict) -> Row:
    """Return what the record keeps of a fault: more where something was wrong, or where nothing happened."""
    row = {
        "kind": verdict.fault.kind,
        "run": verdict.fault.run,
        "recover_seconds": [round(seconds, 3) for seconds in verdict.recover_seconds],
        "steps_lost": verdict.steps_lost,
        "seconds": round(verdict.seconds, 3),
    }
    if is_wrong(verdict):
        row["wrong"] = wrong_of(verdict)
    return row | ({} if verdict.hit else {"missed": True})


def is_wrong(verdict: Verdict) -> bool:
    """Say whether anything that is promised did not hold."""
    return bool(verdict.lost or verdict.different or verdict.misnamed)


def wrong_of(verdict: Verdict) -> Row:
    """Return what was wrong, as JSON values."""
    return {
        "index": verdict.fault.index,
        "fault": verdict.fault.describe(),
        "hit": verdict.hit,
        "lost": verdict.lost,
        "different": list(verdict.different),
        "misnamed": list(verdict.misnamed),
        "said": [text if len(text) <= 600 else f"{text[:300]} ... {text[-300:]}" for text in verdict.said],
    }


def _counts(rows: Sequence[Row], references: Mapping[str, Row]) -> Row:
    hit = [row for row in rows if "missed" not in row or "wrong" in row]
    wrong = [row["wrong"] for row in hit if "wrong" in row]
    recoveries = [seconds for row in hit for seconds in row["recover_seconds"]]
    whole = sum(references[row["run"]]["seconds"] for row in hit)
    steps = sum(references[row["run"]]["steps"] for row in hit)
    lost_steps = sum(row["steps_lost"] for row in hit)
    return {
        "tried": len(hit),
        "missed": len(rows) - len(hit),
        "bitwise": len(hit) - sum(bool(one["lost"] or one["different"]) for one in wrong),
        "named": len(hit) - sum(bool(one["misnamed"]) for one in wrong),
        "lost": sum(bool(one["lost"]) for one in wrong),
        "silently_wrong": sum(bool(one["different"]) for one in wrong),
        "median_recover_seconds": statistics.median(recoveries) if recoveries else None,
        "largest_recover_seconds": max(recoveries, default=None),
        "steps_lost": lost_steps / len(hit) if hit else None,
        "goodput_steps": steps / (steps + lost_steps) if hit else None,
        "goodput_seconds": whole / sum(row["seconds"] for row in hit) if hit else None,
    }


def written(record: Mapping[str, Any]) -> str:
    """Return a record as JSON, each fault on a line of its own."""
    rest = json.dumps({name: value for name, value in record.items() if name != "faults"}, indent=1)
    lines = ",\n".join(f"  {json.dumps(number)}: {json.dumps(row)}" for number, row in record["faults"].items())
    return f'{rest[:-2]},\n "faults": {{\n{lines}\n }}\n}}\n'


def table(found: Mapping[str, Any]) -> str:
    """Return the counts as a table of plain text."""
    header = ("fault", "tried", "bitwise", "named", "lost", "recover s", "steps lost", "goodput")
    rows = [_row(kind, counts) for kind, counts in sorted(found["kinds"].items())] + [_row("all", found["all"])]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) if not column else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in [header, *rows]
    )  # fmt: skip


def _row(kind: str, counts: Mapping[str, Any]) -> tuple[str, ...]:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    goodput = counts["goodput_steps"]
    return (
        kind, *(str(counts[name]) for name in ("tried", "bitwise", "named", "lost")),
        number(counts["median_recover_seconds"], 2), number(counts["steps_lost"], 1),
        "-" if goodput is None else f"{100 * goodput:.1f} %",
    )  # fmt: skip
