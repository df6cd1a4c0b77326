"""A look at the data: what it prints, what is read for it, and what it finds: each fault that was planted, no other."""

import json
import math
import re

import jax
import numpy as np
import pytest

import accelnet as an
from accelnet.data.dataset import Data
from accelnet.data.rows import Rows, lazy_arrays
from tests.pages import Page, needs_browser, needs_nothing, shows

HOSTILE = """<script>alert("x")</script>\x1b[31m'&<blink>"""


class Counted(Rows):
    """Pictures that are made when they are asked for, and counted."""

    def __init__(self, num_rows=1_000, stored=False):
        self.num_rows, self.num_read, self.stored = num_rows, 0, stored
        self.shapes = {
            "inputs": jax.ShapeDtypeStruct((8, 8, 3), np.uint8),
            "targets": jax.ShapeDtypeStruct((), np.int32),
        }

    def __len__(self):
        return self.num_rows

    def read(self, rows):
        self.num_read += len(rows)
        pixels = np.stack([np.random.default_rng(row).integers(0, 256, (8, 8, 3), np.uint8) for row in rows.tolist()])
        return {"inputs": pixels, "targets": (rows % 3).astype(np.int32)}

    def place(self, row):
        return f"photo {row}"


def lazy(rows):
    splits = {"train": range(len(rows) - 200), "test": range(len(rows) - 200, len(rows))}
    return Data("photos", lazy_arrays(rows), splits, info={"num_classes": 3})


def clean(num_rows=600, num_classes=3, seed=0):
    """Return inputs and labels in which nothing is to be found."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_rows, 4)), rng.integers(0, num_classes, num_rows)


def data_of(x, y, **settings):
    settings = {"num_classes": 3, "validation": 0.2, "test": 0.2} | settings
    return an.data.from_arrays(x, y, **settings)


def found(data, **settings):
    return {finding.name: finding for finding in an.data.describe(data, **settings).findings}


def kinds():
    """Yield data of every kind."""
    yield an.data.xor()
    yield an.data.digits()
    yield an.data.text(window=32)
    yield data_of(*clean(), name="x" * 100, weights=np.ones(600), class_names=["a" * 90, "b", "c"])
    yield data_of(clean()[0], np.arange(600), num_classes=600, validation=0, test=0)
    yield data_of(clean()[0], clean()[0][:, :2], num_classes=None)
    many = {f"field_with_a_long_name_{index}": clean()[0] for index in range(30)}
    yield data_of(many, {"one": clean()[1], "two": clean()[0]}, num_classes=None, name=HOSTILE)
    yield lazy(Counted())
    steps = {"inputs": np.random.default_rng(0).normal(size=(50, 30, 9)), "lengths": np.arange(50) % 30}
    yield data_of(steps, np.arange(50) % 2, num_classes=2)


@pytest.mark.parametrize("data", [*kinds()], ids=lambda data: data.name[:12])
def test_every_kind_of_data_prints_itself_in_a_few_narrow_lines(data):
    lines = repr(data).splitlines()
    assert 3 <= len(lines) <= 12 and max(map(len, lines)) <= 80
    assert lines[0].startswith("data ") and f"{data.num_rows:,} rows" in repr(data)
    assert "\x1b" not in repr(data)


@pytest.mark.parametrize("data", [*kinds()], ids=lambda data: data.name[:12])
def test_every_kind_of_data_has_a_card_and_a_page_and_strict_json(data):
    card = Page(data._repr_html_())
    assert not card.all("script") and f"{data.num_rows:,} rows" in card.text
    description = an.data.describe(data)
    page = needs_nothing(description.page())
    assert "Examples" in page.text and not page.all("blink")
    values = json.loads(json.dumps(description.to_json(), allow_nan=False))
    assert values == description.to_json()
    assert all("\x1b" not in text for text in (description.page(), repr(description), data._repr_html_()))


def test_the_lines_name_shapes_classes_what_was_fitted_and_the_augmentation():
    x, y = clean()
    names = np.array(["ant", "bee", "cat"])
    data = data_of(x, names[y], num_classes=None, name="zoo")
    data = Data(
        "zoo", data.arrays, data.splits, data.prepare, augment=an.data.compose(), info=data.info, fitted=data.fitted
    )
    counts = [np.bincount(data.arrays["targets"][rows.start : rows.stop]) for rows in data.splits.values()]
    bee = "/".join(str(one[1]) for one in counts)
    lines = repr(data).splitlines()
    assert lines[0] == "data     zoo, 600 rows: train 360, validation 120, test 120"
    assert lines[1] == "inputs   float32 [N, 4], 9.4 KiB in memory"
    assert lines[3].startswith("classes  3, rows in train/validation/test: ant ") and f"bee {bee}" in lines[3]
    assert lines[-2:] == ["fitted   names of 3 classes; mean and std of 4 features", "augment  compose"]


def test_of_many_classes_the_rarest_and_the_commonest_are_named():
    labels = np.repeat(np.arange(40), np.arange(1, 41))
    text = " ".join(repr(data_of(np.zeros((820, 1)), labels, num_classes=40, validation=0, test=0)).split())
    assert "40, rows in train: from 0 1, 1 2, 2 3, ... to 37 38, 38 39, 39 40" in text


def test_no_row_is_read_to_print_and_at_most_twelve_for_a_card():
    rows = Counted()
    data = lazy(rows)
    before = rows.num_read
    assert "uint8 [N, 8, 8, 3], 187.5 KiB read by rows" in repr(data) and rows.num_read == before
    assert data._repr_html_().count("<img") == 12 and rows.num_read == before + 12


def test_of_lazy_rows_so_many_are_read_as_is_asked_for_and_the_description_says_it():
    rows = Counted(5_000)
    data = lazy(rows)
    before = rows.num_read
    said = []
    description = an.data.describe(data, most_rows=300, say=said.append)
    assert rows.num_read == before + 300 + 200
    assert description.to_json()["read"] == {"train": 300, "test": 200}
    assert "300 of 4,800 rows of train were read" in repr(description)
    assert "300 of 4,800 rows of train" in Page(description.page()).text
    assert said[0] == "reading train, 0 of 300 rows" and description.findings == []


def test_few_large_rows_are_read(monkeypatch):
    from accelnet.data.look import reading

    rows = Counted(5_000)
    monkeypatch.setattr(reading, "_MOST_BYTES", 2 * 50 * 196)  # a row has 8 x 8 x 3 bytes and a label of 4
    assert an.data.describe(lazy(rows)).to_json()["read"] == {"train": 50, "test": 50}


def test_of_a_stream_the_first_batch_is_looked_at():
    def batches(epoch):
        rng = np.random.default_rng(epoch)
        while True:
            x = rng.normal(size=(32, 3))
            yield x, (x[:, 0] > 0.1).astype(np.int32)

    x, y = clean(60, 2, seed=9)
    data = an.data.from_batches(batches, steps=10, num_classes=2, validation=(x[:, :3], y))
    assert "float32 [N, 3], 4.5 KiB in a stream of 10 batches of 32" in repr(data)
    description = an.data.describe(data)
    assert description.to_json()["read"] == {"train": 32, "validation": 60}
    assert [finding.name for finding in description.findings] == ["inputs that tell the target"]
    assert "row" in data._repr_html_()


def test_a_row_that_is_not_as_the_data_says_is_one_message():
    class Damaged(Counted):
        def read(self, rows):
            return super().read(rows) | {"targets": np.where(rows == 500, 7, 0).astype(np.int32)}

    with pytest.raises(an.UserError, match="targets of photo 500 is no label from 0 to 2"):
        an.data.describe(lazy(Damaged()))


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


def test_ranges_are_those_of_the_training_rows_in_the_units_of_the_file():
    times = 1.7e9 + np.arange(500.0) * 7
    data = data_of(times[:, None], np.sin(times), num_classes=None)
    train = data.raw(np.arange(data.num_examples("train")))
    values = an.data.describe(data).to_json()
    [one] = values["inputs"]
    assert (one["least"], one["most"]) == (train["inputs"].min(), train["inputs"].max())
    assert one["mean"] == pytest.approx(train["inputs"].mean()) and one["std"] == pytest.approx(train["inputs"].std())
    assert sum(values["histograms"]["inputs"][0]["counts"]) == data.num_examples("train")


def test_steps_beyond_the_length_of_a_series_do_not_count():
    steps = np.full((40, 10, 1), 5.0)
    lengths = np.arange(40) % 9 + 1
    for row, length in enumerate(lengths):
        steps[row, length:] = 0
    values = an.data.describe(data_of({"inputs": steps, "lengths": lengths}, np.arange(40) % 2, num_classes=2)).values
    assert [(one["least"], one["most"]) for one in values["inputs"]] == [(5.0, 5.0), (1.0, 9.0)]
    assert all(set(one["series"][0]) == {5.0} for one in values["examples"])


def test_what_comes_from_the_data_is_escaped_on_the_page():
    x, y = clean()
    data = data_of(x, np.array([HOSTILE, "b", "c"])[y], num_classes=None, name=HOSTILE)
    data = Data(HOSTILE, data.arrays, data.splits, info=dict(data.info) | {"input_names": (HOSTILE, "b", "c", "d")})
    for text in (an.data.describe(data).page(), data._repr_html_()):
        page = Page(text)
        assert not page.all("script") + page.all("blink") and "\x1b" not in text
        assert "<script>alert" in page.text  # as text


def test_arguments_are_checked():
    with pytest.raises(an.UserError, match="data is 3, expected a Data"):
        an.data.describe(3)
    with pytest.raises(an.UserError, match="most_rows is 0"):
        an.data.describe(an.data.xor(), most_rows=0)


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_the_page(browser, tmp_path):
    x, y = clean()
    x[:, 0] = math.pi
    data = data_of(np.concatenate([x, x[:9]]), np.append(y, y[:9]))
    shows(browser, an.data.describe(data).page(), tmp_path, ((0x00, 0x72, 0xB2),))
