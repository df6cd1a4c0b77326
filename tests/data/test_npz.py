import io
import re
import zipfile

import numpy as np
import pytest

from accelnet.data import from_arrays, npz
from accelnet.errors import UserError


def rows_of(data, split):
    rows = data.splits[split]
    return data.take(np.arange(rows.start, rows.stop))


def test_npz_equals_the_arrays_in_it(tmp_path):
    inputs, targets = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3
    np.savez(tmp_path / "a.npz", inputs=inputs, targets=targets, x_test=inputs[:5], y_test=targets[:5])
    assert (
        npz(tmp_path / "a.npz", num_classes=3).fingerprint()
        == from_arrays(inputs, targets, num_classes=3).fingerprint()
    )
    data = npz(tmp_path / "a.npz", test=("x_test", "y_test"))
    assert np.array_equal(rows_of(data, "test")["targets"], targets[:5])
    assert data.name == "a"


def test_npz_files_that_are_missing_damaged_or_hold_objects_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        npz(path)
    for content in (b"", b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="file or truncated"):
            npz(path)
    np.savez(path, inputs=np.zeros(3), other=np.zeros(3))
    with pytest.raises(UserError, match="has arrays 'inputs', 'other', expected one 'targets'"):
        npz(path)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match="truncated"):
        npz(path)
    np.savez(path, inputs=np.array([{"a": 1}] * 3, dtype=object), targets=np.zeros(3))
    with pytest.raises(UserError, match="file of numbers"):
        npz(path)
    np.savez(path, inputs=np.zeros(300), targets=np.zeros(300))
    damaged = bytearray(path.read_bytes())
    damaged[1000] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="file of numbers"):
        npz(path)


def test_a_header_that_claims_more_than_there_is_is_refused_before_memory_is_asked_for(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (150_000_000_000,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("inputs.npy", header.getvalue() + bytes(80))
        file.writestr("targets.npy", header.getvalue())
    with pytest.raises(UserError, match="is to take 1200000000000 bytes of 208 that are there"):
        npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("path", "kwargs", "message"),
    [
        (None, {}, "path is None, expected the path"),
        ("", {}, "path is '', expected the path"),
        (5, {}, "path is 5, expected the path"),
        ("a.npz", {"inputs": None}, "inputs is None, expected text"),
        ("a.npz", {"test": ("inputs",)}, "expected a fraction or the names of two arrays"),
        ("a.npz", {"test": (1, 2)}, "test has 1 in it, expected names only"),
        ("a.npz", {"inputs": "input"}, "expected one 'input'; did you mean 'inputs'?"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, monkeypatch, path, kwargs, message):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", inputs=np.zeros((9, 1)), targets=np.zeros(9))
    with pytest.raises(UserError, match=re.escape(message)):
        npz(path, **kwargs)
