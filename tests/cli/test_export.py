"""The verb `export`, of a script and of the command `accelnet`."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from jax import lax

import accelnet as an
from accelnet.cli.tool import tool
from tests.cli.conftest import Config, small

pytest.importorskip("onnxruntime", reason="needs the extra onnx")


class Repeating(nnx.Module):
    """A module that repeats something nobody knows how often."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        y = self.layer(x)
        return y + lax.while_loop(lambda c: c.sum() < 1, lambda c: c + 1, lax.stop_gradient(y))


def repeating(config: Config) -> an.Experiment:
    return small(config).replace(model=Repeating, steps=1)


def test_the_script_exports_and_so_does_the_command_without_it(command, tmp_path, capsys):
    workdir, out = str(tmp_path / "run"), tmp_path / "dist"
    assert command(small, "train", "--workdir", workdir, "--quiet").code == 0
    done = command(
        small, "export", "--workdir", workdir, "--to", "artifact,onnx", "safetensors", "--out", str(out), "--json"
    )
    assert done.code == 0, done.err
    values = json.loads(done.out.splitlines()[-1])
    assert values == json.loads((out / "export.json").read_text())
    assert list(values["formats"]) == ["artifact", "onnx", "safetensors"] and values["step"] == 4
    assert values["rows"]["of"] == "validation" and "loss" in values["metrics"] and f"in {out}: " in done.out
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    restored = an.evaluate(small(Config()), workdir, splits=[])
    np.testing.assert_allclose(an.load(out / "model.accelnet").predict(x).outputs, restored.predict(x), atol=1e-6)
    again = ("--to", "onnx", "--docker", "--out", str(tmp_path / "again"), "--quiet")
    tool(["export", str(out / "model.accelnet"), *again])
    assert "COPY model.accelnet" in (tmp_path / "again" / "docker" / "Dockerfile").read_text()
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()
    assert "onnxruntime" in capsys.readouterr().out


def test_a_primitive_that_is_missing_is_named_with_the_users_line(command, tmp_path):
    workdir, out = str(tmp_path / "run"), tmp_path / "dist"
    assert command(repeating, "train", "--workdir", workdir, "--quiet").code == 0
    done = command(repeating, "export", "--workdir", workdir, "--to", "artifact", "onnx", "--out", str(out))
    line = Repeating.__call__.__code__.co_firstlineno + 2
    assert done.code == 2 and f"{Path(__file__).name}:{line} (" in done.err, done.err
    assert "primitive while" in done.err and "Traceback" not in done.err
    assert list(out.iterdir()) == []


def test_mistakes_are_told_before_anything_is_done(command, tmp_path):
    (tmp_path / "file").write_text("")
    for args, message in (
        (["--to", "tf"], "the format is 'tf'"),
        (["--to", "savedmodel"], "take onnx or litert"),
        (["--to", "artifact", "--out", str(tmp_path / "file")], "which is a file: expected a directory"),
        (["--to", "artifact", "--out", str(tmp_path / "out")], "holds no run"),
    ):
        done = command(small, "export", "--workdir", str(tmp_path / "run"), *args)
        assert done.code == 2 and message in done.err and "Traceback" not in done.err, done.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
