"""What to rent, from rows written by hand."""

import pytest

from accelnet.errors import UserError
from accelnet.planning.choice import choose, parse_hours, parse_usd
from accelnet.planning.rows import Row


def row(name, hours, usd, status="ok"):
    return Row(name, status, run_seconds=hours * 3600, usd_per_run=usd)


ROWS = [
    row("slow", 10, 1.0),
    row("middle", 2, 4.0),
    row("bad", 3, 5.0),
    row("fast", 1, 20.0),
    row("huge", 1, 1, "does not fit"),
]


def test_the_cheapest_and_the_fastest_within_both_limits():
    choice = choose(ROWS, 10.0, 5.0)
    assert (choice["cheapest"], choice["fastest"]) == ("middle", "middle")
    choice = choose(ROWS, 10.0, None)
    assert (choice["cheapest"], choice["fastest"]) == ("slow", "middle")
    assert (choose(ROWS, None, 5.0)["cheapest"], choose(ROWS, None, 5.0)["fastest"]) == ("middle", "fast")


def test_the_front_leaves_out_what_is_slower_and_dearer():
    assert choose(ROWS, 10.0, None)["pareto"] == ["slow", "middle", "fast"]


def test_nothing_within_the_limits_says_what_it_would_take():
    choice = choose(ROWS, 0.5, 0.5)
    assert choice["cheapest"] is None
    assert "cheapest that fits slow at 1.00 USD in 10.0 h; fastest fast at 20.00 USD in 1.0 h" in choice["reason"]


def test_rows_without_a_price_cannot_be_chosen():
    assert "has a price" in choose([row("own", 1, None)], 1.0, None)["reason"]


@pytest.mark.parametrize("text", ["", "free", "-3", "0", "3 eur"])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="such as 20usd"):
        parse_usd(text)


@pytest.mark.parametrize("text", ["", "2", "-1h", "0h", "2 weeks"])
def test_a_deadline_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="such as 2h"):
        parse_hours(text)
