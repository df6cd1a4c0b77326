"""Numbers as people read them."""

from collections.abc import Mapping
from typing import Any


def duration(seconds: float) -> str:
    """Return a time as people read it.

    Example:
        >>> duration(0.00123), duration(5400), duration(90), duration(2e-9)
        ('1.2 ms', '1.5 h', '90 s', '2.0 ns')
    """
    if 0 < seconds < 1e-7:
        return f"{seconds * 1e9:.1f} ns"
    for unit, length, limit in (("µs", 1e-6, 1e-3), ("ms", 1e-3, 1.0), ("s", 1.0, 100.0), ("min", 60.0, 3600.0)):
        if seconds < limit:
            value = seconds / length
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{seconds / 3600:.1f} h"


def amount(number: float) -> str:
    """Return a count with a decimal prefix and a space behind it.

    Example:
        >>> amount(1.5e9) + "FLOP"
        '1.50 GFLOP'
    """
    for prefix, unit in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if round(number) >= unit:
            return f"{number / unit:.2f} {prefix}"
    return f"{number:.0f} "


def short(value: float, unit: str = "") -> str:
    """Return a number in three digits, with a prefix from a thousand on.

    Example:
        >>> short(0.0312), short(197e12, "FLOP/s"), short(999.7), short(-2500.0)
        ('0.0312', '197 TFLOP/s', '1 k', '-2.50 k')
    """
    if abs(value) >= 999.5:
        text = ("-" if value < 0 else "") + amount(abs(value)).replace(".00", "")
    else:
        text = f"{value:.3g} "
    return f"{text}{unit}".strip()


def percent(share: float) -> str:
    r"""Return a share as a percentage that no line break cuts.

    Example:
        >>> percent(0.412), percent(0.031), percent(1.0), percent(1e-6)
        ('41\xa0%', '3.1\xa0%', '100\xa0%', '<0.1\xa0%')
    """
    if 0 < share < 0.0005:
        return "<0.1\u00a0%"
    return f"{100 * share:.{0 if share >= 0.0995 else 1}f}\u00a0%"


def dollars(value: float | None) -> str:
    """Return dollars: cents from one on, two digits below; None as nothing.

    Example:
        >>> dollars(1234.5), dollars(0.0031), dollars(None)
        ('1,234.50', '0.0031', '')
    """
    return "" if value is None else f"{value:,.2f}" if value >= 0.995 or not value else f"{value:.2g}"


def number(value: float | None) -> str:
    """Return a number in four digits or to the whole, None as nothing.

    Example:
        >>> number(0.123456), number(12803.7), number(None)
        ('0.1235', '12,804', '')
    """
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def shown(value: float | None) -> str:
    """Return a measured number as `number` does, and say of None that it is undefined.

    Example:
        >>> shown(0.123456), shown(None)
        ('0.1235', 'undefined')
    """
    return "undefined" if value is None else number(value)


def interval(found: Mapping[str, Any]) -> str:
    """Return the interval of a measured number in words, nothing where there is none.

    Args:
        found: JSON values "low" and "high".

    Example:
        >>> interval({"low": 0.25, "high": 0.5}), interval({"low": None, "high": None})
        ('0.25 to 0.5', '')
    """
    if found["low"] is None or found["high"] is None:
        return ""
    return f"{number(found['low'])} to {number(found['high'])}"
