"""Columns and files that divide the rows of a table, and names of classes."""

import numpy as np
import pytest

from accelnet.data import table
from accelnet.errors import UserError
from tests.data.test_table_values import NONE


def test_a_column_names_the_splits_and_is_no_feature():
    parts = ["test", "train", "ood", "train", "validation", "train"]
    data = table({"x": [0, 1, 2, 3, 4, 5.5], "y": [5, 4, 3, 2, 1, 0.5], "part": parts}, target="y", split="part")
    assert data.info["input_names"] == ("x",)
    assert data.splits == {
        "train": range(3), "test": range(3, 4), "ood": range(4, 5), "validation": range(5, 6)
    }  # fmt: skip
    assert data.arrays["inputs"].ravel().tolist() == [1, 3, 5.5, 0, 2, 4]
    # An array in the order of the user's rows finds them.
    drawn = data.folds(3, groups=np.array([9, 0, 9, 1, 0, 2]), seed=0)
    inputs = [one.arrays["inputs"][one.splits["validation"].start].item() for one in drawn]
    assert sorted(inputs) in ([1, 3, 5.5], [3, 4, 5.5])


def test_columns_divide_the_rows():
    rng = np.random.default_rng(0)
    rows = {
        "x": rng.normal(size=60), "y": rng.normal(size=60), "who": [f"p{n % 12}" for n in range(60)],
        "day": np.array([f"2024-01-{1 + n % 28:02}" for n in range(60)], "datetime64[s]"), "kind": ["a", "b", "b"] * 20,
    }  # fmt: skip
    of = {x: n for n, x in enumerate(np.float32(rows["x"]).tolist())}

    def by_split(data):
        numbers = [of[x] for x in np.float32(data.raw(np.arange(60))["inputs"][:, 0]).tolist()]
        return {split: numbers[span.start : span.stop] for split, span in data.splits.items()}

    features = {"target": "y", "features": ["x"], "validation": 0.2, "test": 0.2}
    split = by_split(table(rows, groups="who", **features))
    owners = [{rows["who"][n] for n in part} for part in split.values()]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    split = by_split(table(rows, time="day", **features))
    assert max(rows["day"][n] for n in split["train"]) < min(rows["day"][n] for n in split["validation"])
    assert max(rows["day"][n] for n in split["validation"]) < min(rows["day"][n] for n in split["test"])
    split = by_split(table(rows, stratify="kind", **features))
    assert [sum(rows["kind"][n] == "a" for n in part) for part in split.values()] == [12, 4, 4]
    # Those that divide are no features by default, but for classes.
    data = table(rows, target="y", groups="who", stratify="kind")
    assert data.info["input_names"][0] == "x" and "kind=a" in data.info["input_names"]
    assert not any("who" in name for name in data.info["input_names"])


def test_files_of_their_own_are_held_out_whole(tmp_path):
    for name, rows in (("a", range(30)), ("b", range(30, 34)), ("c", range(40, 45))):
        lines = "".join(f"{row},{'uv'[row % 2]},{row % 3},{row}\n" for row in rows)
        (tmp_path / f"{name}.csv").write_text("x,hue,w,y\n" + lines)
    data = table(
        tmp_path / "a.csv",
        target="y",
        weights="w",
        validation=tmp_path / "b.csv",
        test=table_of(tmp_path / "c.csv"),
    )
    assert data.splits == {"train": range(30), "validation": range(30, 34), "test": range(34, 39)}
    assert data.arrays["inputs"][30:, 0].tolist() == [*range(30, 34), *range(40, 45)]
    assert data.arrays["weights"].tolist()[30:] == [row % 3 for row in (*range(30, 34), *range(40, 45))]
    assert np.array_equal(data.arrays["weights"], data.arrays["inputs"][:, 0] % 3)
    assert data.info["input_names"] == ("x", "hue=u", "hue=v")
    np.testing.assert_allclose(data.fitted["mean"][0], np.arange(30).mean())
    (tmp_path / "b.csv").write_text("x,hue,w,y\n1,u,1,1\n1,w,1,1\n")
    with pytest.raises(UserError, match=r"b\.csv, line 3: hue is 'w', expected one of 'u', 'v'"):
        table(tmp_path / "a.csv", target="y", validation=tmp_path / "b.csv")
    (tmp_path / "b.csv").write_text("x,hue,w,y\n1,u,1,1\nold,u,1,1\n")
    with pytest.raises(UserError, match=r"b\.csv, line 3: x is 'old', expected a finite number"):
        table(tmp_path / "a.csv", target="y", test=tmp_path / "b.csv")
    (tmp_path / "b.csv").write_text("hue,y\nu,1\n")
    with pytest.raises(UserError, match=r"b\.csv has no column 'x'"):
        table(tmp_path / "a.csv", target="y", features=["x"], test=tmp_path / "b.csv")


def table_of(path):
    lines = [line.split(",") for line in path.read_text().splitlines()]
    columns = dict(zip(lines[0], zip(*lines[1:], strict=True), strict=True))
    return {name: list(texts) if name == "hue" else list(map(float, texts)) for name, texts in columns.items()}


def test_a_class_that_only_held_out_rows_have_is_refused():
    rows = {"x": range(20), "y": ["a", "b"] * 10}
    held_out = {"x": [1, 2], "y": ["a", "c"]}
    with pytest.raises(UserError, match="row 1: y is 'c', a class that no training row has"):
        table(rows, target="y", validation=0, test=held_out)
    both = {"x": [*rows["x"], 1, 2], "y": rows["y"] + held_out["y"], "part": ["train"] * 20 + ["test"] * 2}
    with pytest.raises(UserError, match="row 21: y is 'c', a class that no training row has"):
        table(both, target="y", split="part")
    known = table(both, target="y", features=["x"], **NONE).fitted
    assert table(rows, target="y", test=held_out, fitted=known).info["class_names"] == ("a", "b", "c")


def test_constant_columns_are_named():
    rows = {"x": range(20), "same": [3] * 20, "hue": ["red"] * 20, "y": range(20)}
    with pytest.warns(UserWarning, match="the same in all training rows, so that they tell nothing: 'same', 'hue'"):
        data = table(rows, target="y", **NONE)
    assert np.isfinite(data.prepare(data.take(np.arange(20)))["inputs"]).all()
    assert table(rows, target="y", fitted=data.fitted, **NONE).info == data.info  # of an earlier run: no warning


def test_numbers_of_any_notation_are_names_where_they_are_named_so(tmp_path):
    (tmp_path / "a.csv").write_text(
        "zip,y\n" + "".join(f"{code},{row}\n" for row, code in enumerate(["01", "1", "x"] * 5))
    )
    with pytest.raises(UserError, match="line 4: zip is 'x', expected a finite number"):
        table(tmp_path / "a.csv", target="y", **NONE)
    data = table(tmp_path / "a.csv", target="y", categorical=["zip"], **NONE)
    assert data.info["input_names"] == ("zip=01", "zip=1", "zip=x")
    assert data.encode({"zip": [1, "x", "01"]}).tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
