"""The same table from each kind of file and frame, and what is wrong with one."""

import bz2
import gzip
import json
import re

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from accelnet.data import table
from accelnet.errors import UserError

COLUMNS = {
    "size": [0.5 * (row % 7) for row in range(40)],
    "colour": ["red" if row % 2 else "blue" for row in range(40)],
    "price": [float(row) for row in range(40)],
}
ROWS = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*COLUMNS.values(), strict=True)]
ARROW = pa.table(COLUMNS)
CSV = "size,colour,price\n" + "".join(f"{row['size']},{row['colour']},{row['price']}\n" for row in ROWS)
JSON = "".join(json.dumps(row) + "\n" for row in ROWS)


class Frame:
    """As a frame of polars or another library: it gives its columns to Arrow's, and is nothing else."""

    def __init__(self, columns):
        self.columns = columns

    def __arrow_c_stream__(self, requested_schema=None):
        return self.columns.__arrow_c_stream__(requested_schema)


def compressed(kind):
    def write(path):
        with pa.output_stream(str(path), compression=kind) as stream:
            stream.write(CSV.encode())

    return write


def stream_file(path):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, ARROW.schema) as writer:
        writer.write_table(ARROW)


FILES = {
    "a.csv": lambda path: path.write_text(CSV),
    "a.tsv": lambda path: path.write_text(CSV.replace(",", "\t")),
    "a.txt": lambda path: path.write_text(CSV.replace(",", "|")),
    "a.csv.gz": lambda path: path.write_bytes(gzip.compress(CSV[:300].encode()) + gzip.compress(CSV[300:].encode())),
    "a.csv.bz2": lambda path: path.write_bytes(bz2.compress(CSV.encode())),
    "a.csv.zst": compressed("zstd"),
    "a.csv.lz4": compressed("lz4"),
    "a.jsonl": lambda path: path.write_text(JSON),
    "a.ndjson.gz": lambda path: path.write_bytes(gzip.compress(JSON.encode())),
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "a.json.gz": lambda path: path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(COLUMNS).encode())),
    "a.ndjson": lambda path: path.write_text(  # columns by the number of the row, as pandas writes them
        json.dumps({name: dict(enumerate(values)) for name, values in COLUMNS.items()})
    ),
    "a.parquet": lambda path: parquet.write_table(ARROW, path, row_group_size=7),
    "a.feather": lambda path: feather.write_feather(ARROW, path),
    "a.arrow": lambda path: feather.write_feather(ARROW, path, compression="uncompressed", chunksize=7),
    "a.arrows": stream_file,
}


@pytest.fixture(scope="module")
def expected():
    return table(COLUMNS, target="price")


def assert_same(data, expected):
    assert data.info == expected.info
    assert data.fitted == expected.fitted
    assert data.fingerprint() == expected.fingerprint()


@pytest.mark.parametrize("name", FILES)
def test_a_table_is_the_same_from_every_kind_of_file(tmp_path, name, expected):
    FILES[name](tmp_path / name)
    data = table(tmp_path / name, target="price")
    assert_same(data, expected)
    assert data.name == "a"
    assert np.array_equal(data.encode(tmp_path / name), expected.encode(COLUMNS))
    assert np.array_equal(data.encode(str(tmp_path / name)), expected.encode(COLUMNS))


@pytest.mark.parametrize(
    "frame",
    [ARROW, ROWS, Frame(ARROW), {name: np.array(values) for name, values in COLUMNS.items()}, ARROW.to_batches()[0]],
)
def test_a_table_is_the_same_from_everything_in_memory(frame, expected):
    data = table(frame, target="price")
    assert_same(data, expected)
    assert data.name == "table"
    assert np.array_equal(data.encode(frame), expected.encode(COLUMNS))


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 0, 3, 2] * 10, pa.uint64()),
        pa.array(np.array([1, 0, 3, 2] * 10, np.float16)),
        pa.array([1, 0, 3, 2] * 10, pa.decimal128(7, 2)),
        pa.array([1, 0, 3, 2] * 10, pa.duration("s")),
        pa.array([1000, 0, 3000, 2000] * 10, pa.timestamp("ms", "Europe/Paris")),
        pa.array([1, 0, 3, 2] * 10, pa.time32("s")),
        pa.array([86400 * 1000 * day for day in (1, 0, 3, 2)] * 10, pa.date64()),
        pa.array([1, 0, 3, 2] * 10, pa.date32()),
        pa.RunEndEncodedArray.from_arrays(pa.array([40], pa.int32()), pa.array([2.0])),
        pa.chunked_array([pa.array([1, 0]), pa.array([3, 2] * 19)]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*the same in all training rows")
def test_every_type_of_number_and_time_is_one_input_in_numbers_or_seconds(values):
    data = table(pa.table({"x": values, "y": pa.array(range(40))}), target="y", validation=0, test=0)
    seconds = 86400.0 if pa.types.is_date(values.type) else 1.0
    found = dict(zip(data.decode(data.arrays["targets"]).ravel().round().tolist(), data.arrays["inputs"], strict=True))
    whole = [2.0] * 40 if pa.types.is_run_end_encoded(values.type) else None
    numbers = whole or ([1, 0] + [3, 2] * 19 if isinstance(values, pa.ChunkedArray) else [1, 0, 3, 2] * 10)
    assert [found[row].item() for row in range(40)] == [number * seconds for number in numbers]


def test_dictionaries_text_of_any_width_and_bytes_are_names():
    texts = ["red", " red ", "blue", "grey"] * 10
    for array in (
        pa.array(texts).dictionary_encode(),
        pa.array(texts, pa.large_string()),
        pa.array(texts, pa.string_view()),
        pa.array([text.encode() for text in texts], pa.binary()),
        pa.chunked_array([pa.array(texts[:7]).dictionary_encode(), pa.array(texts[7:]).dictionary_encode()]),
    ):
        data = table(pa.table({"x": array, "y": pa.array(range(40))}), target="y")
        assert data.info["input_names"] == ("x=blue", "x=grey", "x=red")
    numbers = pa.array([7, 30, 7, 30] * 10).dictionary_encode()
    assert table(pa.table({"x": numbers, "y": range(40)}), target="y").info["input_names"] == ("x=30", "x=7")
    classes = table(pa.table({"x": range(40), "y": numbers}), target="y")
    assert (classes.fitted["task"], classes.info["class_names"]) == ("classes", ("7", "30"))


MANY = b"size,price\n" + b"1,2\n" * 3000


def flipped(path, share):
    content = bytearray(path.read_bytes())
    at = int(len(content) * share)
    content[at : at + 8] = bytes(255 - one for one in content[at : at + 8])
    path.write_bytes(content)


def damaged_page(path):
    columns = pa.table({"size": np.random.default_rng(0).normal(size=5000), "price": range(5000)})
    parquet.write_table(columns, path, write_page_checksum=True, compression="none", use_dictionary=False)
    flipped(path, 0.2)


def damaged_feather(path):
    feather.write_feather(pa.table({"size": ["a" * (row % 9) for row in range(5000)], "price": range(5000)}), path)
    flipped(path, 0.3)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.parquet", damaged_page, "cannot be read: .*checksum"),
        ("a.parquet", lambda path: path.write_bytes(b"PAR1" + bytes(100)), "cannot be read"),
        ("a.parquet", lambda path: path.write_text(CSV), "is no Parquet file, it begins with b'size,col'"),
        ("a.parquet", lambda path: path.write_bytes(b""), "is no Parquet file"),
        ("a.feather", damaged_feather, "cannot be read"),
        ("a.arrow", lambda path: path.write_bytes(b"ARROW1\0\0" + bytes(100)), "cannot be read"),
        ("a.arrow", lambda path: parquet.write_table(ARROW, path), "is no Arrow file, it begins with b'PAR1"),
        ("a.jsonl", lambda path: path.write_text('{"size": 1, "price": 2}\n{"size": "x", "price": 2}\n'), "in row 1"),
        ("a.jsonl", lambda path: path.write_text("[1, 2]\n"), "row 0: 1, expected an object with a value for each"),
        ("a.json", lambda path: path.write_text("[]"), "is empty, expected rows"),
        ("a.json", lambda path: path.write_text('[{"size": 1, "price": 2},\n'), "cannot be read: .*line 2"),
        ("a.json", lambda path: path.write_text('{"size": [1], "price": [2, 3]}'), "columns of different rows"),
        ("a.json", lambda path: path.write_text('{\n"size": 1, "price": [2]}'), "expected a row a line, an array of"),
        ("a.jsonl", lambda path: path.write_text(""), "Empty JSON file"),
        ("a.xlsx", lambda path: path.write_bytes(b"PK\x03\x04" + bytes(50)), "save the table as CSV"),
        ("a.csv.gz", lambda path: path.write_bytes(gzip.compress(CSV.encode())[:-20]), "it is damaged or truncated"),
        ("a.csv.bz2", lambda path: path.write_bytes(bz2.compress(CSV.encode())[:-20]), "it is damaged or truncated"),
        ("a.csv", lambda path: path.mkdir(), "cannot be read: Is a directory"),
        ("a.csv", lambda path: path.write_text("size,price\n"), "is empty: expected a header line and rows"),
        ("a.csv", lambda path: path.write_text("size,price"), "is empty: expected a header line and rows"),
        ("a.csv", lambda path: path.write_bytes(MANY + b"x\n"), "line 3002: 1 fields, expected 2"),
        ("a.csv", lambda path: path.write_bytes(MANY + b"\xff,1\n"), "not UTF-8 text .* at byte"),
        ("a.csv", lambda path: path.write_bytes(MANY + b'"1,2\n'), "is not a CSV file: unexpected end"),
        ("a.csv", lambda path: path.write_bytes(MANY + b'2,"2\n'), "is not a CSV file: unexpected end"),
        ("a.csv", lambda path: path.write_bytes(MANY + b"1,x\n"), "line 3002: price is 'x', expected a finite"),
        ("a.csv", lambda path: path.write_bytes(MANY + b"1,\n1,2\n"), "line 3002: price, the target, is missing"),
        ("a.parquet", lambda path: parquet.write_table(pa.table({"size": [[1]], "price": [1]}), path), "holds list"),
        ("a.parquet", lambda path: parquet.write_table(ARROW.slice(0, 0), path), "is empty, expected rows"),
        (
            "a.parquet",
            lambda path: parquet.write_table(pa.table({"size": [1.0, None], "price": [1, 2]}), path),
            "row 1",
        ),
    ],
)
def test_a_file_that_cannot_be_read_ends_with_one_line(tmp_path, monkeypatch, name, write, message):
    monkeypatch.setattr("accelnet.data.csv_file._BLOCK_BYTES", 4096)
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        table(tmp_path / name, target="price", features=["size"], validation=0, test=0)
    assert str(caught.value).isprintable() and name in str(caught.value)
    assert str(caught.value).count("cannot be read") <= 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"size": [1, 2], "price": [1]}, "columns have lengths 1, 2, expected all the same"),
        ({"size": [[1], [2]], "price": [1, 2]}, "column 'size' holds list"),
        ({"size": [1, {}], "price": [1, 2]}, "column 'size' is no column of numbers"),
        ({"size": [1, "x"], "price": [1, 2]}, "row 1: size is 'x', expected a finite number"),
        ({"size": [2**60 + 1, 2], "price": [1, 2]}, "whole numbers beyond 2**53"),
        ({"size": [], "price": []}, "source is empty, expected rows"),
        ({1: [2]}, "source has a column 1, expected names that are text"),
        (pa.table([[1], [2], [3]], names=["size", "size", "price"]), "two columns of one name, 'size'"),
        ([{"size": 1, "price": 2}, {"price": 2}], "row 1 lacks 'size'"),
    ],
)
def test_a_table_in_memory_that_cannot_be_read_is_refused(source, message):
    with pytest.raises(UserError, match=re.escape(message)):
        table(source, target="price", validation=0, test=0)


def test_the_index_of_a_frame_of_pandas_is_left_out_and_that_is_said():
    columns = pa.table({**COLUMNS, "id": range(40), "__index_level_1__": range(40)})
    metadata = {"pandas": json.dumps({"index_columns": ["id", "__index_level_1__", {"kind": "range"}]})}
    with pytest.warns(UserWarning, match="'id', '__index_level_1__' left out"):
        data = table(columns.replace_schema_metadata(metadata), target="price")
    assert data.info["input_names"] == ("size", "colour=blue", "colour=red")
    columns = columns.drop_columns(["__index_level_1__", "id"]).replace_schema_metadata({"pandas": "no JSON"})
    assert table(columns, target="price").info == data.info


def test_only_the_columns_that_are_asked_for_are_read(tmp_path):
    (tmp_path / "a.csv").write_text("x,note,y\n" + "".join(f"{row},{'x' * (row + 1)},{row % 2}\n" for row in range(40)))
    assert table(tmp_path / "a.csv", target="y", features=["x"]).info["input_names"] == ("x",)
    with pytest.raises(UserError, match=r"note is text with 40 different values in 40 rows, such as 'x'"):
        table(tmp_path / "a.csv", target="y")


@pytest.mark.parametrize("block_bytes", [128, 1024])
def test_a_file_of_many_blocks_is_read_as_one(tmp_path, monkeypatch, block_bytes):
    # Each block may look different: numbers, text, nothing, and lines that a quote holds together.
    texts = ["", "NA", "new", "b\nc", "a"] * 40
    columns = {
        "number": ["", "1", " 2", "NA", "1e3"] * 40,
        "text": sorted(texts),
        "truth": ["", "true", "False", "TRUE", "true"] * 40,
        "time": ["", "2024-03-31", "2024-04-01", "2024-04-02 12:00", "NA"] * 40,
        "y": range(200),
    }
    lines = [",".join(f'"{one}"' for one in row) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "a.csv").write_text("\n".join([",".join(columns), *lines]))
    expected = table(tmp_path / "a.csv", target="y", missing="mean")
    monkeypatch.setattr("accelnet.data.csv_file._BLOCK_BYTES", block_bytes)
    assert_same(table(tmp_path / "a.csv", target="y", missing="mean"), expected)
    assert [column["kind"] for column in expected.fitted["columns"]] == ["number", "categories", "boolean", "time"]
    assert expected.fitted["columns"][1]["names"] == ("NA", "a", "b\nc", "new")
