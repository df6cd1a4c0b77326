"""A look at the data: what it prints, what is read for it, and what it finds: each fault that was planted, no other."""

import json
import math

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
