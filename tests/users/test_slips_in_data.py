"""Slips in data: arrays, files, vocabularies."""

import struct
import zipfile

import numpy as np
import pytest

import accelnet as an
from tests.users.slips import (
    ARR,
    CSV,
    FLAG,
    FOLDER,
    FUNC,
    FUNCTION,
    NAMES,
    NAN,
    NPZ,
    NUMBER,
    ONE_LINE,
    PATH,
    TEXT,
    TEXT_FILE,
    THING,
    WHOLE,
    X,
    Y,
    check,
    without,
)

data = an.data


def read_table(**k):
    return data.table(CSV, **{"target": "c", **k})


def read_bad_table(b):
    return ((FOLDER / "b.csv").write_bytes(b), data.table(FOLDER / "b.csv", target="c"))


def read_text(v=TEXT_FILE, **k):
    return data.text(v, **k)


def huge(shape=b"(400000000000,)", descr=b"'<f8'"):
    h = b"{'descr': " + descr + b", 'fortran_order': False, 'shape': " + shape + b", }"
    h += b" " * (117 - len(h)) + b"\n"
    raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(h)) + h
    with zipfile.ZipFile(FOLDER / "h.npz", "w") as z:
        z.writestr("inputs.npy", raw + b"\x00" * 80)
        z.writestr("targets.npy", raw + b"\x00" * 80)
    return FOLDER / "h.npz"


SERIES = FOLDER / "a.ts"

SERIES.write_text(
    "@problemName a\n@univariate true\n@classLabel true a b\n@data\n"
    + "".join(f"1,2,3,{i}:{'ab'[i % 2]}\n" for i in range(20))
)


PAIRS = [(x, int(y)) for x, y in zip(X, Y, strict=True)]
TOKENS = FOLDER / "tokens.bin"
np.arange(400, dtype=np.uint16).tofile(TOKENS)


def read_source(v=PAIRS, **k):
    return data.from_source(v, **k)


def read_stream(v=None, **k):
    return data.from_batches([(X, Y)] * 3 if v is None else v, **k)


def read_tokens(v=TOKENS, **k):
    return data.tokens(v, **{"dtype": "uint16", "window": 8, **k})


def read_ts(a=SERIES, b=SERIES, **k):
    return data.ts(a, b, **k)


ROWS = [
    ("inputs", lambda v: data.from_arrays(v, Y), ARR),
    ("targets", lambda v: data.from_arrays(X, v), without(ARR, *[a for a in ARR if isinstance(a, np.ndarray)])),
    (
        "weights",
        lambda v: data.from_arrays(X, Y, weights=v),
        ["abc", THING, {}, int, [1], -np.ones(20), np.zeros(20), np.full(20, NAN), 3.0, np.ones((20, 2)), ["a"] * 20],
    ),
    ("name", lambda v: data.from_arrays(X, Y, name=v), TEXT),
    *[
        (
            k,
            lambda v, k=k: data.from_arrays(X, Y, **{k: v}),
            [*NUMBER, -1, 1, 5, (1,), (X, Y, 3), (X, Y[:3]), (None, None)],
        )
        for k in ("validation", "test")
    ],
    ("seed", lambda v: data.from_arrays(X, Y, seed=v), [*WHOLE]),
    ("normalize", lambda v: data.from_arrays(X, Y, normalize=v), FLAG),
    ("num_classes", lambda v: data.from_arrays(X, Y, num_classes=v), [*without(WHOLE, None), 0, 1, 2**40]),
    ("class_names", lambda v: data.from_arrays(X, Y, class_names=v), NAMES),
    (
        "fitted",
        lambda v: data.from_arrays(X, Y, fitted=v),
        [3, "a", THING, [], int, {"a": THING}, {"mean": "x"}, {"mean": [1]}],
    ),
    (
        ONE_LINE,
        read_source,
        [None, 3, "abc", b"ab", THING, [], {}, int, FUNCTION, X, iter([1]), {"a": X}, [1, 2], [{}], [()]],
    ),
    ("inputs", lambda v: read_source(inputs=v), [1.5, "x", 7, b"a", THING, {}, [], int, [1.5], {1: 0}, True]),
    ("targets", lambda v: read_source(targets=v), [1.5, "x", 7, b"a", THING, {}, [], int, [1.5], {1: 0}, True]),
    (ONE_LINE, lambda v: read_source(weights=v), [1.5, "x", 7, b"a", THING, {}, int, True]),
    ("validation", lambda v: read_source(validation=v), [*NUMBER, -1, 1, 5, "ab", X]),
    ("name", lambda v: read_source(name=v), TEXT),
    ("seed", lambda v: read_source(seed=v), WHOLE),
    ("normalize", lambda v: read_source(normalize=v), FLAG),
    (ONE_LINE, lambda v: read_source(num_classes=v).take(np.arange(20)), [*without(WHOLE, None), 0, 1, 2**40]),
    ("class_names", lambda v: read_source(class_names=v), NAMES),
    ("fitted", lambda v: read_source(fitted=v), [3, "a", THING, [], int, {"a": THING}, {"mean": "x"}, {"mean": [1]}]),
    (
        ONE_LINE,
        read_stream,
        [3, "abc", b"ab", THING, {}, int, FUNCTION, iter([1]), [1, 2], [{}], [()], [X], [(X, Y[:3])]],
    ),
    ("steps", lambda v: read_stream(steps=v), [*without(WHOLE, None), 0]),
    ("inputs", lambda v: read_stream(inputs=v), [1.5, "x", 7, THING, {}, [], int, True]),
    ("test", lambda v: read_stream(test=v), [0.5, 3, "ab", THING, {}, int, (X,), (X, Y[:2]), (X[:, :2], Y)]),
    ("timeout_seconds", lambda v: read_stream(timeout_seconds=v), [*NUMBER, 0, -1]),
    (ONE_LINE, read_tokens, [None, FOLDER, FOLDER / "none", *PATH]),
    ("window", lambda v: read_tokens(window=v), [*WHOLE, 0, 400]),
    ("stride", lambda v: read_tokens(stride=v), [*without(WHOLE, None), 0]),
    ("dtype", lambda v: read_tokens(dtype=v), [None, 3, "float32", "x", THING, [], {}, FUNCTION]),
    ("tokens", lambda v: read_tokens(num_tokens=v), [*without(WHOLE, None), 5]),
    ("tokenizer", lambda v: read_tokens(tokenizer=v), [3, "x", THING, [], {}, FUNCTION]),
    ("tokenizer", lambda v: read_text(tokenizer=v), [3, "x", THING, [], {}, FUNCTION]),
    ("held_out", lambda v: read_tokens(held_out=v), TEXT),
    ("name", lambda v: data.Data(v, {"inputs": X, "targets": Y}, {"train": range(20)}), TEXT),
    (
        "arrays",
        lambda v: data.Data("a", v, {"train": range(20)}),
        [None, 3, "a", THING, [], {}, {"inputs": X}, int, {1: X}],
    ),
    (
        "split",
        lambda v: data.Data("a", {"inputs": X, "targets": Y}, v),
        [
            None,
            3,
            "a",
            THING,
            [],
            {},
            {"train": [1]},
            {"train": slice(3)},
            {"train": range(30)},
            {"train": range(0, 20, 2)},
            {"valid": range(5), "train": range(5, 9)},
            {3: range(3)},
            {"train": range(5), "test": range(3, 9)},
            {"": range(4), "train": range(5, 9)},
            int,
            {"train": range(0)},
        ],
    ),
    ("prepare", lambda v: data.Data("a", {"inputs": X, "targets": Y}, {"train": range(20)}, prepare=v), FUNC),
    (
        "augment",
        lambda v: data.Data("a", {"inputs": X, "targets": Y}, {"train": range(20)}, augment=v),
        without(FUNC, None),
    ),
    (
        "info",
        lambda v: data.Data("a", {"inputs": X, "targets": Y}, {"train": range(20)}, info=v),
        [None, 3, "a", THING, []],
    ),
    (
        "num_classes",
        lambda v: data.Data("a", {"inputs": X, "targets": Y}, {"train": range(20)}, info={"num_classes": v}),
        ["2", 1.5, 0, -1, True, THING],
    ),
    ("source", lambda v: data.table(v, target="c"), [None, *PATH]),
    ("cannot be read", lambda v: data.table(v, target="c"), [FOLDER, FOLDER / "none"]),
    ("target", lambda v: read_table(target=v), TEXT),
    ("features", lambda v: read_table(features=v), [*NAMES, ["c"]]),
    ("categorical", lambda v: read_table(categorical=v), [None, *NAMES, ["c"]]),
    (
        "column",
        lambda v: read_table(**v),
        [
            {"target": "nope"},
            {"weights": "nope"},
            {"split": "nope"},
            {"features": ["nope"]},
            {"categorical": ["nope"]},
            {"features": []},
        ],
    ),
    ("ordinal", lambda v: read_table(ordinal=v), [3, "a", THING, {"a": 3}, {"a": ["1", "1"]}, int, ["a"]]),
    (ONE_LINE, lambda v: read_table(ordinal=v), [{"nope": ["a"]}, {"a": []}, {"a": ["zzz"]}, {3: ["a"]}]),
    ("task", lambda v: read_table(task=v), [3, "x", "", THING, [], "numbers"]),
    ("log_target", lambda v: read_table(target="a", log_target=v), FLAG),
    *[
        (k, lambda v, k=k: read_table(**{k: v}), [*without(NUMBER, None, "3"), -1, 1, (X, Y)])
        for k in ("validation", "test")
    ],
    (ONE_LINE, lambda v: read_table(test=v), ["3", FOLDER, TEXT_FILE, {"a": [1], "b": [2]}, {"c": ["z"]}]),
    ("split", lambda v: read_table(split=v), [*without(TEXT, None), "c", "a", "b"]),
    ("weights", lambda v: read_table(weights=v), [*without(TEXT, None), "c"]),
    *[(k, lambda v, k=k: read_table(**{k: v}), [*TEXT, "x", True]) for k in ("missing", "unknown")],
    ("seed", lambda v: read_table(seed=v), WHOLE),
    ("name", lambda v: read_table(name=v), without(TEXT, None)),
    ("fitted", lambda v: read_table(fitted=v), [3, "a", THING, [], {"a": 1}, int]),
    (
        ONE_LINE,
        read_bad_table,
        [
            b"\n",
            b"c\n",
            b"c\n1\n2\n",
            b"a,a,c\n1,2,3\n",
            b"a,c\n1\n",
            b"a,c\n1,2,3\n",
            b"\xff\xfe\x00",
            b"a,c\n",
            b"a,c\n,\n",
            b"a,c\nnan,1\n",
            b"a;c\n1;2\n",
            b'a,c\n"1,2\n',
            b"a,c\n1e999,2\n1,1\n",
            b"\x00" * 50,
        ],
    ),
    (ONE_LINE, read_text, [*PATH, FOLDER, FOLDER / "none"]),
    ("window", lambda v: read_text(window=v), [*WHOLE, 0, 2**40]),
    ("encoding", lambda v: read_text(encoding=v), [*TEXT, "nope", "base64"]),
    ("held_out", lambda v: read_text(held_out=v), [*TEXT, "ends"]),
    ("seed", lambda v: read_text(seed=v), WHOLE),
    ("fitted", lambda v: read_text(fitted=v), [3, "a", THING, [], {"a": 1}, {"vocabulary": 3}]),
    (
        ONE_LINE,
        lambda v: ((FOLDER / "e.txt").write_bytes(v), read_text(FOLDER / "e.txt")),
        [b"", b"a", b"\xff\xfe\xfa" * 100],
    ),
    ("vocabulary", lambda v: data.decode([0], v), [None, 3, "", THING, [], "aa"]),
    ("token", lambda v: data.decode(v, "abc"), [None, "a", [7], [-1], [1.5], THING, ["a"], [NAN], 3.5]),
    (ONE_LINE, lambda v: data.encode(v, "abc"), [None, 3, "z", THING, ["a"]]),
    ("vocabulary", lambda v: data.encode("a", v), [None, 3, "", THING, [], "aa"]),
    (ONE_LINE, data.npz, [None, *PATH, FOLDER, FOLDER / "none"]),
    ("inputs", lambda v: data.npz(NPZ, inputs=v), [*TEXT, "nope"]),
    ("targets", lambda v: data.npz(NPZ, targets=v), [*TEXT, "nope"]),
    *[
        (k, lambda v, k=k: data.npz(NPZ, **{k: v}), [*NUMBER, -1, 1, ("inputs",), (3, 4)])
        for k in ("validation", "test")
    ],
    ("seed", lambda v: data.npz(NPZ, seed=v), WHOLE),
    ("num_classes", lambda v: data.npz(NPZ, num_classes=v), ["2", 1.5, 0]),
    (
        ONE_LINE,
        lambda v: data.npz(huge(*v)),
        [
            (),
            (b"(-4,)",),
            (b"'a'",),
            (b"(4,)", b"'|O'"),
            (b"(4,)", b"'zz'"),
            (b"(10**30,)",),
            (b"(1000000000000000000000000,)",),
        ],
    ),
    (
        ONE_LINE,
        lambda v: ((FOLDER / "j.npz").write_bytes(v), data.npz(FOLDER / "j.npz")),
        [b"", b"PK\x03\x04", b"abc" * 50, b"\x93NUMPY"],
    ),
    (ONE_LINE, lambda v: read_ts(a=v), [None, *PATH, FOLDER, FOLDER / "none"]),
    (ONE_LINE, lambda v: read_ts(b=v), [None, 3, "", THING, FOLDER]),
    ("seed", lambda v: read_ts(seed=v), WHOLE),
    ("validation", lambda v: read_ts(validation=v), [*NUMBER, -1, 1]),
    ("allow_missing", lambda v: read_ts(allow_missing=v), FLAG),
    ("name", lambda v: read_ts(name=v), without(TEXT, None)),
    ("fitted", lambda v: read_ts(fitted=v), [3, "a", THING, [], int]),
    (
        ONE_LINE,
        lambda v: ((FOLDER / "q.ts").write_text(v), read_ts(a=FOLDER / "q.ts")),
        [
            "",
            "@data\n",
            "@data\n1:a\n",
            "@classLabel true a\n@data\n1,x:a\n",
            "@classLabel true a\n@data\n1:z\n",
            "@classLabel maybe\n@data\n",
            "@classLabel true a\n@data\n:a\n",
            "@dimensions x\n@data\n",
        ],
    ),
    (ONE_LINE, data.read_idx, [None, *PATH, FOLDER, FOLDER / "none", TEXT_FILE, NPZ]),
    ("directory", data.fashion_mnist, [3, "", THING, FOLDER / "none"]),
    ("directory", data.cifar10, [None, 3, "", THING]),
    (ONE_LINE, data.cifar10, [FOLDER / "none", TEXT_FILE]),
    ("path", data.diamonds, [3, "", THING]),
    *[("seed", lambda v, f=f: f(seed=v), WHOLE) for f in (data.digits,)],
    ("padding", data.random_crop, [*WHOLE]),
    ("compose", data.compose, [None, 3, "a", THING, []]),
    (ONE_LINE, lambda v: data.undo_target(v, {}), [None, "a", THING]),
    (ONE_LINE, lambda v: data.undo_target([1.0], v), [None, 3, {"x": 3}]),
]


@pytest.mark.parametrize(
    ("words", "make", "values"), ROWS, ids=[f"{words}-{index}" for index, (words, *_) in enumerate(ROWS)]
)
def test_a_slip_is_one_line(words, make, values):
    check(words, make, values)
