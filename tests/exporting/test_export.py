"""Files for other runtimes: each is checked in its own, and kept only if it gives what the model gives."""

import hashlib
import json
import resource
import sys

import jax
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.exporting import formats
from accelnet.exporting.difference import compare
from accelnet.exporting.example_rows import example_rows, with_steps
from accelnet.exporting.onnx.rules import RULES, made
from tests.artifact.conftest import IMAGES, LENGTHS, SERIES, images, series, table_run, trained

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

# Sums of float32 in another order.
ROUNDING = 1e-5


def reader():
    return trained(series(), lambda rngs: an.models.RNN(4, 6, 3, cell="gru", bidirectional=True, rngs=rngs))


def activated(activation):
    return trained(images(), lambda rngs: an.models.MLP(144, (4,), 3, activation=activation, rngs=rngs))


class Own(nnx.Module):
    """A module that is not accelnet's."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(144, 3, rngs=rngs)

    def __call__(self, x):
        return self.layer(x.reshape(x.shape[0], -1))


@pytest.mark.slow  # a process of its own compiles the StableHLO program for three sizes
def test_every_format_is_checked_in_its_own_runtime_and_recorded(tmp_path):
    run = reader()
    found = an.export(run, to="artifact, onnx stablehlo,safetensors", out=tmp_path / "dist")
    assert json.loads((tmp_path / "dist" / "export.json").read_text()) == found.values
    assert found.values["rows"] == {"of": "validation", "count": 6, "batch_size": 6}
    assert list(found.values["formats"]) == ["artifact", "onnx", "stablehlo", "safetensors"]
    for name, form in found.values["formats"].items():
        assert form["largest"] < ROUNDING and form["batch"] == form["steps"] == "any"
        assert set(form["differences"]) == {"outputs", "probabilities", "classes"}
        assert set(form["metrics"]) == set(run.experiment.objective.metrics)
        assert [one["batch_size"] for one in form["latency"]] == ([] if name == "safetensors" else [1, 6])
        for file, told in form["files"].items():
            content = (tmp_path / "dist" / file).read_bytes()
            assert told == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text = (tmp_path / "dist" / "model.mlir").read_text()
    told = json.loads((tmp_path / "dist" / "model.mlir.json").read_text())
    assert all(f"%arg{number}: tensor" in text for number in range(len(told["arguments"])))
    assert {one["name"]: one["shape"] for one in told["arguments"]}["inputs.inputs"] == ["batch", "steps", 4]
    from safetensors.numpy import load_file

    weights, shapes = load_file(tmp_path / "dist" / "model.safetensors"), "model.safetensors.json"
    assert {name: list(one.shape) for name, one in weights.items()} == {
        name: one["shape"] for name, one in json.loads((tmp_path / "dist" / shapes).read_text()).items()
    }


def test_an_onnx_file_takes_raw_rows_and_tells_what_its_answers_mean(tmp_path):
    run = activated(jax.nn.relu)
    found = an.export(run, to="onnx", out=tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    names = json.loads(told["class_names"])
    assert names == ["cat", "dog", "owl"] and json.loads(told["schema"])["inputs"]["dtype"] == "uint8"
    (classes,) = session.run(["classes"], {"inputs": IMAGES})
    expected = np.asarray(run.predict(IMAGES)).argmax(axis=1)
    assert [names[one] for one in classes] == run.experiment.data.decode(expected).tolist()
    data = run.experiment.data
    batch = data.take(np.arange(60)[data.splits["validation"].start : data.splits["validation"].stop])
    measured = np.mean(np.asarray(run.predict(batch["inputs"])).argmax(axis=1) == batch["targets"])
    assert found.values["formats"]["onnx"]["metrics"]["accuracy"] == pytest.approx([measured, measured])


def test_an_artifact_is_exported_without_its_script(tmp_path):
    path = table_run().save(tmp_path / "model.accelnet")
    found = an.export(path, to=("onnx", "safetensors"), out=tmp_path / "dist")
    assert found.values["rows"]["of"] == "random rows" and found.values["metrics"] == {}
    assert max(form["largest"] for form in found.values["formats"].values()) < ROUNDING
    own = trained(images(), Own)
    with pytest.raises(an.UserError, match=r"holds a program and not its layers .* with the script"):
        an.export(own.save(tmp_path / "own.accelnet"), to="onnx", out=tmp_path / "dist")
    assert an.export(own, to="onnx", out=tmp_path / "own").values["formats"]["onnx"]["largest"] < ROUNDING


def wrong(graph, step, value):
    """A rule that writes another function."""
    return made(graph.add("Softsign", graph.tensor(value)), step.out_avals[0])


def test_what_differs_is_named_by_its_layer_and_what_was_there_stays(tmp_path, monkeypatch):
    run = activated(jax.nn.tanh)
    an.export(run, to="onnx safetensors", out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setitem(RULES, "tanh", wrong)
    with pytest.raises(
        an.UserError, match=r"onnx file differs .* outputs by .* the first to differ is the layer MLP.*tanh"
    ):
        an.export(run, to="safetensors onnx", out=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    pack = formats.pack
    monkeypatch.setattr(formats, "pack", lambda weights: pack({name: one * 2 for name, one in weights.items()}))
    with pytest.raises(an.UserError, match=r"is not what was written into model\.safetensors"):
        an.export(run, to="safetensors", out=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    assert an.export(run, to="artifact", out=tmp_path).values["earlier"] == [
        "model.onnx", "model.safetensors", "model.safetensors.json",
    ]  # fmt: skip


@pytest.mark.slow  # processes of their own
def test_a_layer_that_differs_in_stablehlo_is_named(tmp_path, monkeypatch):
    class Wrong(formats.FreshProcess):
        """A runtime that adds one to the second result, pixels less their mean, and to the outputs."""

        def __call__(self, inputs):
            return {name: one + (name in ("outputs", "result1")) for name, one in super().__call__(inputs).items()}

    monkeypatch.setattr(formats, "FreshProcess", Wrong)
    with pytest.raises(an.UserError, match=r"stablehlo file differs .* outputs by .* first to differ is sub of"):
        an.export(activated(jax.nn.tanh), to="stablehlo", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_nothing(tmp_path):
    path = table_run().save(tmp_path / "model.accelnet")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(an.UserError, match=r"cannot write .*model.safetensors: File too large"):
            an.export(path, to="safetensors", out=tmp_path / "dist")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "dist").iterdir()) == []


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("onx", "the format is 'onx', expected one of .* did you mean 'onnx'"),
        ("savedmodel", r"TensorFlow 2\.21 reads .* take onnx or litert"),
        ("saved_model", r"TensorFlow 2\.21 reads .* take onnx or litert"),
        (" ,", "no format is given"),
        (3, "to is 3, expected"),
    ],
)
def test_a_format_that_is_not_there_is_refused_first(to, message, tmp_path):
    with pytest.raises(an.UserError, match=message):
        an.export("/not/there.accelnet", to=to, out=tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(an.UserError, match=r'pip install "accelnet\[onnx\]"'):
        an.export("/not/there.accelnet", to="onnx", out=tmp_path / "dist")


def test_a_file_where_the_directory_should_be_is_refused(tmp_path):
    (tmp_path / "dist").write_text("")
    with pytest.raises(an.UserError, match="which is a file: expected a directory"):
        an.export("/not/there.accelnet", out=tmp_path / "dist")


@pytest.mark.slow  # TensorFlow
def test_a_litert_file_takes_one_row_at_a_time(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    form = an.export(reader(), to="litert", out=tmp_path).values["formats"]["litert"]
    assert form["largest"] < ROUNDING and form["batch"] == 1 and form["steps"] == 9


def test_classes_may_differ_only_where_outputs_are_equal():
    outputs = np.array([[1.0, 1.0 + 1e-6, 0.0], [3.0, 0.0, 1.0]])
    expected = {"outputs": outputs, "classes": np.array([1, 0])}
    tie = compare(expected, {"outputs": outputs, "classes": np.array([0, 0])})
    assert tie.largest == 0 and tie.changed == {"classes": 1}
    assert compare(expected, {"outputs": outputs, "classes": np.array([1, 2])}).worst == "classes"
    assert compare({"found": np.array([1, 2])}, {"found": np.array([1, 3])}).largest == np.inf


def test_example_rows_are_such_as_a_model_takes(tmp_path):
    schema = an.load(reader().save(tmp_path / "a.accelnet")).schema
    rows = example_rows(schema, 5)
    assert rows["inputs"].shape == (5, 8, 4) and rows["lengths"].min() >= 1 and rows["lengths"].max() <= 8
    fewer = with_steps(rows, schema, 3)
    assert fewer["inputs"].shape == (5, 3, 4) and fewer["lengths"].max() == 3
    assert SERIES.shape[1] > 3 and LENGTHS.max() > 3
