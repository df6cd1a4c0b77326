"""What a column becomes: missing values, names that training rows do not have, truth, times, splits, weights."""

import datetime as dt
import json
import re

import numpy as np
import pyarrow as pa
import pytest

from accelnet.data import table
from accelnet.errors import UserError

NONE = {"validation": 0, "test": 0}
SIZES = [1.0, None, 3.0, float("nan"), 8.0, 4.0]
HUES = ["red", "blue", None, "", "red", " blue "]
ROWS = {"size": SIZES, "hue": HUES, "even": [True, False, None, True, True, False], "y": [0.5, 1, 2, 3, 4, 5]}


def by_target(data):
    """Return the inputs in the order of the targets, which are ascending in the tables here."""
    return data.arrays["inputs"][np.argsort(data.arrays["targets"].reshape(len(data.arrays["targets"])))]


def test_missing_values_are_refused_with_their_column_place_number_and_what_to_do():
    for name, words in (("size", "row 1: size is missing, and so in 2 of 6"), ("hue", "row 2: hue is missing, and so")):
        with pytest.raises(UserError, match=f'{words}.*missing="mean" or missing="drop"'):
            table(ROWS, target="y", features=[name], **NONE)


def test_missing_numbers_are_the_mean_of_training_rows_and_an_input_tells_that_they_are_missing():
    data = table(ROWS, target="y", missing="mean", **NONE)
    names = ("size", "size is missing", "hue=blue", "hue=red", "hue is missing", "even", "even is missing")
    assert data.info["input_names"] == names
    np.testing.assert_array_equal(
        by_target(data),
        np.array(
            [
                [1, 0, 0, 1, 0, 1.0, 0],
                [4, 1, 1, 0, 0, 0.0, 0],
                [3, 0, 0, 0, 1, 0.6, 1],
                [4, 1, 0, 0, 1, 1.0, 0],
                [8, 0, 0, 1, 0, 1.0, 0],
                [4, 0, 1, 0, 0, 0.0, 0],
            ],
            np.float32,
        ),
    )
    # Only the number is standardized, and its mean is 0 for a missing one.
    prepared = np.asarray(data.prepare({"inputs": by_target(data)})["inputs"])
    np.testing.assert_allclose(prepared[[1, 3], 0], 0, atol=1e-6)  # float32 rounding
    np.testing.assert_array_equal(prepared[:, 1:], by_target(data)[:, 1:])


def test_the_mean_is_that_of_the_training_rows_alone():
    columns = {"x": [1.0, 3.0, None, 100.0, None], "y": [0, 1, 2, 3, 4.5], "part": ["train"] * 3 + ["test"] * 2}
    data = table(columns, target="y", split="part", missing="mean")
    assert data.fitted["columns"][0]["fill"] == 2.0
    assert data.arrays["inputs"].tolist() == [[1, 0], [3, 0], [2, 1], [100, 0], [2, 1]]


def test_raw_rows_are_filled_with_the_values_that_were_fitted():
    data = table(ROWS, target="y", missing="mean", **NONE)
    raw = {name: values for name, values in ROWS.items() if name != "y"}
    again = data.refitted(json.loads(json.dumps(data.fitted)))
    for one in (data, again):
        assert np.array_equal(one.encode(raw), by_target(data))
        assert one.encode({"size": None, "hue": None, "even": None}).tolist() == [
            [4, 1, 0, 0, 1, np.float32(0.6), 1],
        ]
    other = table({**ROWS, "size": [9.0, None, 7.0, 7.0, 7.0, None]}, target="y", fitted=data.fitted, **NONE)
    assert np.array_equal(by_target(other)[[1, 5], 0], [4, 4])


def test_missing_values_only_beside_the_training_rows_are_filled_without_an_input_of_their_own():
    columns = {"x": [1.0, 3.0, None], "y": [0, 1, 2.5], "part": ["train", "train", "test"]}
    data = table(columns, target="y", split="part", missing="mean")
    assert data.arrays["inputs"].tolist() == [[1], [3], [2]]
    names = {"x": ["a", "b", None], "y": [0, 1, 2.5], "part": ["train", "train", "test"]}
    with pytest.raises(UserError, match="row 2: x is missing"):
        table(names, target="y", split="part", missing="mean")
    ignored = table(names, target="y", split="part", missing="mean", unknown="ignore")
    assert ignored.arrays["inputs"].tolist() == [[1, 0], [0, 1], [0, 0]]


def test_rows_that_lack_a_value_are_left_out_and_that_is_said():
    with pytest.warns(UserWarning, match="source: 3 of 6 rows have missing values and are left out"):
        data = table(ROWS, target="y", missing="drop", features=["size", "hue"], **NONE)
    assert by_target(data).tolist() == [[1, 0, 1], [8, 0, 1], [4, 1, 0]]
    with pytest.warns(UserWarning, match="1 of 6 rows"):
        data = table({"x": range(6), "y": [1, 2, None, 4, 5, 6]}, target="y", missing="drop", **NONE)
    assert by_target(data).ravel().tolist() == [0, 1, 3, 4, 5]
    with pytest.raises(UserError, match="row 0: x is missing"):
        data.encode({"x": [None]})


@pytest.mark.parametrize(
    ("columns", "kwargs", "message"),
    [
        ({"x": [None, None], "y": [1, 2]}, {}, "x is missing in all rows: leave it out of the features"),
        ({"x": [None, None], "y": [1, 2]}, {"missing": "mean"}, "x is missing in all rows"),
        ({"x": [1, 2], "y": [1, None]}, {"missing": "mean"}, "row 1: y, the target, is missing, and so in 1 of 2 rows"),
        ({"x": [1, 2], "y": [None, None]}, {}, "y, the target, is missing, and so in 2 of 2 rows"),
        ({"x": [1, 2], "y": [1, None], "w": [1, 1]}, {"missing": "drop", "weights": "w", "test": {}}, "no column 'y'"),
        ({"x": [1, 2], "y": [1, 3], "w": [1, None]}, {"weights": "w"}, "row 1: w, the weight, is missing"),
        ({"x": [1, 2], "y": [1, 3], "w": [1, -1]}, {"weights": "w"}, "weights go down to -1"),
        ({"x": [1, 2], "y": [1, 3], "w": [1, 1]}, {"weights": "y"}, "column 'y' is named for two of"),
        ({"x": [1, 2], "y": [1, 3]}, {"weights": "x"}, "no column to predict 'y' from"),
        (
            {"x": [1, 2], "y": [1, 3], "s": ["a", "b"]},
            {"split": "s"},
            "splits name 'a', 'b', expected 'train' among them",
        ),
        (
            {"x": [1, 2, 3], "y": [1, 3, 4], "s": ["train"] * 2 + ["val"]},
            {"split": "s"},
            "did you mean 'validation'?",
        ),
        (
            {"x": [1, 2], "y": [1, 3], "s": ["train", None]},
            {"split": "s"},
            "row 1: s, which tells the split, is missing",
        ),
        (
            {"x": ["5,0", "6,0"], "y": [1, 3]},
            {},
            "row 0: x is '5,0', expected a finite number: write it with a decimal",
        ),
        ({"x": [1, 2], "y": ["5 %", "6 %"]}, {}, "row 0: y is '5 %', expected a finite number: write it without other"),
        ({"x": ["2024", "x"], "y": [1, 3]}, {"ordinal": {"x": ["x"]}}, "row 0: x is '2024', expected one of 'x'"),
        ({"x": [1, 2], "y": [True, True]}, {}, "y is 'True' in all rows: nothing to predict"),
        ({"x": [1, 2], "y": [0, 0]}, {"task": "labels"}, "y is the same in all training rows: nothing to predict"),
        ({"x": [1, 2], "y": [0, 1]}, {"missing": "median"}, "missing is 'median', expected one of"),
        ({"x": [1, 2], "y": [0, 1]}, {"unknown": "zero"}, "unknown is 'zero', expected one of"),
        ({"x": [1, 2], "y": [0, 1], "s": ["train"] * 2}, {"split": "s", "test": 0.1}, "test and split are both given"),
    ],
)
def test_columns_that_cannot_be_used_end_with_one_line(columns, kwargs, message):
    held_out = {} if "split" in kwargs else NONE
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        table(columns, target="y", **{**held_out, **kwargs})
    assert str(caught.value).isprintable()


def test_a_name_that_no_training_row_has_is_refused_or_ignored():
    columns = {"x": ["a", "b", "c"], "y": [1, 2, 3.5], "part": ["train", "train", "test"]}
    with pytest.raises(UserError, match="row 2: x is 'c', expected one of 'a', 'b', as training rows have; unknown="):
        table(columns, target="y", split="part")
    data = table(columns, target="y", split="part", unknown="ignore")
    assert data.info["input_names"] == ("x=a", "x=b")
    assert data.arrays["inputs"].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert data.encode({"x": ["z", "b"]}).tolist() == [[0, 0], [0, 1]]
    with pytest.raises(UserError, match="row 0: x is 'z'"):
        table({**columns, "x": ["a", "b", "b"]}, target="y", split="part").encode({"x": "z"})


def test_text_that_differs_in_most_rows_is_refused_unless_it_is_named():
    for names in ([f"id{row}" for row in range(20)], [f"id{row % 101}" for row in range(2000)]):
        columns = {"x": names, "y": range(len(names))}
        with pytest.raises(UserError, match=f"x is text with {len(set(names))} different values in .* categorical"):
            table(columns, target="y", **NONE)
        assert table(columns, target="y", categorical=["x"], **NONE).arrays["inputs"].shape[1] == len(set(names))


@pytest.mark.parametrize("flags", [[True, False, True, True], ["true", "False", "TRUE", " true"]])
def test_booleans_are_0_and_1_and_not_standardized(tmp_path, flags):
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{flag},{row}\n" for row, flag in enumerate(flags)))
    data = table(tmp_path / "a.csv", target="y", **NONE)
    assert by_target(data).ravel().tolist() == [1, 0, 1, 1]
    assert data.prepare({"inputs": by_target(data)})["inputs"].ravel().tolist() == [1, 0, 1, 1]
    for raw in ([True, False], ["true", "FALSE"], [1, 0], np.array([True, False]), ["1", "0"]):
        assert data.encode({"x": raw}).ravel().tolist() == [1, 0]
    for raw, word in ([2], "2.0"), (["yes"], "'yes'"):
        with pytest.raises(UserError, match=f"row 0: x is {word}, expected true or false"):
            data.encode({"x": raw})


def test_a_target_of_truth_is_two_classes_named_as_the_file_writes_them(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{row},{('no', 'yes')[row % 2]}\n" for row in range(20)))
    assert table(tmp_path / "a.csv", target="y").info["class_names"] == ("no", "yes")
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{row},{('false', 'true')[row % 2]}\n" for row in range(20)))
    data = table(tmp_path / "a.csv", target="y")
    assert data.decode([1, 0]).tolist() == ["true", "false"]
    frame = pa.table({"x": range(20), "y": [row % 2 == 1 for row in range(20)]})
    assert table(frame, target="y").info["class_names"] == ("False", "True")
    labels = table(frame, target="y", task="labels")
    assert set(labels.arrays["targets"].ravel().tolist()) == {0.0, 1.0}


def test_times_are_seconds_that_float32_tells_apart(tmp_path):
    start = dt.datetime(2024, 3, 31, tzinfo=dt.UTC)
    times = [start + dt.timedelta(seconds=row) for row in range(60)]
    seconds = [time.timestamp() for time in times]
    frame = pa.table({"x": pa.array(times, pa.timestamp("ns", "UTC")), "y": range(60)})
    for zone in ("", "Z"):
        (tmp_path / "a.csv").write_text(
            "x,y\n" + "".join(f"{time:%Y-%m-%dT%H:%M:%S}{zone},{row}\n" for row, time in enumerate(times))
        )
        for data in (table(tmp_path / "a.csv", target="y", **NONE), table(frame, target="y", **NONE)):
            raw = data.raw(np.arange(60))
            assert sorted(raw["inputs"].ravel().tolist()) == seconds
            assert len(np.unique(data.arrays["inputs"])) == 60
            for one in (["2024-03-31 00:00:07"], [times[7]], [seconds[7]], np.array(["2024-03-31T00:00:07"], "M8[s]")):
                assert data.encode({"x": one}).item() == by_target(data)[7].item()
            with pytest.raises(UserError, match=r"row 0: x is '31\.3\.2024', expected a date or time such as"):
                data.encode({"x": ["31.3.2024"]})
    target = table(frame.rename_columns(["y", "x"]).set_column(1, "y2", [range(60)]), target="y", **NONE)
    assert sorted(target.decode(target.arrays["targets"]).ravel().round(3).tolist()) == seconds
