"""Data with mistakes, and functions that read it."""

import struct
import zipfile

import numpy as np

import accelnet as an
from tests.users.slips import CSV, FOLDER, TEXT_FILE, X, Y

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
