"""What a storm found: the table, and benchmarks/faults.json."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.faultstorm.storm import Ground, Verdict


def summary(verdicts: Sequence[Verdict], grounds: Mapping[str, Ground]) -> dict[str, Any]:
    """Return the counts of each kind of fault and of all, as JSON values."""
    kinds = dict.fromkeys(verdict.fault.kind for verdict in verdicts)
    return {
        "kinds": {kind: _counts([v for v in verdicts if v.fault.kind == kind], grounds) for kind in kinds},
        "all": _counts(verdicts, grounds),
        "wrong": [wrong_of(verdict) for verdict in verdicts if is_wrong(verdict)],
    }


def is_wrong(verdict: Verdict) -> bool:
    """Say whether anything that is promised did not hold."""
    return bool(verdict.lost or verdict.different or verdict.misnamed)


def wrong_of(verdict: Verdict) -> dict[str, Any]:
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


def _counts(verdicts: Sequence[Verdict], grounds: Mapping[str, Ground]) -> dict[str, Any]:
    hit = [verdict for verdict in verdicts if verdict.hit or is_wrong(verdict)]
    recoveries = [seconds for verdict in hit for seconds in verdict.recover_seconds]
    whole = sum(grounds[verdict.fault.run].seconds for verdict in hit)
    steps = sum(grounds[verdict.fault.run].reference.outcome.rows[-1]["step"] for verdict in hit)
    lost_steps = sum(verdict.steps_lost for verdict in hit)
    return {
        "tried": len(hit),
        "missed": len(verdicts) - len(hit),
        "bitwise": sum(not verdict.lost and not verdict.different for verdict in hit),
        "named": sum(not verdict.misnamed for verdict in hit),
        "lost": sum(bool(verdict.lost) for verdict in hit),
        "silently_wrong": sum(bool(verdict.different) for verdict in hit),
        "median_recover_seconds": statistics.median(recoveries) if recoveries else None,
        "largest_recover_seconds": max(recoveries, default=None),
        "steps_lost": lost_steps / len(hit) if hit else None,
        "goodput_steps": steps / (steps + lost_steps) if hit else None,
        "goodput_seconds": whole / sum(verdict.seconds for verdict in hit) if hit else None,
    }


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
