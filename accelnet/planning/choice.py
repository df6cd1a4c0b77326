"""What to rent: the cheapest that fits, the fastest within a budget, and what lies between."""

import re
from collections.abc import Sequence
from typing import Any

from accelnet.errors import UserError
from accelnet.planning.rows import Row


def choose(rows: Sequence[Row], budget_usd: float | None, deadline_hours: float | None) -> dict[str, Any]:
    """Choose among targets by expected time and price.

    Args:
        rows: answers; those that do not fit, or have no price, are left out.
        budget_usd: most dollars of a run, None for any.
        deadline_hours: most hours of a run, None for any.

    Returns:
        "cheapest" and "fastest" (names, None if nothing is within both limits), "pareto" (names, cheapest first: each
        is faster than all before it), "budget_usd", "deadline_hours" and "reason".
    """
    priced = [row for row in rows if row.status == "ok" and row.usd_per_run is not None and row.run_seconds is not None]
    within = [
        row
        for row in priced
        if (budget_usd is None or _usd(row) <= budget_usd) and (deadline_hours is None or _hours(row) <= deadline_hours)
    ]
    front: list[Row] = []
    for row in sorted(priced, key=lambda row: (_usd(row), _hours(row))):
        if not front or _hours(row) < _hours(front[-1]):
            front.append(row)
    cheapest = min(within, key=lambda row: (_usd(row), _hours(row)), default=None)
    fastest = min(within, key=lambda row: (_hours(row), _usd(row)), default=None)
    return {
        "cheapest": None if cheapest is None else cheapest.name,
        "fastest": None if fastest is None else fastest.name,
        "pareto": [row.name for row in front],
        "budget_usd": budget_usd,
        "deadline_hours": deadline_hours,
        "reason": _reason(rows, priced, within, cheapest, fastest),
    }


def _usd(row: Row) -> float:
    assert row.usd_per_run is not None
    return row.usd_per_run


def _hours(row: Row) -> float:
    assert row.run_seconds is not None
    return row.run_seconds / 3600


def _reason(
    rows: Sequence[Row],
    priced: Sequence[Row],
    within: Sequence[Row],
    cheapest: Row | None,
    fastest: Row | None,
) -> str:
    if not priced:
        return "none of the targets that fit has a price: name others, or give prices in a file of your own"
    if cheapest is None or fastest is None:
        least, quickest = min(priced, key=_usd), min(priced, key=_hours)
        return f"nothing is within the limits: cheapest that fits {_told(least)}; fastest {_told(quickest)}"
    left_out = len(rows) - len(priced)
    return (
        f"{len(within)} of {len(rows)} targets are within the limits"
        + (f" ({left_out} more do not fit, failed or have no price)" if left_out else "")
        + f"; cheapest {_told(cheapest)}; fastest {_told(fastest)} (expected times, list prices)"
    )


def _told(row: Row) -> str:
    from accelnet.report.numbers import duration

    return f"{row.name} at {_usd(row):.2g} USD in {duration(3600 * _hours(row))}"


def parse_usd(text: str) -> float:
    """Read an amount of dollars as people type it.

    Raises:
        UserError: if it is none, or not above 0.

    Example:
        >>> parse_usd("20usd"), parse_usd("$1.50"), parse_usd("3")
        (20.0, 1.5, 3.0)
    """
    found = re.fullmatch(r"\s*\$?\s*(\d+(?:\.\d+)?)\s*(?:usd|\$|dollars?)?\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise UserError(f"the budget is {text!r}, expected dollars above 0, such as 20usd")
    return float(found[1])


_HOURS = {"s": 1 / 3600, "sec": 1 / 3600, "m": 1 / 60, "min": 1 / 60, "h": 1.0, "d": 24.0}


def parse_hours(text: str) -> float:
    """Read a time as people type it, in hours.

    Raises:
        UserError: if it is none, or not above 0.

    Example:
        >>> parse_hours("2h"), parse_hours("90min"), parse_hours("1d")
        (2.0, 1.5, 24.0)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|m|min|h|d)\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise UserError(f"the deadline is {text!r}, expected a time above 0 with its unit, such as 2h, 90min or 1d")
    return float(found[1]) * _HOURS[found[2].lower()]
