import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from accelnet.data import Data, digits, from_arrays, text, ts
from accelnet.data import table as read_table
from accelnet.errors import UserError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(2, 3, (50, 3)), np.arange(50) % 2
NAMES = np.array(["no", "yes"])


def through_json(fitted):
    return json.loads(json.dumps(fitted))


def table(path, rows=60, colours=("red", "blue"), price=lambda row: 3.0 * row):
    lines = [f"{row % 7}.5,{colours[row % len(colours)]},{price(row)}" for row in range(rows)]
    path.write_text("size,colour,price\n" + "\n".join(lines) + "\n")
    return path


OPTIONS = {"target": "price", "categorical": ["colour"]}


def test_raw_inputs_are_prepared_the_same_after_a_reload_of_other_rows():
    old, new = from_arrays(X, Y, num_classes=2), from_arrays(3 * X + 5, Y, num_classes=2)
    raw = X[:4]
    expected = old.prepare({"inputs": old.encode(raw)})["inputs"]
    reloaded = new.refitted(through_json(old.fitted))
    assert np.array_equal(reloaded.prepare({"inputs": reloaded.encode(raw)})["inputs"], expected)
    assert np.array_equal(jax.jit(reloaded.prepare)({"inputs": reloaded.encode(raw)})["inputs"], expected)
    # And without that it is not: the test would see it.
    assert not np.allclose(new.prepare({"inputs": new.encode(raw)})["inputs"], expected)
    assert reloaded.fitted == old.fitted
    assert reloaded.fingerprint() == new.fingerprint()


def test_raw_inputs_are_prepared_the_same_under_another_offset():
    times = 1.7e9 + np.arange(50.0)[:, None]
    old, new = from_arrays(times, Y), from_arrays(times + 5000, Y)
    assert old.coding != new.coding
    raw = times[:4] + 100
    expected = old.prepare({"inputs": old.encode(raw)})["inputs"]
    reloaded = new.refitted(old.fitted)
    # The offsets differ by 5,000, which float32 knows to 5e-4, and the deviation is 12.
    np.testing.assert_allclose(reloaded.prepare({"inputs": reloaded.encode(raw)})["inputs"], expected, atol=1e-4)


def test_fitted_values_stay_when_other_parts_are_replaced():
    new = from_arrays(3 * X + 5, Y).refitted(from_arrays(X, Y).fitted)
    again = dataclasses.replace(new, augment=lambda key, batch: batch)
    batch = {"inputs": new.encode(X[:3])}
    assert np.array_equal(again.prepare(batch)["inputs"], new.prepare(batch)["inputs"])
    doubled = dataclasses.replace(new, fitted={**new.fitted, "std": np.multiply(new.fitted["std"], 2)})
    np.testing.assert_allclose(2 * doubled.prepare(batch)["inputs"], new.prepare(batch)["inputs"], rtol=1e-6)


def test_a_prepare_of_the_users_own_gets_what_it_names():
    def prepare(batch, fitted):
        return {**batch, "inputs": batch["inputs"] * fitted["factor"]}

    arrays = {"inputs": np.ones((4, 1), np.float32), "targets": np.zeros(4)}
    data = Data("toy", arrays, {"train": range(4)}, prepare, fitted={"factor": 2.0})
    assert data.prepare(data.take(np.arange(1)))["inputs"].tolist() == [[2.0]]
    assert data.refitted({"factor": 3.0}).prepare(data.take(np.arange(1)))["inputs"].tolist() == [[3.0]]
    plain = dataclasses.replace(data, prepare=lambda batch: batch)
    assert plain.prepare(data.take(np.arange(1)))["inputs"].tolist() == [[1.0]]


def test_fitted_values_are_plain_after_a_way_through_json(tmp_path):
    for data in (digits(), from_arrays(X, NAMES[Y]), read_table(table(tmp_path / "a.csv"), **OPTIONS), text(window=64)):
        again = data.refitted(through_json(data.fitted))
        assert again.fitted == data.fitted
        assert {type(leaf) for leaf in jax.tree.leaves(again.fitted)} <= {float, str, bool}


def test_rows_that_were_encoded_otherwise_are_refused_and_the_message_says_where(tmp_path):
    old = read_table(table(tmp_path / "a.csv"), **OPTIONS)
    new = read_table(table(tmp_path / "b.csv", colours=("red", "green")), **OPTIONS)
    with pytest.raises(UserError, match=re.escape("('green', 'red')") + ".*" + re.escape("('blue', 'red')")):
        new.refitted(old.fitted)
    yes = from_arrays(X, NAMES[Y])
    with pytest.raises(UserError, match=r"without class_names.*have it.*fitted="):
        from_arrays(X, Y, num_classes=2).refitted(yes.fitted)
    with pytest.raises(UserError, match=r"with mean .*0\.5"):
        from_arrays(X, Y).refitted({"mean": [0.5], "std": [1.0]})
    with pytest.raises(UserError, match="expected a finite number"):
        from_arrays(X, Y).refitted({"mean": [float("nan")] * 3, "std": [1.0] * 3})
    with pytest.raises(UserError, match="fitted is 3"):
        from_arrays(X, Y).refitted(3)


@pytest.mark.parametrize("fitted", [{"a": object()}, {1: 2.0}, {"a": float("inf")}, {"a": {"b": [np.nan]}}])
def test_values_that_no_checkpoint_can_hold_are_refused(fitted):
    with pytest.raises(UserError, match="fitted"):
        Data("toy", {"inputs": X, "targets": Y}, {"train": range(50)}, fitted=fitted)


def test_a_table_is_loaded_with_the_names_and_units_of_an_earlier_run(tmp_path):
    old = read_table(table(tmp_path / "a.csv"), **OPTIONS)
    path = table(tmp_path / "b.csv", colours=("red",), price=lambda row: 100.0 + row)
    new = read_table(path, **OPTIONS, fitted=through_json(old.fitted))
    assert new.info["input_names"] == ("size", "colour=blue", "colour=red")
    assert new.info["target"] == old.info["target"]
    rows = np.arange(60)
    targets = new.prepare(new.take(rows))["targets"]
    # The two scales differ by a factor of 3: float32 rounding of numbers below 200.
    np.testing.assert_allclose(np.sort(new.decode(targets).ravel()), 100.0 + rows, atol=1e-4)
    raw = {"size": [1.5, 2.5], "colour": ["blue", " red "]}
    got, expected = (data.prepare({"inputs": data.encode(raw)})["inputs"] for data in (new, old))
    assert np.array_equal(got, expected)
    with pytest.raises(UserError, match="line 2: colour is 'grey', expected one of 'blue', 'red'"):
        read_table(table(tmp_path / "c.csv", colours=("grey",)), **OPTIONS, fitted=old.fitted)
    with pytest.raises(UserError, match="differ from the columns"):
        read_table(path, target="price", features=["size"], fitted=old.fitted)
    with pytest.raises(UserError, match="differ from the columns"):
        read_table(path, target="price", ordinal={"colour": ["red", "blue"]}, fitted=old.fitted)


def test_names_of_classes_are_those_of_the_earlier_run():
    old = from_arrays(X, NAMES[Y])
    new = from_arrays(X, np.full(50, "yes"), fitted=through_json(old.fitted))
    assert set(new.arrays["targets"].tolist()) == {1}
    assert new.info["num_classes"] == 2
    with pytest.raises(UserError, match="targets name 'maybe'"):
        from_arrays(X, np.full(50, "maybe"), fitted=old.fitted)


def test_a_text_is_loaded_with_the_vocabulary_of_an_earlier_run(tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 30)
    (tmp_path / "b.txt").write_text("bd" * 60)
    old = text(tmp_path / "a.txt", window=8)
    new = text(tmp_path / "b.txt", window=8, fitted=through_json(old.fitted))
    assert new.info["vocabulary"] == "abcd"
    assert new.info["num_classes"] == 4
    assert new.decode(new.arrays["inputs"][0]) == "dbdbdbdb"
    with pytest.raises(UserError, match="characters 'ac'"):
        text(tmp_path / "a.txt", window=8, fitted=text(tmp_path / "b.txt", window=8).fitted)


def test_series_are_loaded_with_the_classes_of_an_earlier_run(tmp_path):
    header = "@problemName toy\n@classLabel true {}\n@data\n"
    (tmp_path / "a.ts").write_text(header.format("a b") + "1,2:a\n3,4:b\n")
    (tmp_path / "b.ts").write_text(header.format("b a") + "9,2:a\n3,7:b\n")
    old = ts(tmp_path / "a.ts", tmp_path / "a.ts", validation=0)
    new = ts(tmp_path / "b.ts", tmp_path / "b.ts", validation=0, fitted=old.fitted)
    assert new.info["class_names"] == ("a", "b")
    series = {"inputs": np.array([[[1.0], [2.0]]]), "lengths": np.array([2])}
    got, expected = (data.prepare({"inputs": data.encode(series)})["inputs"]["inputs"] for data in (new, old))
    assert np.array_equal(got, expected)
