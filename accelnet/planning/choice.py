"""What to rent: the cheapest that fits, the fastest within a budget, and what lies between."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from accelnet.errors import UserError
from accelnet.planning.rows import Row
from accelnet.report.numbers import dollars, duration


class _Offer(NamedTuple):
    usd: float
    hours: float
    name: str

    def __str__(self) -> str:
        return f"{self.name} at {dollars(self.usd)} USD in {duration(3600 * self.hours)}"


def choose(rows: Sequence[Row], budget_usd: float | None, deadline_hours: float | None) -> dict[str, Any]:
    """Choose among targets by expected time and price.

    Args:
        rows: Answers; those that do not fit, or have no price, are left out.
        budget_usd: The most dollars of a run, None for any number.
        deadline_hours: The most hours of a run, None for any number.

    Returns:
        "cheapest" and "fastest" (names, None if nothing is within both limits), "pareto" (names, cheapest first, each
        faster than all before it), "budget_usd", "deadline_hours" and "reason".
    """
    offers = [
        _Offer(row.usd_per_run, row.run_seconds / 3600, row.name)
        for row in rows
        if row.status == "ok" and row.usd_per_run is not None and row.run_seconds is not None
    ]
    budget, deadline = (math.inf if limit is None else limit for limit in (budget_usd, deadline_hours))
    within = [offer for offer in offers if offer.usd <= budget and offer.hours <= deadline]
    front: list[_Offer] = []
    for offer in sorted(offers, key=lambda offer: offer[:2]):
        if not front or offer.hours < front[-1].hours:
            front.append(offer)
    cheapest = min(within or offers, key=lambda offer: (offer.usd, offer.hours), default=None)
    fastest = min(within or offers, key=lambda offer: (offer.hours, offer.usd), default=None)
    best, left_out = f"{cheapest}; fastest {fastest}", len(rows) - len(offers)
    if not offers:
        reason = "none of the targets that fit has a price: name others, or give prices in a file of your own"
    elif not within:
        reason = f"nothing is within the limits: cheapest that fits {best}"
    else:
        others = f" ({left_out} more do not fit, failed or have no price)" if left_out else ""
        reason = f"{len(within)} of {len(rows)} targets are within the limits{others}; cheapest {best}"
        reason += " (expected times, list prices)"
    return {
        "cheapest": cheapest.name if within and cheapest else None,
        "fastest": fastest.name if within and fastest else None,
        "pareto": [offer.name for offer in front],
        "budget_usd": budget_usd,
        "deadline_hours": deadline_hours,
        "reason": reason,
    }


def parse_usd(text: str) -> float:
    """Read an amount of dollars as people type it.

    Raises:
        UserError: if the text is no such amount, or not above 0.

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
    """Read a time in hours as people type it.

    Raises:
        UserError: if the text is no such time, or not above 0.

    Example:
        >>> parse_hours("2h"), parse_hours("90min"), parse_hours("1d")
        (2.0, 1.5, 24.0)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|m|min|h|d)\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise UserError(f"the deadline is {text!r}, expected a time above 0 with its unit, such as 2h, 90min or 1d")
    return float(found[1]) * _HOURS[found[2].lower()]
