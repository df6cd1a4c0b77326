"""Values of wrong kinds, small files, and what each slip has to end with: one line, at once."""

import contextlib
import math
import signal
import tempfile
from pathlib import Path

import numpy as np

import accelnet as an

NAN, INF = math.nan, math.inf
ONE_LINE = ""  # the words differ from value to value; what is looked at is that there is one line
SECONDS = 60  # for one input, on a machine with much else to do; most take a millisecond


class Thing:
    def __repr__(self):
        return "Thing()"


def FUNCTION():  # noqa: N802, a value among others
    return 3


THING = Thing()
ODD = [THING, [], {}, int, FUNCTION]
# What is none of the kind, by the kind that is expected.
WHOLE = [None, "3", 1.5, NAN, INF, -1, True, *ODD]
NUMBER = [None, "3", NAN, INF, True, 1j, *ODD]
TEXT = [None, 3, 1.5, b"a", "", *ODD]
NAMES = [3, 1.5, "ab", [3], [None], ["a", "a"], THING, int, FUNCTION]
FLAG = [None, "yes", 1.5, THING, [], int]
FUNC = [None, 3, "relu", THING, [], {}]
PATH = [3, 1.5, "", "a\0b", THING, [], {}, int, FUNCTION, True]
ARR = [None, "abc", THING, {}, int, FUNCTION, [[1, 2], [3]], [[]], np.zeros((20, 0)), 3.0]

X, Y = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32), np.arange(20) % 2
_kept = tempfile.TemporaryDirectory()  # until the process ends
FOLDER = Path(_kept.name)
CSV, TEXT_FILE, NPZ = FOLDER / "a.csv", FOLDER / "a.txt", FOLDER / "a.npz"
CSV.write_text("a,b,c\n" + "".join(f"{i},{i * 2 % 7},{'xy'[i % 2]}\n" for i in range(40)))
TEXT_FILE.write_text("hello world. " * 200)
np.savez(NPZ, inputs=X, targets=Y)


def without(values, *others):
    """Leave out values that are right after all."""
    return [value for value in values if not any(value is other for other in others)]


class Hangs(BaseException):
    """Not an Exception: no code that reports those of the user's may take it for one."""


@contextlib.contextmanager
def in_time():
    def ring(*_):
        raise Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(words, make, value):
    """Return what is wrong with how a slip ended, or nothing."""
    try:
        with in_time():
            made = make(value)
    except an.UserError as error:
        said = str(error)
        good = said.strip() and words in said and said.isprintable() and len(said) < 1000
        return "" if good else f"said {said!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"ended with {type(error).__name__}: {str(error)[:200]}"
    return f"was accepted: {made!r:.100}"


def check(words, make, values):
    """Let every value of a row end with a `UserError` of one line that holds some words."""
    ends = [(value, outcome(words, make, value)) for value in values]
    assert not [f"{value!r} {end}" for value, end in ends if end]
