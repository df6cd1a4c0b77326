"""Trainings that died and go on to the same bits, from each kind of data. Of pictures, see test_picture_runs.py too."""

import numpy as np
import pytest
from PIL import Image

import accelnet as an
from tests.data.conftest import die_at, experiment, same

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 3)).astype(np.float32), np.arange(60) % 3
SYMBOLS = RNG.integers(0, 9, 60 * 6 + 1).astype(np.uint16)


def rows():
    return an.data.from_source(list(zip(X, Y.tolist(), strict=True)), num_classes=3)


def memory_map(folder):
    np.save(folder / "x.npy", X)
    return an.data.from_arrays(np.load(folder / "x.npy", mmap_mode="r"), Y, num_classes=3)


def table(folder):
    lines = [
        f"{a},{'' if row % 7 == 0 else b},{c},{'xyz'[y]}" for row, ((a, b, c), y) in enumerate(zip(X, Y, strict=True))
    ]
    (folder / "a.csv").write_text("\n".join(["a,b,c,kind", *lines]))
    return an.data.table(folder / "a.csv", target="kind", missing="mean")


def tokens(folder):
    SYMBOLS.tofile(folder / "a.bin")
    return an.data.tokens(folder / "a.bin", dtype="uint16", window=6)


def pictures(folder):
    for row, label in enumerate(Y.tolist()):
        path = folder / "photos" / "xyz"[label] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(row).integers(0, 255, (4, 4, 3), np.uint8)).save(path)
    return an.data.image_folder(folder / "photos")


KINDS = {
    "memory map": (memory_map, {}),
    "source": (lambda folder: rows(), {}),
    "drawn source": (lambda folder: rows().sampled("balanced"), {}),
    "table": (table, {"model": lambda rngs: an.models.MLP(4, (8,), 3, rngs=rngs)}),
    "tokens": (
        tokens,
        {
            "model": lambda rngs: an.models.RNN(4, 4, 9, num_symbols=9, cell="gru", output="steps", rngs=rngs),
            "objective": an.objectives.token_cross_entropy(),
        },
    ),
    "pictures": (pictures, {"model": lambda rngs: an.models.MLP(48, (8,), 3, rngs=rngs)}),
}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_died_twice_goes_on_to_the_same_bits(kind, tmp_path):
    make, settings = KINDS[kind]
    settings = {"save_every": an.Every(steps=2), "epochs": 3, **settings}
    made = experiment(make(tmp_path), **settings)
    whole = an.fit(made, progress=False)
    workdir = tmp_path / "run"
    # At random in the first and in the last epoch, of 6 steps each.
    for step in np.random.default_rng([ord(letter) for letter in kind]).integers([3, 13], [7, 18]):
        with pytest.raises(RuntimeError, match="died"):
            an.fit(made, workdir=workdir, resume=True, events=[die_at(step)], progress=False)
    again = an.fit(experiment(make(tmp_path), **settings), workdir=workdir, resume=True, progress=False)
    assert whole.step == 18 and same(whole, again) and again.metrics == whole.metrics
