import re
from importlib.util import find_spec

import jax
import numpy as np
import pytest

from accelnet.data import csv, diamonds, tabular, undo_target
from accelnet.errors import UserError


def write(path, num_rows=50):
    rng = np.random.default_rng(0)
    lines = ["size,shape,grade,price"]
    lines += [
        f"{rng.normal(5, 2):.6f},{shape},{grade},{rng.uniform(1, 99):.6f}"
        for shape, grade in (("abc"[row % 3], ("low", "mid", "high")[row % 3]) for row in range(num_rows))
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


OPTIONS = {"target": "price", "categorical": ["shape"], "ordinal": {"grade": ["low", "mid", "high"]}}


@pytest.mark.parametrize("log_target", [False, True])
def test_every_row_is_read_and_targets_can_be_undone(tmp_path, log_target):
    data = csv(write(tmp_path / "a.csv"), log_target=log_target, **OPTIONS)
    assert data.info["input_names"] == ("size", "shape=a", "shape=b", "shape=c", "grade")
    prices = undo_target(data.arrays["targets"][:, 0], data.info["target"])
    read = {
        (f"{row[0]:.3f}", "abc"[int(np.argmax(row[1:4]))], int(row[4]), f"{price:.3f}")
        for row, price in zip(data.arrays["inputs"], prices, strict=True)
    }
    written = set()
    for line in (tmp_path / "a.csv").read_text().splitlines()[1:]:
        size, shape, grade, price = line.split(",")
        written.add((f"{np.float32(size):.3f}", shape, ["low", "mid", "high"].index(grade), f"{float(price):.3f}"))
    assert read == written


def test_statistics_come_from_training_rows_and_names_are_not_standardized(tmp_path):
    data = csv(write(tmp_path / "a.csv"), **OPTIONS)
    train = np.arange(data.num_examples("train"))
    batch = jax.jit(data.prepare)(data.take(train))
    inputs = np.asarray(batch["inputs"])
    # float32 rounding.
    np.testing.assert_allclose(inputs[:, [0, 4]].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(inputs[:, [0, 4]].std(axis=0), 1, atol=1e-6)
    assert set(np.unique(inputs[:, 1:4])) == {0, 1}
    np.testing.assert_allclose([batch["targets"].mean(), batch["targets"].std() - 1], 0, atol=1e-6)
    assert batch["targets"].shape == (40, 1)
    assert np.abs(data.arrays["targets"].mean()) > 1e-3


def test_splits_follow_the_seed_and_features_their_order(tmp_path):
    path = write(tmp_path / "a.csv")
    first, again, other = (csv(path, seed=seed, **OPTIONS).fingerprint() for seed in (0, 0, 1))
    assert first == again != other
    data = csv(path, target="size", features=["price"])
    assert data.info["input_names"] == ("price",)
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        "train": 40,
        "validation": 5,
        "test": 5,
    }


def test_quotes_blank_lines_and_byte_order_marks_are_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfsize,name,price\r\n" + b'1,"a, b",2\r\n\r\n1,"a, b",3\r\n' * 5)
    data = csv(path, target="price", categorical=["name"])
    assert data.info["input_names"] == ("size", "name=a, b")


@pytest.mark.parametrize(
    ("content", "kwargs", "message"),
    [
        (b"", {}, "is empty"),
        (b"size,price\n", {}, "is empty"),
        (b"size,price\n1,2\n3\n", {}, "line 3: 1 fields, expected 2"),
        (b"size,price\n1,2\n3,4,5\n", {}, "line 3: 3 fields, expected 2"),
        (b"size,price\n1,2\nx,4\n", {}, "line 3: size is 'x', expected a finite number"),
        (b"size,price\n1,2\n,4\n", {}, "line 3: size is '', expected a finite number (drop or fill"),
        (b"size,price\n1,2\nnan,4\n", {}, "line 3: size is 'nan'"),
        (b"size,price\n1,2\n1e39,4\n", {}, "line 3: size is '1e39'"),
        (b"size,price\n1,2\n3,inf\n", {}, "line 3: price is 'inf'"),
        (b"size,price\n1,2\n3,0\n", {"log_target": True}, "line 3: price is 0.0, expected above 0"),
        (b"size,prize\n1,2\n", {}, "no column 'price'; did you mean 'prize'?"),
        (b"size,price\n1,2\n", {"features": ["sise"]}, "no column 'sise'; did you mean 'size'?"),
        (b"size,price\n1,2\n", {"features": ["price"]}, "also among the features"),
        (
            b"size,name,price\n1,a,2\n",
            {"features": ["size"], "categorical": ["name"]},
            "not among the features",
        ),
        (
            b"size,price\n1,2\nb,2\n",
            {"ordinal": {"size": ["1", "2"]}},
            "line 3: size is 'b', expected one of '1', '2'",
        ),
        (b"size,size,price\n1,2,3\n", {}, "two columns of one name"),
        (b"size,price\n\xff,2\n", {}, "not UTF-8"),
        (b'size,price\n"1,2\n', {}, "is not a CSV file"),
        (b"size,price\n1,2\n1,2\n", {"validation": 0.5, "test": 0.5}, "leave none for training"),
    ],
)
def test_wrong_tables_are_refused_with_the_line(tmp_path, content, kwargs, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        csv(tmp_path / "a.csv", **{"target": "price", **kwargs})


def test_a_missing_file_or_package_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=re.escape("nothing.csv cannot be read")):
        csv(tmp_path / "nothing.csv", target="price")
    monkeypatch.setattr(tabular, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps plotnine"):
        diamonds()


def test_diamonds_are_read_from_a_path_of_the_users_own(tmp_path):
    row = '0.23,"Ideal","E","SI2",61.5,55,{},3.95,3.98,2.43'
    header = '"carat","cut","color","clarity","depth","table","price","x","y","z"'
    (tmp_path / "a.csv").write_text("\n".join([header, *(row.format(300 + i) for i in range(20))]))
    data = diamonds(tmp_path / "a.csv")
    assert sorted(undo_target(data.arrays["targets"][:, 0], data.info["target"]).round().tolist()) == list(
        range(300, 320)
    )
    assert data.arrays["inputs"][0, :4].tolist() == [np.float32(0.23), 4, 5, 1]


@pytest.mark.skipif(find_spec("plotnine") is None, reason="plotnine is not installed")
def test_the_real_diamonds_are_all_read():
    data = diamonds()
    assert data.arrays["inputs"].shape == (53940, 9)
    prices = undo_target(data.arrays["targets"], data.info["target"])
    # The prices are 326 to 18823; the logarithm is kept in float32.
    np.testing.assert_allclose([prices.min(), prices.max()], [326, 18823], rtol=1e-6)
