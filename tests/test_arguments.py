import re

import numpy as np
import pytest

from accelnet import arguments, wording
from accelnet.errors import UserError


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (arguments.integer, 1.5, "x is 1.5, expected a whole number of at least 0"),
        (arguments.integer, 64.0, "x is 64.0, expected a whole number"),
        (arguments.integer, True, "x is True, expected a whole number"),
        (arguments.integer, "3", "x is '3', expected a whole number"),
        (arguments.integer, None, "x is None, expected a whole number"),
        (arguments.integer, -1, "x is -1, expected a whole number of at least 0"),
        (arguments.number, float("nan"), "x is nan, expected a finite number"),
        (arguments.number, float("inf"), "x is inf, expected a finite number"),
        (arguments.number, "1", "x is '1', expected a finite number"),
        (arguments.number, np.True_, "expected a finite number"),
        (arguments.number, 1j, "x is 1j, expected a finite number"),
    ],
)
def test_wrong_numbers_are_refused(check, value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check("x", value, low=0)


def test_good_values_come_back_as_plain_ones():
    assert [type(one) for one in (arguments.integer("x", np.int64(3)), arguments.number("x", np.float32(0.5)))] == [
        int,
        float,
    ]
    assert arguments.number("x", 3, above=2) == 3.0
    assert arguments.fraction("x", 0) == 0.0
    assert arguments.names("x", ["a", "b"]) == ("a", "b")


@pytest.mark.parametrize("value", [None, "a", 1.0, -0.1, 5, True, float("nan")])
def test_wrong_fractions_are_refused(value):
    with pytest.raises(UserError, match="expected a fraction of the rows"):
        arguments.fraction("test", value)


@pytest.mark.parametrize("value", ["ab", None, 5, ["a", 1], ["a", "a"], b"ab"])
def test_wrong_names_are_refused(value):
    with pytest.raises(UserError, match="names"):
        arguments.names("names", value)


@pytest.mark.parametrize("value", [None, 5, "", b"a", "a\0b", []])
def test_wrong_paths_are_refused(value):
    with pytest.raises(UserError, match="expected the path"):
        arguments.path("path", value)


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize("value", ["\x1b[31m\n", Unprintable(), "x" * 1000, np.zeros((1000, 1000)), lambda: 0])
def test_a_value_in_a_message_is_short_and_has_no_control_characters(value):
    text = wording.shown(value)
    assert text.isprintable()
    assert len(text) <= 80


def test_long_lists_are_cut():
    assert wording.listed(range(25)).endswith("19 and 5 more")
