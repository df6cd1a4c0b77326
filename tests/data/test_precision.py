import numpy as np
import pytest

from accelnet.data import Data, from_arrays, table
from accelnet.data.precision import offsets_of
from accelnet.errors import UserError

RNG = np.random.default_rng(0)


def distinct(data, column=0):
    batch = data.prepare(data.take(np.arange(data.num_rows)))
    return len(np.unique(np.asarray(batch["inputs"])[:, column]))


def test_unix_times_within_an_hour_stay_apart_in_a_table(tmp_path):
    times = 1.7e9 + np.sort(RNG.uniform(0, 3600, 1000)).round(3)
    lines = [f"{time:.3f},{index}" for index, time in enumerate(times)]
    (tmp_path / "a.csv").write_text("t,y\n" + "\n".join(lines))
    data = table(tmp_path / "a.csv", target="y")
    assert distinct(data) == len(np.unique(times)) == 1000
    batch = data.prepare(data.take(np.arange(data.num_examples())))
    # float32 rounding.
    np.testing.assert_allclose([batch["inputs"].mean(), batch["inputs"].std()], [0, 1], atol=1e-6)
    raw = data.raw(np.arange(1000))["inputs"][:, 0]
    # An hour in float32 is exact to 1e-4 seconds.
    np.testing.assert_allclose(np.sort(raw), times, rtol=0, atol=2e-4)
    got = data.prepare({"inputs": data.encode({"t": times[:3]})})["inputs"][:, 0]
    train = raw[: data.num_examples()]
    np.testing.assert_allclose(got, (times[:3] - train.mean()) / train.std(), atol=1e-6)


@pytest.mark.parametrize("shape", [(1000,), (1000, 1), (500, 2, 1)])
def test_milliseconds_within_a_minute_stay_apart_in_arrays(shape):
    times = (1.7e12 + np.arange(1000) * 60.0).reshape(shape)
    data = from_arrays(times, np.zeros(len(times)))
    stored = data.arrays["inputs"]
    assert stored.dtype == np.float32
    assert len(np.unique(stored)) == 1000
    assert np.array_equal(np.sort(data.raw(np.arange(len(times)))["inputs"], axis=None), times.ravel())
    assert np.array_equal(data.encode(times), (times - data.coding["inputs"]["offset"][0]).astype(np.float32))


def test_a_column_with_an_outlier_keeps_its_bulk_apart():
    times = 1.7e9 + np.arange(1000.0)
    times[7] = 0
    assert len(np.unique(from_arrays(times[:, None], np.zeros(1000)).arrays["inputs"])) == 1000


@pytest.mark.parametrize(
    "values",
    [
        RNG.normal(5, 3, (500, 3)),
        RNG.lognormal(0, 5, (500, 3)),
        np.arange(1990.0, 2020.0)[:, None],
        np.full((50, 2), 14.62),
        # The same number by two ways: what differs is rounding.
        np.array([0.3, 0.1 + 0.2, 0.7, 0.1 * 7])[:, None],
        RNG.normal(size=(5, 1)).astype(np.float32) + 1e6,
    ],
)
def test_ordinary_values_have_no_offset(values):
    assert not offsets_of(values, "inputs").any()
    data = from_arrays(values, np.zeros(len(values)), validation=0, test=0)
    assert data.coding == {}
    assert sorted(data.arrays["inputs"].ravel().tolist()) == sorted(values.astype(np.float32).ravel().tolist())


def test_only_the_column_that_needs_one_has_an_offset():
    values = np.stack([1.7e9 + np.arange(100.0), RNG.normal(size=100)], axis=1)
    first, second = offsets_of(values, "inputs")
    assert 1.7e9 <= first <= 1.7e9 + 100
    assert second == 0


@pytest.mark.parametrize(
    ("inputs", "targets", "kwargs"),
    [
        # Two times, each with its minute in milliseconds: no offset serves both.
        (np.where(np.arange(40) % 2, 1.2e12, 1.7e12)[:, None] + np.arange(40.0)[:, None], np.zeros(40), {}),
        (np.arange(40.0)[:, None] * 1e-300, np.zeros(40), {}),
        (1.7e12 + np.arange(40.0)[:, None], np.zeros(40), {"normalize": False}),
        ({"x": 1.7e12 + np.arange(40.0)}, np.zeros(40), {}),
        (np.zeros((40, 1)), 1.7e12 + np.arange(40.0), {}),
    ],
)
def test_values_that_float32_cannot_tell_apart_are_refused(inputs, targets, kwargs):
    with pytest.raises(UserError, match="float32 cannot tell"):
        from_arrays(inputs, targets, **kwargs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (1.7e12 + np.arange(10.0), "float32 cannot tell"),
        (np.full(10, 1e300), "float32 cannot hold"),
        (np.full(10, 2**40), "int32 cannot hold"),
        (np.full(10, 2**33, np.uint64), "uint32 cannot hold"),
    ],
)
def test_arrays_that_the_device_would_change_are_refused(inputs, message):
    with pytest.raises(UserError, match=message):
        Data("toy", {"inputs": inputs, "targets": np.zeros(10)}, {"train": range(10)})


def test_a_target_far_from_zero_is_centred_in_float64(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{i % 7},{1.7e9 + i}\n" for i in range(60)))
    data = table(tmp_path / "a.csv", target="y")
    assert sorted(data.decode(data.arrays["targets"]).round(3).ravel().tolist()) == [1.7e9 + i for i in range(60)]
