"""What is refused: sequences without steps, lengths that are none, and artifacts whose entries do not go together."""

import json

import numpy as np
import pytest

import accelnet as an
from accelnet.artifact import model as model_module
from accelnet.artifact.bundle import read_bundle, write_bundle
from accelnet.artifact.schema import encode
from accelnet.artifact.tensors import pack
from tests.artifact.conftest import table_run

SERIES = {
    "inputs": {
        "inputs": {"dtype": "float32", "shape": ["batch", "steps", 4]},
        "lengths": {"dtype": "int32", "shape": ["batch"]},
    },
    "fitted": {}, "coding": {}, "tokenizer": None,
}  # fmt: skip
TOKENS = {
    "inputs": {"dtype": "uint8", "shape": ["batch", "steps"]}, "fitted": {}, "coding": {}, "tokenizer": "bytes",
}  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "lengths", "message"),
    [
        (5, [9, 5], r"lengths are \[9, 5\], expected 1 to 5"),
        (5, [0, 5], r"lengths are \[0, 5\], expected 1 to 5"),
        (5, [-1, 5], r"lengths are \[-1, 5\], expected 1 to 5"),
        (0, [0, 0], "inputs have 0 steps, expected one number of at least 1"),
    ],
)
def test_lengths_that_are_none_are_refused_before_a_model_makes_something_of_them(steps, lengths, message):
    with pytest.raises(an.UserError, match=message):
        encode({"inputs": np.zeros((2, steps, 4)), "lengths": np.array(lengths)}, SERIES)
    good = encode({"inputs": np.zeros((2, 5, 4)), "lengths": np.array([1, 5])}, SERIES)
    assert good["lengths"].tolist() == [1, 5]


def test_text_without_a_symbol_is_refused():
    with pytest.raises(an.UserError, match="inputs have 0 steps"):
        encode("", TOKENS)


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    """Return the entries of the artifact of a table."""
    return read_bundle(table_run().save(tmp_path_factory.mktemp("table") / "a.accelnet"))


def forged(entries, path, name, **changes):
    """Write an artifact whose checksums are right, and one of whose entries is changed."""
    write_bundle(path, {**entries, name: json.dumps({**json.loads(entries[name]), **changes}).encode()}, "0.1.0")
    return path


COLUMN = {"name": "size", "kind": "number", "names": []}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fitted": {"columns": 5}}, "fitted.columns is 5, expected a list"),
        ({"fitted": {"columns": [{"name": "size"}]}}, r"fitted.columns\[0\].kind is missing"),
        (
            {"fitted": {"columns": [COLUMN | {"kind": "sound"}]}},
            "the kinds 'numbers', 'sound', which are not all known",
        ),
        ({"fitted": {"columns": [COLUMN], "class_names": [1]}}, r"fitted.class_names\[0\] is 1, expected text"),
        ({"kind": "smells"}, "the kinds 'smells', 'number', 'categories', which are not all known"),
        ({"batch": 0}, "schema.json has batch 0, expected at least 1"),
    ],
)
def test_a_schema_that_says_what_there_is_not_is_refused_by_load(entries, tmp_path, changes, message):
    path = forged(entries, tmp_path / "a.accelnet", "schema.json", **changes)
    with pytest.raises(an.UserError, match=f"a.accelnet is no artifact of a model: .*{message}"):
        an.load(path)


def test_weights_that_are_not_those_of_the_program_are_refused(entries, tmp_path, monkeypatch):
    path = tmp_path / "a.accelnet"
    write_bundle(path, {**entries, "weights.safetensors": pack({"params.b": np.zeros(2)})}, "0.1.0")
    for kernels in (True, False):
        monkeypatch.setattr(model_module.library, "load", lambda kernels=kernels: kernels)
        with pytest.raises(an.UserError, match=r"a\.accelnet has a program whose weights are not those that it holds"):
            an.load(path).predict([{"size": 4.5, "hue": "red"}])


def test_a_precision_of_a_later_version_leaves_the_exported_program(entries, tmp_path):
    model = an.load(forged(entries, tmp_path / "a.accelnet", "model.json", precision="float8"))
    assert model.computed_by == model_module.XLA
    assert np.isfinite(model.predict([{"size": 4.5, "hue": "red"}]).numbers).all()
