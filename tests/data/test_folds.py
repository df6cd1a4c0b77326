import re

import numpy as np
import pytest

import accelnet as an
from accelnet.data.folds import Folds


def make(num_rows=60, **settings):
    """Return data whose inputs are the numbers of the rows."""
    settings = {"num_classes": 3, "normalize": False, "test": 0.2} | settings
    return an.data.from_arrays(np.arange(float(num_rows))[:, None], np.arange(num_rows) % 3, **settings)


def rows_of(data, split):
    rows = data.splits[split]
    return data.take(np.arange(rows.start, rows.stop))


def numbers(data, split):
    return rows_of(data, split)["inputs"].ravel().astype(int).tolist()


@pytest.mark.parametrize("num_folds", [2, 5, 7, 48])
def test_every_row_is_validated_once_and_the_test_stays(num_folds):
    data = make()
    validated = []
    for fold in data.folds(num_folds, seed=3):
        validated += numbers(fold, "validation")
        assert numbers(fold, "test") == numbers(data, "test")
        assert not set(numbers(fold, "train")) & {*numbers(fold, "validation"), *numbers(data, "test")}
        assert np.array_equal(np.sort(fold.arrays["inputs"].ravel()), np.arange(60))
    assert sorted(validated) == sorted(numbers(data, "train") + numbers(data, "validation"))


def test_folds_that_differ_by_a_row_leave_another_row_out_each():
    folds = make(61, test=0, validation=0).folds(5)
    assert folds.sizes == [(48, 13), (48, 12), (48, 12), (48, 12), (48, 12)]
    everything = set(range(61))
    left = [everything - {*numbers(fold, "train"), *numbers(fold, "validation")} for fold in folds]
    assert [len(rows) for rows in left] == [0, 1, 1, 1, 1]
    assert len(set.union(*left)) > 1


def test_folds_follow_the_seed():
    data = make()
    first, again, other = (data.folds(5, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert numbers(first[1], "train") == numbers(again[1], "train")
    assert sorted(numbers(first[1], "validation")) != sorted(numbers(other[1], "validation"))


def test_stratified_folds_have_of_every_class_its_share():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    data = an.data.from_arrays(np.arange(100.0)[:, None], labels, num_classes=3, test=0)
    for stratify in ("targets", labels, np.array(["a", "b", "c"])[labels]):
        for fold in data.folds(10, stratify=stratify):
            assert np.bincount(rows_of(fold, "validation")["targets"]).tolist() == [5, 3, 2]


@pytest.mark.parametrize("given", ["patient", "array", "known"])
def test_no_group_is_in_training_and_in_validation(given):
    patients = np.random.default_rng(0).integers(0, 15, 120)
    inputs = {"x": np.arange(120.0), "patient": patients}
    data = an.data.from_arrays(
        inputs, np.arange(120) % 2, num_classes=2, test=0.2, groups=patients if given == "known" else None
    )
    groups = {"patient": "patient", "array": [f"p{one}" for one in patients], "known": None}[given]
    validated = []
    for fold in data.folds(4, groups=groups, stratify="targets"):
        own, others = (set(rows_of(fold, split)["inputs"]["patient"].tolist()) for split in ("validation", "train"))
        assert not own & others
        validated += rows_of(fold, "validation")["inputs"]["x"].tolist()
    assert len(validated) == len(set(validated)) == 120 - data.num_examples("test")


def test_an_array_is_that_of_the_rows_as_they_were_given():
    half = np.arange(60) < 30
    for fold in make().folds(2, groups=half):
        assert len({row < 30 for row in numbers(fold, "validation")}) == 1


def test_a_column_of_a_table_makes_groups(tmp_path):
    lines = [f"{row},{'abcde'[row % 5]},{row % 7}" for row in range(50)]
    (tmp_path / "a.csv").write_text("\n".join(["size,shop,price", *lines]))
    data = an.data.table(tmp_path / "a.csv", target="price", categorical=["shop"])
    shops = [index for index, name in enumerate(data.info["input_names"]) if name.startswith("shop=")]
    for fold in data.folds(5, groups="shop"):
        found = [
            {tuple(row) for row in rows_of(fold, split)["inputs"][:, shops].tolist()}
            for split in ("train", "validation")
        ]
        assert not found[0] & found[1]


def test_what_is_fitted_is_fitted_to_the_training_rows_of_each_fold():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 2)) * [1, 100] + 1.7e9
    data = an.data.from_arrays(inputs, np.arange(60) % 2, num_classes=2)
    means = []
    for fold in data.folds(3):
        prepared = np.asarray(fold.prepare(rows_of(fold, "train"))["inputs"])
        # float32 rounding.
        np.testing.assert_allclose(prepared.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(prepared.std(axis=0), 1, atol=1e-5)
        means.append(fold.fitted["mean"])
    assert len(set(means)) == 3 and data.fitted["mean"] not in means


def test_a_table_is_fitted_again_with_its_target_and_without_its_names(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{rng.normal()},{'ab'[row % 2]},{row * 10}" for row in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["size,kind,price", *lines]))
    data = an.data.table(tmp_path / "a.csv", target="price", categorical=["kind"])
    prices = data.decode(data.arrays["targets"]).ravel()
    for fold in data.folds(3):
        train = rows_of(fold, "train")
        prepared = fold.prepare(train)
        names = np.asarray(prepared["inputs"])[:, 1:]
        assert set(np.unique(names)) == {0, 1}
        np.testing.assert_allclose(np.asarray(prepared["inputs"])[:, 0].std(), 1, atol=1e-5)
        np.testing.assert_allclose(np.asarray(prepared["targets"]).mean(), 0, atol=1e-5)
        np.testing.assert_allclose(np.asarray(prepared["targets"]).std(), 1, atol=1e-5)
        # The units of the file are those of each fold's own target scale.
        decoded = fold.decode(np.asarray(prepared["targets"])).ravel()
        np.testing.assert_allclose(np.sort(decoded), np.sort(data.decode(train["targets"]).ravel()), atol=0.01)
        assert set(np.round(decoded)) <= set(np.round(prices))


def test_missing_values_of_a_fold_are_filled_as_a_table_of_its_training_rows_alone_fills_them():
    rng = np.random.default_rng(0)
    size = np.where(rng.random(60) < 0.3, np.nan, 10 * rng.normal(size=60) + np.arange(60))
    when = np.where(rng.random(60) < 0.3, np.datetime64("NaT", "D"), np.datetime64("2024-03-01") + np.arange(60))
    even = [None if rng.random() < 0.2 else bool(row % 2) for row in range(60)]
    columns = {"size": size.tolist(), "when": when.tolist(), "even": even, "price": rng.normal(size=60).tolist()}
    raw = {name: values for name, values in columns.items() if name != "price"}
    for fold in an.data.table(columns, target="price", missing="mean").folds(4):
        rows = fold.splits.origin[fold.splits["train"].start : fold.splits["train"].stop]
        part = {name: [values[row] for row in rows] for name, values in columns.items()}
        alone = an.data.table(part, target="price", missing="mean", validation=0, test=0)
        for name in ("mean", "std"):  # computed of float32
            np.testing.assert_allclose(fold.fitted[name], alone.fitted[name], rtol=1e-6)
        # Validation rows, from the arrays and as a user gives them.
        expected = alone.prepare({"inputs": alone.encode(raw)})["inputs"]
        own = rows_of(fold, "validation")["inputs"]
        held_out = fold.splits.origin[fold.splits["validation"].start : fold.splits["validation"].stop]
        for inputs in (own, fold.encode(raw)[held_out]):
            prepared = fold.prepare({"inputs": inputs})["inputs"]
            np.testing.assert_allclose(prepared, np.asarray(expected)[held_out], atol=1e-5)


def test_values_fitted_by_the_user_need_a_function_that_fits_them_again():
    arrays = {"inputs": np.arange(20.0, dtype=np.float32), "targets": np.zeros(20)}

    def prepare(batch, fitted):
        return {**batch, "inputs": batch["inputs"] - fitted["mean"]}

    def refit(data):
        train = data.splits["train"]
        return {"mean": float(data.arrays["inputs"][train.start : train.stop].mean())}

    make_data = {"arrays": arrays, "splits": {"train": range(20)}, "prepare": prepare, "fitted": {"mean": 9.5}}
    with pytest.raises(an.UserError, match="nothing says how they are fitted to other training rows: give Data a func"):
        an.data.Data("toy", **make_data).folds(4)
    for fold in an.data.Data("toy", **make_data, refit=refit).folds(4):
        assert abs(float(fold.prepare(rows_of(fold, "train"))["inputs"].mean())) < 1e-5


def test_folds_of_rows_on_a_disk_stay_there(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(2, 3, size=(40, 2)).astype(np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    data = an.data.from_arrays(mapped, np.arange(40) % 2, num_classes=2)
    for fold in data.folds(4, stratify="targets"):
        assert fold.is_lazy
        prepared = np.asarray(fold.prepare(rows_of(fold, "train"))["inputs"])
        np.testing.assert_allclose(prepared.mean(axis=0), 0, atol=1e-5)


def test_series_are_fitted_again_to_their_valid_steps(tmp_path):
    rng = np.random.default_rng(0)

    def write(name, count):
        lines = [
            f"{','.join(f'{value:.3f}' for value in rng.normal(5, 2, size=3 + row % 3))}:{'ab'[row % 2]}"
            for row in range(count)
        ]
        (tmp_path / name).write_text("@problemName toy\n@classLabel true a b\n@data\n" + "\n".join(lines) + "\n")

    write("train.ts", 24)
    write("test.ts", 4)
    data = an.data.ts(tmp_path / "train.ts", tmp_path / "test.ts")
    for fold in data.folds(3, stratify="targets"):
        train = rows_of(fold, "train")
        series, lengths = np.asarray(fold.prepare(train)["inputs"]["inputs"]), train["inputs"]["lengths"]
        valid = series[np.arange(series.shape[1])[None, :] < lengths[:, None]]
        np.testing.assert_allclose([valid.mean(), valid.std()], [0, 1], atol=1e-5)


def test_weights_and_sampling_go_with_their_rows_into_the_folds():
    weights = np.arange(60) + 0.5
    data = make(weights=weights).sampled("balanced")
    for fold in data.folds(4):
        rows = rows_of(fold, "train")
        assert np.array_equal(rows["weights"], rows["inputs"].ravel() + 0.5)
        assert len(fold.tickets) == fold.num_examples("train")
    for fold in make().sampled(np.where(np.arange(60) % 2, 1.0, 0.0)).folds(4):
        even = rows_of(fold, "train")["inputs"].ravel() % 2 == 0
        tickets = np.diff(fold.tickets.astype(np.int64), prepend=0)
        assert (tickets[even] == 0).all() and (tickets[~even] > 0).all()


def test_folds_show_their_sizes_and_are_a_sequence():
    folds = make().folds(4)
    assert isinstance(folds, Folds) and len(folds) == 4 and len(folds[1:3]) == 2
    assert repr(folds) == "4 folds of 'arrays', training + validation rows: 36 + 12, 36 + 12, 36 + 12, 36 + 12"
    assert numbers(folds[-1], "validation") == numbers(folds[3], "validation")
    with pytest.raises(IndexError):
        folds[4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_folds": 1}, "the number of folds is 1, expected a whole number of at least 2"),
        ({"num_folds": 5.0}, "the number of folds is 5.0, expected a whole number"),
        ({"num_folds": 49}, "48 rows cannot make 49 folds: ask for at most 48"),
        ({"num_folds": 20, "stratify": "targets"}, "a class of stratify has 16 rows, expected at least one for each"),
        ({"num_folds": 3, "groups": np.arange(60) % 2}, "2 groups cannot make 3 folds"),
        ({"num_folds": 3, "groups": "patient"}, "groups is 'patient', which is no array or column of data 'arrays'"),
        ({"num_folds": 3, "stratify": "target"}, "did you mean 'targets'?"),
        (
            {"num_folds": 3, "groups": np.arange(48)},
            "expected one value for each of the 60 rows that data 'arrays' was",
        ),
        ({"num_folds": 3, "seed": -1}, "seed is -1"),
        ({"num_folds": 3, "stratify": np.arange(60) / 7}, "values that are no classes"),
    ],
)
def test_folds_that_cannot_be_are_refused(settings, message):
    with pytest.raises(an.UserError, match=re.escape(message)):
        make().folds(**settings)


def test_folds_of_data_split_by_time_are_refused():
    with pytest.raises(an.UserError, match="was split by time, and folds would train on rows later"):
        make(time=np.arange(60)).folds(3)


def test_rows_of_a_source_and_those_held_out_of_it_are_in_the_order_in_which_they_were_given():
    sources = [[{"inputs": np.float32(row), "targets": row % 2} for row in rows] for rows in (range(20), range(20, 26))]
    data = an.data.from_source(sources[0], validation=sources[1], num_classes=2)
    for fold in data.folds(4, groups=np.arange(26) // 2, stratify="targets"):
        groups = [
            {int(row) // 2 for row in rows_of(fold, split)["inputs"].ravel()} for split in ("train", "validation")
        ]
        assert not groups[0] & groups[1]
        assert fold.is_lazy


def test_a_stream_is_not_divided_and_not_drawn_from():
    data = an.data.from_batches([(np.zeros((4, 1)), np.zeros(4))] * 3)
    with pytest.raises(an.UserError, match="is a stream, whose rows cannot be divided into folds"):
        data.folds(2)
    with pytest.raises(an.UserError, match="is a stream, whose rows cannot be drawn by weight"):
        data.sampled(np.ones(12))
