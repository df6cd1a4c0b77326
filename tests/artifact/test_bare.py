"""Artifacts where jax, flatbuffers and NumPy are all that can be imported, and the command where training cannot."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import accelnet as an
from accelnet.packages import needing
from tests.artifact.conftest import IMAGES, LENGTHS, SERIES, images, kjv, series, table_run, trained

ROWS = [{"size": 4.5, "hue": "red"}, {"size": "6", "hue": "blue"}]
# Run by itself: what else is imported by mistake is an error there, wherever it is.
BARE = """
import importlib.machinery, json, sys

finder = importlib.machinery.PathFinder
find, missing = finder.find_spec, lambda name: name not in ALONE and not name.startswith("_sysconfigdata")
finder.find_spec = lambda name, *others: None if missing(name.partition(".")[0]) else find(name, *others)
ALONE = {"jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy", "flatbuffers", "accelnet", "jax_plugins"}
ALONE |= sys.stdlib_module_names

import numpy as np
import accelnet as an

found, folder = {}, sys.argv[1]
for name in ("table", "images", "series", "text"):
    model = an.load(f"{folder}/{name}.accelnet")
    raw = np.load(f"{folder}/raw.npz")
    raw = {
        "table": json.loads(sys.argv[2]), "images": raw["images"], "text": "the word was good",
        "series": {"inputs": raw["series"], "lengths": raw["lengths"]},
    }[name]
    prediction = model.predict(raw)
    values = prediction.values.items()
    found[name] = [model.computed_by, {key: one.astype(float).tolist() for key, one in values}, repr(prediction)]
errors = []
for name, file in (("table", "new.csv"), ("images", "one.png")):
    try:
        an.load(f"{folder}/{name}.accelnet").predict(f"{folder}/{file}")
    except an.UserError as error:
        errors.append(str(error))
print(json.dumps([found, errors]))

# The command predicts where what trains is not installed.
missing = {"flax", "optax", "orbax", "grain", "sklearn", "matplotlib", "tensorstore"}.__contains__
sys.argv = ["accelnet", "predict", f"{folder}/table.accelnet", f"{folder}/new.csv", "-o", f"{folder}/told.csv"]
from accelnet.cli.tool import tool
tool()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of artifacts and of what they are to predict from."""
    folder = tmp_path_factory.mktemp("bare")
    data = an.data.text(kjv(folder, "a.txt"), window=16)
    symbols = data.info["num_classes"]
    runs = {
        "table": table_run(),
        "images": trained(images(), lambda rngs: an.models.CNN((12, 12, 1), (4,), 3, norm="batch", rngs=rngs)),
        "series": trained(series(), lambda rngs: an.models.RNN(4, 8, 3, cell="gru", rngs=rngs)),
        "text": trained(
            data,
            lambda rngs: an.models.RNN(6, 8, symbols, num_symbols=symbols, output="steps", rngs=rngs),
            an.objectives.token_cross_entropy(),
        ),
    }
    for name, run in runs.items():
        run.save(folder / f"{name}.accelnet")
    np.savez(folder / "raw.npz", images=IMAGES[:5], series=SERIES[:5], lengths=LENGTHS[:5])
    (folder / "new.csv").write_text("hue,size\nred,4.5\nblue,6\n")
    Image.fromarray(IMAGES[0, ..., 0]).save(folder / "one.png")
    return folder


def test_jax_alone_predicts_from_raw_inputs_and_the_command_needs_nothing_that_trains(folder):
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(folder), json.dumps(ROWS)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found, errors = json.loads(done.stdout.splitlines()[0])
    raw = {
        "table": ROWS, "images": IMAGES[:5], "series": {"inputs": SERIES[:5], "lengths": LENGTHS[:5]},
        "text": "the word was good",
    }  # fmt: skip
    for name, (computed_by, values, shown) in found.items():
        expected = an.load(folder / f"{name}.accelnet").predict(raw[name])
        assert computed_by == "the exported program" and values.keys() == expected.values.keys(), name
        for key, one in expected.values.items():  # float32, in another order of operations
            np.testing.assert_allclose(
                values[key], one, rtol=1e-4, atol=1e-5 * np.abs(one).max(), err_msg=f"{name} {key}"
            )
        assert shown.startswith(repr(expected).partition("\n")[0])
    told = "an input of this kind needs {0}, which cannot be imported (No module named '{0}'): pip install {1}"
    assert errors == [told.format("pyarrow", "pyarrow"), told.format("PIL", "pillow")]
    ids, numbers = zip(*(line.split(",") for line in (folder / "told.csv").read_text().splitlines()), strict=True)
    assert ids == ("id", "0", "1") and numbers[0] == "prediction"
    np.testing.assert_allclose(np.float64(numbers[1:]), np.ravel(found["table"][1]["numbers"]), rtol=1e-5)


def test_what_is_missing_is_named_where_only_the_cause_tells_its_name():
    cause = ModuleNotFoundError("No module named 'flatbuffers'", name="flatbuffers")
    with (
        pytest.raises(an.UserError, match=r"the program needs flatbuffers, .*: pip install flatbuffers"),
        needing("the program"),
    ):
        raise ImportError("Please install 'flatbuffers'") from cause
