import re

import jax.numpy as jnp
import numpy as np
import pytest

from accelnet.data import Data, decode, encode, from_arrays, text, xor
from accelnet.data import table as read_table
from accelnet.data.encoding import undo_target
from accelnet.errors import UserError

X, Y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2


def table(path):
    path.write_text("size,colour,grade,price\n" + "".join(f"{i},{'rb'[i % 2]},{'lh'[i % 2]},{i}\n" for i in range(40)))
    return read_table(path, target="price", categorical=["colour"], ordinal={"grade": ["l", "h"]}, validation=0, test=0)


class Frame:
    """As a data frame of pandas: keys, columns by name, iteration over names."""

    def __init__(self, columns):
        self.columns = columns

    def keys(self):
        return list(self.columns)

    def __getitem__(self, name):
        return np.array(self.columns[name], object)


def test_rows_of_a_table_are_encoded_alike_in_every_form(tmp_path):
    data = table(tmp_path / "a.csv")
    columns = {"size": [3, 4], "colour": ["b", "r"], "grade": ["h", "l"], "price": [3, 4]}
    expected = [[3, 1, 0, 1], [4, 0, 1, 0]]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for inputs in (
        columns,
        rows,
        Frame(columns),
        np.array(expected),
        jnp.array(expected),
        {**columns, "size": ["3", "4.0"]},
    ):
        assert data.encode(inputs).tolist() == expected
    assert data.encode(rows[0]).tolist() == expected[:1]
    kept = {tuple(row) for row in data.arrays["inputs"].tolist()}
    assert {tuple(row) for row in data.encode(columns).tolist()} <= kept


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"size": [3]}, "no column 'colour'. It has 'size'"),
        ([{"size": 3, "colour": "r", "grade": "l"}, {"size": 3}], "row 1 lacks 'colour', 'grade'"),
        ({"size": [3], "colour": ["grey"], "grade": ["l"]}, "row 0: colour is 'grey', expected one of 'b', 'r'"),
        ({"size": ["x"], "colour": ["r"], "grade": ["l"]}, "row 0: size is 'x', expected a finite number"),
        ({"size": [None], "colour": ["r"], "grade": ["l"]}, "row 0: size is missing, and so in 1 of 1 rows"),
        ({"size": [1, 2], "colour": ["r"], "grade": ["l"]}, "columns have lengths 2, 1, 1"),
        (np.zeros((2, 3)), "expected a dict of columns, a list of rows as dicts, a frame, a file, or numbers [B, 4]"),
        ("red", "red cannot be read: No such file"),
        (3, "inputs are 3, expected a dict of columns, a list of rows as dicts, a frame, a file, or numbers"),
        (None, "expected a dict of columns"),
    ],
)
def test_rows_that_do_not_fit_a_table_are_refused(tmp_path, inputs, message):
    with pytest.raises(UserError, match=re.escape(message)):
        table(tmp_path / "a.csv").encode(inputs)


def test_targets_of_a_table_come_back_in_its_units(tmp_path):
    data = table(tmp_path / "a.csv")
    prices = data.decode(data.arrays["targets"])
    assert np.array_equal(prices.ravel().round(4), data.arrays["inputs"][:, 0])


def test_arrays_are_encoded_as_the_data_holds_them():
    data = from_arrays(X, Y)
    order = np.argsort(data.arrays["inputs"][:, 0])
    assert np.array_equal(data.encode(X[np.argsort(X[:, 0])]), data.arrays["inputs"][order])
    bytes_ = from_arrays((X > 0).astype(np.uint8), Y)
    assert bytes_.encode([[1.0, 0.0, 1.0]]).dtype == np.uint8
    nested = from_arrays({"x": X, "lengths": Y}, Y)
    assert nested.encode({"x": X[:2], "lengths": [1, 0]})["lengths"].dtype == np.int32
    assert xor().encode([[0, 1]]).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([[1.0, 2.0]], "inputs have 2 features, expected 3"),
        ([1.0, 2.0, 3.0], "inputs have shape (3,), expected [B, 3]"),
        (np.zeros((0, 3)), "inputs have shape (0, 3)"),
        ([["a", "b", "c"]], "inputs have dtype <U1, expected numbers"),
        ([[1.0, np.nan, 2.0]], "NaN or infinite"),
        ([[1e300, 0.0, 0.0]], "float32 cannot hold"),
        ({"x": X}, "inputs is a dict, expected an array"),
        ([[1.0], [2.0, 3.0]], "rows of unequal lengths?"),
    ],
)
def test_inputs_that_do_not_fit_arrays_are_refused(inputs, message):
    with pytest.raises(UserError, match=re.escape(message)):
        from_arrays(X, Y).encode(inputs)


@pytest.mark.parametrize("inputs", [[[0.5]], [[-1]], [[256]], [[np.nan]]])
def test_values_that_bytes_cannot_hold_are_refused(inputs):
    data = Data("toy", {"inputs": np.zeros((3, 1), np.uint8), "targets": np.zeros(3)}, {"train": range(3)})
    with pytest.raises(UserError, match="whole numbers that uint8 can hold"):
        data.encode(inputs)


def test_classes_come_back_as_names():
    data = from_arrays(X, np.array(["no", "yes"])[Y])
    assert data.info["class_names"] == ("no", "yes")
    assert data.info["num_classes"] == 2
    assert data.decode(np.array([[1], [0]])).tolist() == [["yes"], ["no"]]
    assert data.decode([[0.2, 0.8]]).tolist() == [[0.2, 0.8]]
    for wrong in ([2], [-1]):
        with pytest.raises(UserError, match="expected 0 to 1"):
            data.decode(wrong)


def test_text_goes_to_symbols_and_back(tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 30)
    data = text(tmp_path / "a.txt", window=4)
    assert data.encode("dab").tolist() == [[3, 0, 1]]
    assert data.encode(["da", "bc"]).dtype == data.arrays["inputs"].dtype
    assert data.decode(data.encode(["da", "bc"])) == ["da", "bc"]
    assert data.decode([3, 0]) == "da"
    with pytest.raises(UserError, match="texts have 1, 2 symbols"):
        data.encode(["a", "bc"])
    with pytest.raises(UserError, match="characters 'z'"):
        data.encode("z")


@pytest.mark.parametrize(
    ("tokens", "vocabulary"),
    [([7], "abc"), ([-1], "abc"), ([1.5], "abc"), ("a", "abc"), (None, "abc"), ([[0]], "abc"), ([0], "ba"), ([0], 5)],
)
def test_wrong_symbols_and_vocabularies_are_refused(tokens, vocabulary):
    with pytest.raises(UserError, match="expected"):
        decode(tokens, vocabulary)


def test_a_vocabulary_out_of_order_is_refused_where_text_is_encoded():
    with pytest.raises(UserError, match="ascending"):
        encode("b", "ba")
    with pytest.raises(UserError, match="content is 5"):
        encode(5, "ab")


def test_a_logarithm_that_overflows_is_infinite_and_no_warning():
    assert undo_target([1e4, 0.0], {"mean": 0.0, "std": 1.0, "log": True}).tolist() == [np.inf, 1.0]
