"""What is found that may be wrong with data."""

import re

import numpy as np
import pytest

import accelnet as an
from accelnet.data.dataset import Data
from tests.data.test_look import clean, data_of


def found(data, **settings):
    return {finding.name: finding for finding in an.data.describe(data, **settings).findings}


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_found_where_nothing_is(seed):
    assert found(data_of(*clean(seed=seed))) == {}
    x = np.random.default_rng(seed).exponential(size=(2_000, 3))
    assert found(data_of(x, x.sum(axis=1), num_classes=None)) == {}


def test_equal_rows_in_two_splits_are_counted_and_named():
    x, y = clean(100)
    held = (np.concatenate([x[:7], clean(30, seed=1)[0]]), np.concatenate([y[:5], 2 - y[5:7], clean(30, seed=1)[1]]))
    same = int((y[:7] == held[1][:7]).sum())
    data = data_of(x, y, validation=0, test=held)
    text = found(data)["equal rows in two splits"].text
    assert found(data)["equal rows in two splits"].count == 7
    assert text.startswith(f"7 of 37 rows of test have the inputs of a row of train, {same} of them with its target: ")
    pairs = re.findall(r"row (\d+) = row (\d+)", text)
    assert len(pairs) == 3
    for test_row, train_row in (map(int, pair) for pair in pairs):
        # Rows are named as they were given: those held out follow the others.
        assert train_row < 100 <= test_row
        assert (held[0][test_row - 100] == x[train_row]).all()


def test_rows_of_a_dict_are_equal_only_if_all_of_their_arrays_are():
    x, y = clean(100)
    other = np.arange(100.0)
    test = ({"a": x[:9], "b": np.append(other[:4], [-1.0, -2.0, -3.0, -4.0, -5.0])}, y[:9])
    data = data_of({"a": x, "b": other}, y, validation=0, test=test)
    assert found(data)["equal rows in two splits"].count == 4


def test_duplicates_and_contradictions_among_training_rows_are_counted():
    x, y = clean(100)
    x, y = np.concatenate([x, x[:6], x[:2]]), np.concatenate([y, y[:6], (y[:2] + 1) % 3])
    names = found(data_of(x, y, validation=0, test=0))
    assert names["duplicates"].count == 8
    assert names["equal inputs with different targets"].count == 6  # two inputs, three rows of each


def test_constant_inputs_are_named_and_a_constant_target_too():
    x, _ = clean()
    x[:, 2] = 0.1  # the mean of many is another number
    names = found(data_of(x, np.full(600, 2.5), num_classes=None))
    assert names["constant inputs"].text == "1 of 4 inputs are the same in all 360 rows of train: inputs[2] (0.1)"
    assert names["constant targets"].count == 1


def test_rare_and_absent_classes_and_one_alone_are_named():
    x, _ = clean(100)
    rare = np.where(np.arange(100) < 6, 1, 0)
    rare[6] = 2
    names = found(data_of(x, rare, validation=0.1, test=0, class_names=["common", "rare", "single"], num_classes=None))
    assert "'rare' (5)" in names["rare classes"].text and "'single' (1)" in names["rare classes"].text
    assert names["absent classes"].text == "1 of 3 classes has no row of validation: 'single'"
    assert "one class" in found(data_of(x, np.zeros(100, int), num_classes=2))


def test_shares_of_classes_that_differ_by_more_than_chance_are_named():
    x, y = clean(2_000, 2)
    other_x, other_y = clean(400, 2, seed=1)
    other_y = np.where(np.arange(400) < 200, 1, other_y)
    names = found(data_of(x, y, num_classes=2, validation=0, test=(other_x, other_y)))
    told = re.findall(r"'([01])' is (\d+)\W+of test and (\d+)\W+of train", names["different shares of classes"].text)
    assert told in [
        [(str(label), *(f"{100 * np.mean(part == label):.0f}" for part in (other_y, y)))] for label in (0, 1)
    ]


def test_outliers_are_counted_where_two_of_them_widen_the_deviation():
    x, y = clean(500)
    x[3:5, 1] = 1e5
    finding = found(data_of(x, y, validation=0, test=0))["outliers"]
    assert finding.count == 2 and "inputs[1] (2; " in finding.text
    targets = np.random.default_rng(0).normal(size=500)
    targets[9] = 1e3
    assert (
        "of targets of train"
        in found(data_of(clean(500)[0], targets, num_classes=None, validation=0, test=0))["outliers"].text
    )


def test_a_rare_yes_is_no_outlier():
    x, y = clean(5_000)
    x[:, 0] = np.arange(5_000) % 1_000 == 0
    assert found(data_of(x, y)) == {}


def test_values_that_were_filled_are_counted_by_column(tmp_path):
    x, y = clean(100)
    cells = [
        ["" if row % 9 == 3 else f"{x[row, 0]}", "" if row < 4 else "ab"[row % 2], "uvw"[y[row]]] for row in range(100)
    ]
    (tmp_path / "a.csv").write_text("size,hue,left\n" + "\n".join(map(",".join, cells)) + "\n")
    data = an.data.table(tmp_path / "a.csv", target="left", missing="mean", validation=0, test=0)
    finding = found(data)["filled values"]
    assert finding.count == 15
    assert finding.text == "15 values were missing in 100 rows of train and were filled: size (11), hue (4)"
    inputs = [one["inputs"] for one in an.data.describe(data).values["examples"]]
    shown = {(type(one["size"]), one["hue"]) for one in inputs}
    assert {(float, "a"), (float, "b")} <= shown <= {(t, h) for t in (float, str) for h in ("a", "b", "missing")}


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda x, rng: x[:, 1], ["inputs[1]"]),
        (lambda x, rng: 5 - 3 * x[:, 2], ["inputs[2]"]),
        (lambda x, rng: np.exp(3 * x[:, 0]), ["inputs[0]"]),
        (lambda x, rng: x[:, 1] + 0.3 * rng.normal(size=len(x)), []),
        (lambda x, rng: rng.normal(size=len(x)), []),
    ],
)
def test_an_input_that_tells_a_number_is_named(make, names):
    x, _ = clean(800)
    finding = found(data_of(x, make(x, np.random.default_rng(7)), num_classes=None)).get("inputs that tell the target")
    assert names == ([] if finding is None else finding.text.partition("rows of train: ")[2].split(", "))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda x, rng: (x[:, 1] > 0.3).astype(int), True),
        (lambda x, rng: (np.abs(x[:, 1]) > 1).astype(int), True),
        (lambda x, rng: (x[:, 1] + 0.1 * rng.normal(size=len(x)) > 0).astype(int), False),
        (lambda x, rng: (np.arange(len(x)) % 200 == 0).astype(int), False),
        (lambda x, rng: rng.integers(0, 2, len(x)), False),
    ],
)
def test_an_input_that_tells_the_class_is_named(make, told):
    x, _ = clean(800)
    names = found(data_of(x, make(x, np.random.default_rng(7)), num_classes=2))
    assert ("inputs that tell the target" in names) == told


def test_a_column_of_names_that_tells_the_class_is_named_as_one():
    rng = np.random.default_rng(0)
    code = rng.integers(0, 4, 400)
    x = np.concatenate([rng.normal(size=(400, 1)), np.eye(4)[code]], axis=1)
    columns = (
        {"name": "size", "kind": "number", "names": ()},
        {"name": "code", "kind": "categories", "names": ("a", "b", "c", "d")},
    )
    names = ("size", "code=a", "code=b", "code=c", "code=d")
    data = data_of(x, code % 2, num_classes=2)
    info = {"input_names": names, "num_classes": 2}
    data = Data("table", data.arrays, data.splits, info=info, fitted={"columns": columns})
    description = an.data.describe(data)
    assert [one.text.partition("of train: ")[2] for one in description.findings] == ["code"]
    values = description.to_json()
    assert values["categories"][0]["counts"] == data.arrays["inputs"][:240, 1:].sum(axis=0).tolist()
    assert [one["name"] for one in values["histograms"]["inputs"]] == ["size"]
    assert set(values["examples"][0]["inputs"]) == {"size", "code"}
    assert values["examples"][0]["inputs"]["code"] in "abcd"
