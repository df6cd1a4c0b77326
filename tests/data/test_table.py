import gzip
import re
from importlib.util import find_spec

import chex
import jax
import numpy as np
import pytest

from accelnet.data import diamonds, files, table, undo_target
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
    data = table(write(tmp_path / "a.csv"), log_target=log_target, **OPTIONS)
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
    data = table(write(tmp_path / "a.csv"), **OPTIONS)
    train = np.arange(data.num_examples("train"))
    batch = jax.jit(data.prepare)(data.take(train))
    inputs = np.asarray(batch["inputs"])
    # float32 rounding.
    np.testing.assert_allclose(inputs[:, [0, 4]].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(inputs[:, [0, 4]].std(axis=0), 1, atol=1e-6)
    assert set(np.unique(inputs[:, 1:4])) == {0, 1}
    np.testing.assert_allclose([batch["targets"].mean(), batch["targets"].std() - 1], 0, atol=1e-6)
    chex.assert_shape(batch["targets"], (40, 1))
    assert np.abs(data.arrays["targets"].mean()) > 1e-3


def test_splits_follow_the_seed_and_features_their_order(tmp_path):
    path = write(tmp_path / "a.csv")
    first, again, other = (table(path, seed=seed, **OPTIONS).fingerprint() for seed in (0, 0, 1))
    assert first == again != other
    data = table(path, target="size", features=["price"])
    assert data.info["input_names"] == ("price",)
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        "train": 40,
        "validation": 5,
        "test": 5,
    }


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_may_have_two_uses(tmp_path, kind):
    path = write(tmp_path / "a.csv")
    if kind == "parquet":
        parquet, arrow_csv = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow.csv")
        path = tmp_path / "a.parquet"
        parquet.write_table(arrow_csv.read_csv(tmp_path / "a.csv"), path)
    data = table(path, target="grade", stratify="grade", features=["size", "price"])
    assert data.info["class_names"] == ("high", "low", "mid")


def test_quotes_blank_lines_and_byte_order_marks_are_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfsize,name,price\r\n" + b'1,"a, b",2\r\n\r\n2,"c ""d""\ne",3\r\n' * 5)
    data = table(path, target="price", categorical=["name"])
    assert data.info["input_names"] == ("size", "name=a, b", 'name=c "d"\ne')


@pytest.mark.parametrize(
    ("content", "kwargs", "message"),
    [
        (b"", {}, "is empty"),
        (b"size,price\n", {}, "is empty"),
        (b"size,price\n1,2\n3\n", {}, "line 3: 1 fields, expected 2"),
        (b"size,price\n1,2\n3,4,5\n", {}, "line 3: 3 fields, expected 2"),
        (b"size,price\n1,2\nx,4\n", {}, "line 3: size is 'x', expected a finite number"),
        (b"size,price\n1,2\n,4\n", {}, "line 3: size is missing, and so in 1 of 2 rows: fill or drop such rows"),
        (b"size,price\n1,2\nnan,4\n", {}, "line 3: size is missing"),
        (b"size,price\n1,2\n1e39,4\n", {}, "line 3: size is 1e+39, expected a finite number"),
        (b"size,price\n1,2\n3,inf\n", {}, "line 3: price is inf"),
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
        (b"price\n1\n2\n", {}, "no column to predict 'price' from"),
        (b"size,price\n1,2\n", {"features": []}, "no column to predict 'price' from"),
        (b"size,price\n1,2\n", {"features": "size"}, "features is 'size', expected a list of names"),
        (b"size,price\n1,2\n", {"features": ["size", "size"]}, "features has 'size' more than once"),
        (b"size,price\n1,2\n", {"categorical": "size"}, "categorical is 'size', expected a list of names"),
        (b"size,price\n1,2\n", {"ordinal": ["size"]}, "ordinal is ['size'], expected a dict"),
        (b"size,price\n1,2\n", {"ordinal": {"size": "12"}}, "expected a list of names"),
        (b"size,price\n1,2\n", {"ordinal": {"size": ["1", "2", "1 "]}}, "has '1' more than once"),
        (b"size,price\n1,2\n", {"categorical": ["size"], "ordinal": {"size": ["1"]}}, "categorical and ordinal"),
        (b"size,price\n1,2\n", {"target": None}, "target is None, expected text"),
        (b"size,price\n1,2\n", {"task": "number"}, "task is 'number', expected one of"),
        (b"size,price\n1,2\n", {"log_target": 1}, "log_target is 1, expected True or False"),
        (b"size,price\n1,2\n", {"fitted": 3}, "fitted is 3"),
        (b"size,price\n1,2\n", {"seed": "a"}, "seed is 'a'"),
        (b"size,price\n1,2\n", {"validation": [1]}, "validation is [1], expected a fraction, or a file or frame"),
        (b"size,price\n1,2\n2,2\n3,2\n", {}, "price is the same in all training rows"),
        (b"size,price\n1,a\n2,a\n", {}, "price is 'a' in all rows: nothing to predict"),
        (b"size,price\n1,0\n2,1\n3,2\n", {"task": "labels"}, "line 4: price is '2', expected 0 or 1"),
        (b"size,price\n1,a\n2,b\n", {"task": "classes", "log_target": True}, "needs numbers to predict"),
        (b"size,price\n1,2\n1_000,2\n", {}, "line 3: size is '1_000', expected a finite number"),
        ("size,price\n1,2\n\u0661,2\n".encode(), {}, "line 3: size is '\u0661', expected a finite number"),
        (b'size,price\n1,2\n"1,000",2\n', {}, "without commas between thousands"),
        (b"size;price\n1;2\n0,5;2\n", {}, "line 3: size is '0,5', expected a finite number: write it with a decimal"),
        (b"size,price\n1,2\n5%,2\n", {}, "line 3: size is '5%'"),
        (b"name,price\na,2\n ,2\n", {"categorical": ["name"]}, "line 3: name is missing"),
        (
            b"# made by x\nsize,price\n1,2\n",
            {},
            "It has '# made by x' alone: expected names separated by commas in the first line",
        ),
        (b"a\x1b[31mb,price\n1,2\n", {"target": "z"}, r"It has 'a\x1b[31mb', 'price'"),
        (b"size,price\n1,2\nx\x1b[31m,2\n", {}, r"size is 'x\x1b[31m'"),
    ],
)
def test_wrong_tables_are_refused_with_the_line(tmp_path, content, kwargs, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        table(tmp_path / "a.csv", **{"target": "price", "validation": 0, "test": 0, **kwargs})
    assert str(caught.value).isprintable()


BODY = "".join(f"{row % 7}.5,{('red', 'blue')[row % 2]},{row}\n" for row in range(20))


@pytest.mark.parametrize(
    "content",
    [
        "x,c,y\n" + BODY,
        "\ufeff" + ("x,c,y\n" + BODY).replace("\n", "\r\n"),
        ("x,c,y\n" + BODY).replace("\n", "\r"),
        "x, c, y\n" + BODY.replace("red", " red ").replace("blue", ' "blue"'),
        ("x,c,y\n" + BODY).replace(",", ";"),
        ("x,c,y\n" + BODY).replace(",", "\t"),
        "\nx,c,y\n" + BODY + "\n  \n",
    ],
)
def test_the_same_table_as_other_programs_write_it_is_the_same(tmp_path, content):
    (tmp_path / "a.csv").write_text("x,c,y\n" + BODY)
    expected = table(tmp_path / "a.csv", target="y", categorical=["c"])
    (tmp_path / "b.csv").write_bytes(content.encode())
    with gzip.open(tmp_path / "c.csv.gz", "wb") as file:
        file.write(content.encode())
    for name in ("b.csv", "c.csv.gz"):
        data = table(tmp_path / name, target="y", categorical=["c"])
        assert data.info == expected.info
        assert data.fingerprint() == expected.fingerprint()
        assert data.name == name[0]


def test_a_comma_in_a_quoted_name_does_not_separate_columns(tmp_path):
    (tmp_path / "a.csv").write_text('"size, cm";price\n' + "".join(f"{row};{row * 2}\n" for row in range(20)))
    assert table(tmp_path / "a.csv", target="price").info["input_names"] == ("size, cm",)


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_an_index_that_pandas_wrote_is_left_out_and_that_is_said(tmp_path, name):
    lines = [f"{row},{row % 3},{row * 2}" for row in range(20)]
    (tmp_path / "a.csv").write_text("\n".join([f"{name},x,y", *lines]))
    with pytest.warns(UserWarning, match="'Unnamed: 0' left out"):
        data = table(tmp_path / "a.csv", target="y")
    assert data.info["input_names"] == ("x",)
    assert table(tmp_path / "a.csv", target="y", features=["Unnamed: 0"]).info["input_names"] == ("Unnamed: 0",)


def test_a_damaged_gzip_file_is_named(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"x,y\n1,2\n" * 1000)[:-20])
    with pytest.raises(UserError, match=r"a\.csv\.gz cannot be read: Truncated .* get it again"):
        table(tmp_path / "a.csv.gz", target="y")


def test_a_column_of_0_and_1_is_kept_for_a_sigmoid(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{row},{row % 2}\n" for row in range(40)))
    data = table(tmp_path / "a.csv", target="y")
    assert data.target_range("train") == {"targets": (0.0, 1.0)}
    assert (data.arrays["targets"].shape, data.arrays["targets"].dtype) == ((40, 1), np.float32)
    assert np.array_equal(data.arrays["targets"][:, 0], data.arrays["inputs"][:, 0] % 2)
    assert np.array_equal(data.prepare(data.take(np.arange(40)))["targets"], data.arrays["targets"])
    assert "target" not in data.info
    numbers = table(tmp_path / "a.csv", target="y", task="numbers")
    assert numbers.target_range("train")["targets"][0] < 0
    assert "target" in numbers.info


@pytest.mark.parametrize("task", [None, "classes"])
def test_a_column_of_names_becomes_classes(tmp_path, task):
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{row},{('b', ' a ')[row % 2]}\n" for row in range(40)))
    data = table(tmp_path / "a.csv", target="y", task=task)
    assert (data.info["num_classes"], data.info["class_names"]) == (2, ("a", "b"))
    assert data.arrays["targets"].dtype == np.int32
    got = dict(zip(data.arrays["inputs"][:, 0].tolist(), data.decode(data.arrays["targets"]).tolist(), strict=True))
    assert got == {row: "ba"[row % 2] for row in range(40)}
    validation = data.splits["validation"]
    assert np.bincount(data.arrays["targets"][validation.start : validation.stop]).tolist() == [2, 2]


def test_few_whole_numbers_are_predicted_as_numbers_and_one_line_says_so(capsys):
    columns = {"x": list(range(40)), "grade": [row % 3 + 2 for row in range(40)]}
    for _ in range(2):
        assert table(columns, target="grade").fitted["task"] == "numbers"
    line = 'source: grade is 2, 3, 4 and is predicted as a number; task="classes" predicts it as a class\n'
    assert capsys.readouterr().err == line
    for target, settings in (("grade", {"task": "numbers"}), ("x", {}), ("grade", {"task": "classes"})):
        table(columns, target=target, **settings)
    assert not capsys.readouterr().err


def test_numbers_as_classes_are_in_their_order_and_of_one_spelling(tmp_path):
    spelled = ("10", "2", "2.0", "02", "1.5")
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{row},{spelled[row % 5]}\n" for row in range(40)))
    data = table(tmp_path / "a.csv", target="y", task="classes")
    assert data.info["class_names"] == ("1.5", "2", "10")


def test_a_prepared_table_takes_targets_in_a_dict(tmp_path):
    data = table(write(tmp_path / "a.csv"), **OPTIONS)
    batch = {"inputs": data.arrays["inputs"][:2], "targets": {"a": np.zeros(2, np.uint8), "b": np.ones(2, np.float32)}}
    got = data.prepare(batch)["targets"]
    assert (got["a"].dtype, got["b"].tolist()) == (np.int32, [1.0, 1.0])


def test_a_missing_file_or_package_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=re.escape("nothing.csv cannot be read")):
        table(tmp_path / "nothing.csv", target="price")
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps plotnine"):
        diamonds()


def test_diamonds_are_read_from_a_path_of_the_users_own(tmp_path):
    first = '0.23,"Ideal","E","SI2",61.5,55,{},3.95,3.98,2.43'
    second = '0.33,"Good","F","SI1",62.5,56,{},4.95,4.98,3.43'
    header = '"carat","cut","color","clarity","depth","table","price","x","y","z"'
    (tmp_path / "a.csv").write_text("\n".join([header, *((first, second)[i % 2].format(300 + i) for i in range(20))]))
    data = diamonds(tmp_path / "a.csv")
    assert sorted(undo_target(data.arrays["targets"][:, 0], data.info["target"]).round().tolist()) == list(
        range(300, 320)
    )
    rows = {tuple(row) for row in data.arrays["inputs"][:, :4].tolist()}
    assert rows == {(np.float32(0.23), 4, 5, 1), (np.float32(0.33), 1, 4, 2)}


@pytest.mark.skipif(find_spec("plotnine") is None, reason="plotnine is not installed")
def test_the_real_diamonds_are_all_read():
    data = diamonds()
    chex.assert_shape(data.arrays["inputs"], (53940, 9))
    prices = undo_target(data.arrays["targets"], data.info["target"])
    # The prices are 326 to 18823; the logarithm is kept in float32.
    np.testing.assert_allclose([prices.min(), prices.max()], [326, 18823], rtol=1e-6)
