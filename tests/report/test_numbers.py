"""Numbers in words: rounding never makes another form of them."""

import pytest

from accelnet.report.numbers import amount, percent, short


@pytest.mark.parametrize(
    ("share", "words"),
    [(1.0, "100 %"), (0.9996, "100 %"), (0.0998, "10 %"), (0.0994, "9.9 %"), (1e-9, "<0.1 %"), (0.0, "0.0 %")],
)
def test_a_share_is_a_percentage_without_an_exponent(share, words):
    assert percent(share).replace("\u00a0", " ") == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(999.4, "999"), (999.7, "1 k"), (-999.7, "-1 k"), (-5000.0, "-5 k"), (-1.5e6, "-1.50 M"), (0.0, "0")],
)
def test_a_number_of_three_digits_has_no_exponent_near_a_thousand_and_below_zero(value, words):
    assert short(value) == words
    assert "e" not in amount(abs(value))
