"""What a loaded model predicts from: tables, pictures, arrays and text, and what of them is refused."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import accelnet as an
from accelnet.errors import UserError
from tests.artifact.conftest import DOUBLE, IMAGES, LENGTHS, ROWS, SERIES, images, kjv, series, table_run, trained


def mlp(features, classes=3):
    return lambda rngs: an.models.MLP(features, (), classes, rngs=rngs)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a function that trains, saves and loads a model once."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def text_run():
        data = an.data.text(kjv(folder, "a.txt"), window=16)
        symbols = data.info["num_classes"]
        model = lambda rngs: an.models.RNN(6, 8, symbols, num_symbols=symbols, output="steps", rngs=rngs)  # noqa: E731
        return trained(data, model, an.objectives.token_cross_entropy())

    def pictures_run():
        for number, name in enumerate(("cat", "dog")):
            (folder / "pets" / name).mkdir(parents=True)
            for one in range(10):
                pixels = np.full((20, 30, 3), 40 * number + one, np.uint8)
                Image.fromarray(pixels).save(folder / "pets" / name / f"{one}.png")
        return trained(an.data.image_folder(folder / "pets", size=(8, 8)), mlp(192, 2))

    runs = {
        "table": table_run,
        "classes": lambda: trained(an.data.table(DOUBLE, target="left"), mlp(5, 2)),
        "images": lambda: trained(images(), mlp(144)),
        "series": lambda: trained(series(), lambda rngs: an.models.RNN(4, 4, 3, rngs=rngs)),
        "text": text_run,
        "pictures": pictures_run,
    }

    def load(name):
        if name not in made:
            made[name] = an.load(runs[name]().save(folder / f"{name}.accelnet"))
        return made[name]

    return load


def written(path, columns):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def test_a_table_comes_as_columns_rows_frames_and_files(models, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    model = models("table")
    expected = model.predict(ROWS).numbers
    reordered = {name: ROWS[name] for name in ("hue", "price", "size")}  # and one that is not needed
    rows = [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]
    parquet.write_table(pa.table(ROWS), tmp_path / "a.parquet")
    lines = [json.dumps({name: np.asarray(value).item() for name, value in row.items()}) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    plain = written(tmp_path / "a.csv", ROWS)
    for raw in (reordered, rows, pa.table(ROWS), plain, str(plain), tmp_path / "a.parquet", tmp_path / "a.jsonl"):
        np.testing.assert_allclose(model.predict(raw, batch_size=32).numbers, expected, rtol=1e-6)
    twice = model.predict([plain, plain])
    np.testing.assert_allclose(twice.numbers, np.concatenate([expected, expected]), rtol=1e-6)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"size": [1.0]}, r"has no column 'hue'"),
        ({"sise": [1.0], "hue": ["red"]}, r"has no column 'size'; did you mean 'sise'\?"),
        ({"size": [1.0, 2.0], "hue": ["red", "pink"]}, r"a\.csv, line 3: hue is 'pink', expected one of 'blue'"),
        ({"size": ["big"], "hue": ["red"]}, r"a\.csv, line 2: size is 'big'"),
        ({"size": ["", 1], "hue": ["red", "red"]}, r"a\.csv, line 2: size is missing"),
        ({"size": ["nan", 1], "hue": ["red", "red"]}, r"a\.csv, line 2: size is missing"),
        ({"size": ["inf", 1], "hue": ["red", "red"]}, r"a\.csv, line 2: size is inf"),
        ({"size": [], "hue": []}, r"a\.csv is empty"),
    ],
)
def test_a_table_that_does_not_fit_is_one_message(models, tmp_path, columns, message):
    path = written(tmp_path / "a.csv", columns)
    with pytest.raises(UserError, match=message):
        models("table").predict(path)


def test_rows_that_cannot_be_read_are_skipped_when_asked_for(models, tmp_path):
    model = models("table")
    sizes, hues = list(ROWS["size"]), list(ROWS["hue"])
    hues[7], sizes[70] = "pink", ""
    path = written(tmp_path / "a.csv", {"size": sizes, "hue": hues})
    found = model.predict(path, skip_bad=True, batch_size=32)
    assert sorted(found.skipped) == [7, 70] and len(found) == 78
    assert "line 9" in found.skipped[7] and "line 72" in found.skipped[70]
    kept = np.delete(np.arange(80), [7, 70])
    assert list(found.ids) == kept.tolist()
    np.testing.assert_allclose(found.numbers, model.predict(ROWS).numbers[kept], rtol=1e-6)
    assert "2 rows skipped" in repr(found)
    with pytest.raises(UserError, match=r"none of the 1 rows can be read; the first: .*'pink'"):
        model.predict([{"size": 1.0, "hue": "pink"}], skip_bad=True)


@pytest.mark.parametrize("form", ["csv", "columns", "rows"])
def test_text_among_numbers_makes_its_rows_bad_and_no_others(models, tmp_path, form):
    model = models("table")
    columns = {"size": [str(one) for one in ROWS["size"]], "hue": ROWS["hue"]}
    columns["size"][5], columns["size"][40] = "wide", "7,5"
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    raw = {"csv": written(tmp_path / "a.csv", columns), "columns": columns, "rows": rows}[form]
    with pytest.raises(UserError, match=r"size is 'wide', expected a finite number"):
        model.predict(raw)
    found = model.predict(raw, skip_bad=True, batch_size=16)
    assert list(found.skipped) == [5, 40] and "'7,5'" in found.skipped[40]
    kept = np.delete(np.arange(80), [5, 40])
    np.testing.assert_allclose(found.numbers, model.predict(ROWS).numbers[kept], rtol=1e-6)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_long_files_are_read_in_parts_and_their_predictions_written_in_parts(models, tmp_path, monkeypatch, suffix):
    import pyarrow as pa
    from pyarrow import parquet

    from accelnet.artifact import prediction, raw_rows
    from accelnet.data import csv_file, table_source

    model, columns = models("table"), {"size": list(ROWS["size"]), "hue": list(ROWS["hue"])}
    whole, path, counts = model.predict(ROWS), written(tmp_path / "a.csv", columns), []
    if suffix == "parquet":
        path = tmp_path / "a.parquet"
        parquet.write_table(pa.table(columns), path)
    monkeypatch.setattr(csv_file, "_BLOCK_BYTES", 256)
    monkeypatch.setattr(table_source, "_PART_ROWS", 30)
    monkeypatch.setattr(prediction, "_GROUP_ROWS", 16)
    lenient = raw_rows._lenient
    monkeypatch.setattr(raw_rows, "_lenient", lambda table: counts.append(table.num_rows) or lenient(table))
    found = model.predict(path, batch_size=8)
    assert len(counts) > 1 and sum(counts) == 80 and max(counts) < 80
    assert list(found.ids) == list(range(80))
    np.testing.assert_allclose(found.numbers, whole.numbers, rtol=1e-6)
    parts = model.predictions(path, batch_size=8)
    prediction.write_predictions(parts, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert (
        table["id"].to_pylist() == list(range(80)) and parquet.ParquetFile(tmp_path / "out.parquet").num_row_groups > 1
    )
    np.testing.assert_allclose(table["prediction"].to_numpy(), whole.numbers[:, 0], rtol=1e-6)
    columns["hue"][79] = "pink"
    parts = model.predictions(written(tmp_path / "b.csv", columns), batch_size=8)
    with pytest.raises(UserError, match=r"b\.csv, line 81: hue is 'pink'"):
        prediction.write_predictions(parts, tmp_path / "bad.csv")
    assert not list(tmp_path.glob("*bad.csv*"))


def test_pictures_come_as_files_folders_and_images(models, tmp_path):
    model = models("pictures")
    path, pixels = tmp_path / "in" / "deep" / "a.png", np.full((16, 16, 3), 7, np.uint8)
    path.parent.mkdir(parents=True)
    Image.fromarray(pixels).save(path)
    expected = model.predict([path]).probabilities
    for raw in (path, str(path), tmp_path / "in", [Image.open(path)], Image.open(path), pixels, [pixels]):
        np.testing.assert_array_equal(model.predict(raw).probabilities, expected)
    assert list(model.predict([path, path]).ids) == [str(path)] * 2
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"in/b\.png is no picture that can be read"):
        model.predict(tmp_path / "in")
    found = model.predict(tmp_path / "in", skip_bad=True)
    assert list(found.ids) == [str(path)] and "b.png is no picture" in found.skipped[str(tmp_path / "in" / "b.png")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no picture"):
        model.predict(tmp_path / "empty")


def test_arrays_of_bytes_come_as_arrays_files_of_arrays_and_pictures(models, tmp_path):
    model = models("images")
    expected = model.predict(IMAGES).outputs
    np.save(tmp_path / "a.npy", IMAGES)
    np.savez(tmp_path / "a.npz", inputs=IMAGES, targets=np.zeros(3))
    for raw in (IMAGES.tolist(), tmp_path / "a.npy", str(tmp_path / "a.npz"), IMAGES.astype(float)):
        np.testing.assert_allclose(model.predict(raw, batch_size=7).outputs, expected, rtol=1e-5, atol=1e-5)
    Image.fromarray(IMAGES[3, :, :, 0]).save(tmp_path / "a.png")
    np.testing.assert_allclose(model.predict(tmp_path / "a.png").outputs, expected[3:4], rtol=1e-5, atol=1e-5)


def test_arrays_that_do_not_fit_are_one_message(models, tmp_path):
    model = models("images")
    np.savez(tmp_path / "a.npz", a=IMAGES, b=IMAGES)
    (tmp_path / "a.npy").write_bytes(b"damaged")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    for raw, message in (
        (IMAGES[:, :5], r"^inputs have shape \[60, 5, 12, 1\], expected \['batch', 12, 12, 1\]"),
        (IMAGES[0, :, :, 0], "have shape .* rows"),
        (IMAGES[:0], "inputs are empty"),
        ([], "inputs are empty"),
        (IMAGES + 0.5, "^inputs .* whole numbers that uint8 can hold"),
        (np.full((2, 12, 12, 1), "a"), "^inputs have dtype <U1"),
        ("not there.npy", "not there.npy cannot be read: No such file"),
        (tmp_path / "a.npy", r"a\.npy is no file of arrays"),
        (tmp_path / "a.npz", r"a\.npz holds 'a', 'b', expected 'inputs' among them"),
        (tmp_path / "a.png", r"a\.png has 9 x 9 pixels"),
        ([tmp_path / "a.npy", tmp_path / "a.npz"], "inputs are 2 files, .*, expected one"),
        (3, "expected arrays"),
    ):
        with pytest.raises(UserError, match=message):
            model.predict(raw)


def test_the_row_with_a_number_that_is_none_is_named(models):
    wrong = SERIES.copy()
    wrong[41, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"row 41: .*NaN"):
        models("series").predict({"inputs": wrong, "lengths": LENGTHS})
    found = models("series").predict({"inputs": wrong, "lengths": LENGTHS}, skip_bad=True)
    assert list(found.skipped) == [41] and len(found) == 59


def test_inputs_by_name_must_be_all_there(models):
    for raw, message in (
        ({"inputs": SERIES}, "inputs have 'inputs', expected a dict with 'inputs', 'lengths'"),
        (SERIES, "expected a dict with 'inputs', 'lengths'"),
        ({"inputs": SERIES, "lengths": LENGTHS[:5]}, r"inputs have shapes \[60, 9, 4\], \[5\]"),
    ):
        with pytest.raises(UserError, match=message):
            models("series").predict(raw)


def test_text_comes_as_strings_and_as_a_file(models, tmp_path):
    model, text = models("text"), "a word was there"
    expected = model.predict(text)
    (tmp_path / "b.txt").write_text(text)
    for raw in ([text], tmp_path / "b.txt"):
        np.testing.assert_array_equal(model.predict(raw).outputs, expected.outputs)
    assert len(expected.labels[0]) == len(text)
    with pytest.raises(UserError, match="characters '!' are not in the vocabulary"):
        model.predict("a word!")
    with pytest.raises(UserError, match="texts have 6, 1 symbols, expected all the same"):
        model.predict(["a word", "a"])
    with pytest.raises(UserError, match="inputs have different numbers of steps"):
        model.predict(["a word", "a"], skip_bad=True)


def test_predictions_are_written_as_tables_and_arrays(models, tmp_path):
    from pyarrow import parquet

    found = models("classes").predict(DOUBLE)
    rows = list(csv.DictReader(found.write(tmp_path / "a.csv", probabilities=True).open()))
    assert [row["label"] for row in rows] == found.labels.tolist()
    # As text, float32 comes back as it was.
    shares = np.array([[row["probability of no"], row["probability of yes"]] for row in rows], np.float32)
    np.testing.assert_array_equal(shares, found.probabilities)
    table = parquet.read_table(found.write(tmp_path / "a.parquet"))
    assert table.column_names == ["id", "label", "probability"]
    assert table["label"].to_pylist() == found.labels.tolist()
    with np.load(found.write(tmp_path / "a.npz"), allow_pickle=False) as stored:
        assert stored["label"].tolist() == found.labels.tolist()
        np.testing.assert_array_equal(stored["probabilities"], found.probabilities)
        assert stored["id"].tolist() == list(range(80))
    text = models("text").predict("a word was there")
    assert next(csv.DictReader(text.write(tmp_path / "b.csv").open()))["text"] == text.labels[0]
    with pytest.raises(UserError, match=r"ends in '\.xlsx', expected '\.csv', '\.parquet', '\.npz'"):
        found.write(tmp_path / "a.xlsx")


def test_programs_are_compiled_once_for_all_batches(models):
    model = an.load(models("images").path)
    model.predict(IMAGES, batch_size=16)
    assert model._call[0].num_programs == 1
