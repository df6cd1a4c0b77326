"""The file of an artifact: for models of users, in other processes, made anew, and damaged."""

import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.artifact.bundle import read_bundle, write_bundle
from accelnet.artifact.card import card
from accelnet.artifact.tensors import pack, unpack
from accelnet.errors import UserError
from tests.artifact.conftest import IMAGES, images, mlp_run, table_run, trained


class Own(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(144, 3, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(1, 12, decode=False, rngs=rngs)

    def __call__(self, x):
        x = x[..., 0] + self.attention(x.reshape(-1, 12, 12))
        return self.dense(x.reshape(x.shape[0], -1))


class Counting(nnx.Module):
    """A model that cannot be traced for a batch that is not known."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(144, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(x.reshape(len(x), -1))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(3)(nn.relu(x).mean(axis=(1, 2)))


def own_run(model):
    """Train a model of a user's on data with a prepare of a user's."""
    scale = 3.0
    data = an.data.Data(
        "own",
        {"inputs": IMAGES, "targets": np.arange(60) % 3},
        {"train": range(40), "validation": range(40, 60)},
        prepare=lambda batch: {**batch, "inputs": batch["inputs"] / scale / 255.0},
        info={"num_classes": 3},
    )
    return trained(data, model)


@pytest.mark.parametrize(
    ("model", "batch"),
    [(Own, None), (LinenNet(), None), (Counting, 64)],
    ids=["nnx", "Linen", "fixed batch"],
)
def test_a_model_of_the_users_needs_neither_its_class_nor_its_prepare(model, batch, tmp_path):
    run = own_run(model)
    loaded = an.load(run.save(tmp_path / "a.accelnet"))
    assert loaded.schema["batch"] == batch and "reason" in loaded.recipe
    for rows in (1, 5, 60):
        expected = np.asarray(run.predict(IMAGES[:rows]))
        found = loaded.predict(IMAGES[:rows]).outputs
        # Sums over other batches round otherwise.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert loaded.computed_by == "the exported program"


def test_a_model_that_cannot_be_exported_is_a_message(tmp_path):
    class Host(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(144, 3, rngs=rngs)

        def __call__(self, x):
            shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
            return self.dense(jax.pure_callback(np.sin, shape, x).reshape(x.shape[0], -1))

    data = an.data.Data(
        "own", {"inputs": IMAGES / 255.0, "targets": np.arange(60) % 3}, {"train": range(60)},
        prepare=lambda batch: {**batch, "inputs": jax.lax.stop_gradient(batch["inputs"])}, info={"num_classes": 3},
    )  # fmt: skip
    run = trained(data, Host)
    with pytest.raises(UserError, match=r"the model cannot be exported: .*callback"):
        run.save(tmp_path / "a.accelnet")
    assert list(tmp_path.iterdir()) == []


def test_outputs_of_several_heads_keep_their_names(tmp_path):
    class Heads(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(144, 3, rngs=rngs), nnx.Linear(144, 1, rngs=rngs)

        def __call__(self, x):
            x = x.reshape(x.shape[0], -1)
            return {"kind": self.first(x), "size": self.second(x)}

    loss = lambda outputs, batch: (outputs["kind"] ** 2).sum(axis=-1) + outputs["size"][:, 0] ** 2  # noqa: E731
    run = trained(images(), Heads, loss)
    found = an.load(run.save(tmp_path / "a.accelnet")).predict(IMAGES[:4])
    expected = run.predict(IMAGES[:4])
    assert found.kind == "other" and set(found.outputs) == {"kind", "size"}
    for name, one in expected.items():
        np.testing.assert_allclose(found.outputs[name], one, rtol=1e-5, atol=1e-6)


def test_many_devices_train_a_model_that_one_loads(tmp_path):
    experiment = mlp_run().experiment
    run = an.fit(experiment, mesh="data=2,fsdp=4", progress=False)
    loaded = an.load(run.save(tmp_path / "a.accelnet"))
    assert all(isinstance(one, np.ndarray) for one in loaded.weights.values())
    np.testing.assert_allclose(loaded.predict(IMAGES).outputs, run.predict(IMAGES), rtol=0, atol=1e-5)


def test_the_weights_are_those_of_the_run_and_average(tmp_path):
    import optax

    averaged = optax.chain(an.optim.adam(1e-1), an.optim.average_params(0.5))
    run = trained(images(), lambda rngs: an.models.MLP(144, (4,), 3, norm="batch", rngs=rngs), optimizer=averaged)
    loaded = an.load(run.save(tmp_path / "a.accelnet"))
    np.testing.assert_allclose(loaded.predict(IMAGES).outputs, run.predict(IMAGES), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_jax_and_numpy_alone_read_it_as_its_card_says(mlp, tmp_path):
    run, path = mlp
    code = card(*(json.loads(read_bundle(path)[f"{name}.json"]) for name in ("schema", "metrics", "config")))
    code = code.rpartition("```python\n")[2].partition("```")[0].replace('"model.accelnet"', repr(str(path)))
    np.save(tmp_path / "x.npy", IMAGES[:7])
    script = (
        "import sys\nsys.modules['accelnet'] = sys.modules['flax'] = None\nimport numpy as np\n"
        f"inputs = np.load({str(tmp_path / 'x.npy')!r})\n{code}\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, answers['probabilities'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = jax.nn.softmax(run.predict(IMAGES[:7]))
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5)


def test_the_same_run_gives_the_same_bytes_without_paths_of_the_machine(mlp, tmp_path):
    run, path = mlp
    again = run.save(tmp_path / "b.accelnet")
    assert again.read_bytes() == path.read_bytes()
    assert b".py" not in read_bundle(path)["program.jax"]


def test_others_read_the_weights_by_safetensors(mlp):
    safetensors = pytest.importorskip("safetensors.numpy")
    weights = safetensors.load(read_bundle(mlp[1])["weights.safetensors"])
    for name, one in an.load(mlp[1]).weights.items():
        np.testing.assert_array_equal(weights[name], one)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "uint32", "bool"])
def test_weights_of_every_type_come_back_as_they_were(dtype):
    arrays = {
        "a": np.asarray(jnp.arange(6).reshape(2, 3).astype(dtype)),
        "none": np.zeros((0, 4), dtype),
        "one": np.array(1, dtype),
    }
    found = unpack(pack(arrays))
    for name, one in arrays.items():
        assert found[name].dtype == one.dtype and found[name].shape == one.shape
        np.testing.assert_array_equal(found[name], one)


def test_it_says_what_it_is(mlp):
    model = an.load(mlp[1])
    assert repr(model).splitlines()[0].startswith("model    experiment, step 2")
    assert "uint8 [batch, 12, 12, 1]" in repr(model) and "cat, dog, owl" in repr(model)
    assert len(repr(model).splitlines()) <= 12 and model._repr_html_().startswith("<pre>")
    assert model.config["settings"] == {"width": 16}
    assert model.config["data"] == mlp[0].experiment.data.fingerprint()
    assert model.metrics["metrics"]["validation"]["loss"] == pytest.approx(mlp[0].rows[-1]["loss"])


def test_own_models_are_refreshed_from_their_arguments(mlp, tmp_path):
    path = mlp[1]
    entries = read_bundle(path)
    lost = tmp_path / "lost.accelnet"
    write_bundle(lost, {**entries, "program.jax": b"of a jax that nobody has any more"}, "1.0")
    assert an.refresh(lost, tmp_path / "new.accelnet") == "accelnet's own model, made again"
    assert read_bundle(tmp_path / "new.accelnet") == entries


def test_models_of_users_are_refreshed_from_their_program(tmp_path):
    run = own_run(Own)
    path = run.save(tmp_path / "a.accelnet")
    assert an.refresh(path) == "the program as it was"
    np.testing.assert_allclose(an.load(path).predict(IMAGES).outputs, run.predict(IMAGES), rtol=0, atol=1e-5)
    entries = read_bundle(path)
    write_bundle(path, {**entries, "program.jax": b"of a jax that nobody has any more"}, "1.0")
    with pytest.raises(UserError, match=r"cannot read the program of .*a\.accelnet, made with jax"):
        an.refresh(path)
    with pytest.raises(UserError, match=r"cannot read the program of .*a\.accelnet, made with jax"):
        an.load(path).predict(IMAGES)


def test_an_artifact_of_another_accelnet_is_computed_by_its_program(mlp, tmp_path):
    entries = read_bundle(mlp[1])
    recipe = json.loads(entries["model.json"])
    for changed in (
        {"model": "Mamba"},
        {"arguments": {**recipe["arguments"], "hidden_features": [3]}},
        {"prepare": "x"},
    ):
        path = tmp_path / "a.accelnet"
        write_bundle(path, {**entries, "model.json": json.dumps({**recipe, **changed}).encode()}, "1.0")
        model = an.load(path)
        np.testing.assert_allclose(model.predict(IMAGES).outputs, mlp[0].predict(IMAGES), rtol=0, atol=1e-5)
        assert model.computed_by == "the exported program"


def test_a_run_keeps_its_table_and_nothing_of_its_rows(tmp_path):
    run = table_run()
    path = run.save(tmp_path / "a.accelnet")
    assert path.stat().st_size < 20_000
    columns = an.load(path).schema["fitted"]["columns"]
    assert [column["name"] for column in columns] == ["size", "hue"]
