"""Summaries: numbers that add up, shared modules, Flax's transformations, Linen, nothing left behind."""

import json

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from accelnet.errors import UserError
from accelnet.models.rnn import RNN
from accelnet.models.summary import summary

IMAGES = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)


class Net(nnx.Module):
    def __init__(self, *, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.conv(x)))).mean(axis=(1, 2))
        return self.dense(self.dense(x))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.Conv(8, (3, 3), name="conv")(x)
        x = linen.BatchNorm(use_running_average=not train, name="norm")(x)
        x = linen.Dropout(0.5, deterministic=not train)(linen.relu(x)).mean(axis=(1, 2))
        dense = linen.Dense(8, name="dense")
        return dense(dense(x))


def by_path(result):
    return {layer.path: layer for layer in result.layers}


def assert_adds_up(result):
    for name in ("parameters", "state", "bytes", "flops"):
        assert sum(getattr(layer, name) for layer in result.layers) == getattr(result, name) >= 0


@pytest.mark.parametrize("model", [Net, Net(rngs=nnx.Rngs(0)), LinenNet()], ids=["builder", "nnx", "linen"])
def test_every_layer_has_its_shape_parameters_and_flops(model):
    result = summary(model, IMAGES)
    layers = by_path(result)
    conv, norm, dense = layers["conv"], layers["norm"], layers["dense"]
    assert conv.output == (((4, 8, 8, 8), "float32"),)
    assert (conv.type, conv.parameters, conv.bytes) == ("Conv", 224, 896)
    assert conv.flops == 2 * 4 * 64 * 8 * 27 + 4 * 64 * 8  # the product and the bias
    assert (norm.parameters, norm.state, norm.bytes) == (16, 16, 128)
    # Used twice: parameters once, FLOPs twice.
    assert (dense.calls, dense.parameters, dense.flops) == (2, 72, 2 * (2 * 4 * 8 * 8 + 4 * 8))
    assert layers[""].output == (((4, 8), "float32"),)
    assert (result.parameters, result.state) == (224 + 16 + 72, 16)
    assert_adds_up(result)


def test_layers_come_in_the_order_of_their_calls():
    assert [layer.path for layer in summary(Net, IMAGES).layers] == ["", "conv", "norm", "dropout", "dense"]


def test_keyword_inputs_and_a_shared_recurrent_stack():
    def build(rngs):
        return RNN(16, 16, 63, num_symbols=63, num_layers=3, shared=True, tie_embedding=True, rngs=rngs)

    tokens = {"inputs": jax.ShapeDtypeStruct((4, 20), jnp.int32), "lengths": jnp.array([20, 3, 4, 5])}
    result = summary(build, tokens)
    layer = by_path(result)["layers.0.forward"]
    assert (layer.calls, layer.parameters) == (3, 64 * (16 + 16 + 1))
    assert layer.flops > 3 * 2 * 4 * 20 * 64 * 32
    assert by_path(result)["embedding"].parameters == 63 * 16
    assert_adds_up(result)


class Transformed(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.stack = nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs))(rngs.split(3))

    @nnx.jit
    def compiled(self, x):
        return self.dense(x)

    def __call__(self, x):
        scan = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return scan(self.compiled(x), self.stack)


def test_modules_inside_nnx_jit_vmap_and_scan_keep_their_rows():
    result = summary(Transformed, jax.ShapeDtypeStruct((2, 4), jnp.float32))
    one = 2 * 2 * 4 * 4 + 2 * 4
    assert by_path(result)["dense"].flops == one
    assert (by_path(result)["stack"].parameters, by_path(result)["stack"].flops) == (60, 3 * one)
    assert_adds_up(result)


class Child(nnx.Linear):
    def __call__(self, inputs):
        return super().__call__(inputs)


def test_a_call_of_super_is_one_use():
    model = nnx.Sequential(Child(3, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
    layers = by_path(summary(model, jnp.zeros((2, 3))))
    assert layers["layers.0"].calls == layers["layers.1"].calls == 1
    assert layers["layers.0"].flops == layers["layers.1"].flops


class Broken(nnx.Linear):
    def __call__(self, inputs):
        raise RuntimeError("broken")


def test_classes_and_the_model_are_left_as_they_were_also_after_an_error():
    calls = {cls: cls.__dict__.get("__call__") for cls in (nnx.Linear, nnx.Sequential, Broken, Child)}
    model = nnx.Sequential(Child(3, 3, rngs=nnx.Rngs(0)), Broken(3, 3, rngs=nnx.Rngs(0)))
    attributes = [set(vars(module)) for _, module in nnx.iter_modules(model)]
    with pytest.raises(RuntimeError, match="broken"):
        summary(model, jnp.zeros((2, 3)))
    assert {cls: cls.__dict__.get("__call__") for cls in calls} == calls
    assert [set(vars(module)) for _, module in nnx.iter_modules(model)] == attributes


def test_a_model_in_training_mode_stays_there():
    model = Net(rngs=nnx.Rngs(0))
    model.train()
    summary(model, IMAGES)
    assert not model.dropout.deterministic


def test_a_model_too_large_for_this_machine_is_described():
    side = 2**20  # 4 TiB of parameters
    result = summary(lambda rngs: nnx.Linear(side, side, rngs=rngs), jax.ShapeDtypeStruct((1, side), jnp.float32))
    assert result.parameters == side * side + side
    linen_result = summary(linen.Dense(side), jax.ShapeDtypeStruct((1, side), jnp.float32))
    assert linen_result.parameters == side * side + side


@pytest.mark.parametrize("model", [Net, LinenNet()], ids=["nnx", "linen"])
def test_the_table_is_narrow_and_holds_every_layer_and_the_totals(model):
    result = summary(model, IMAGES)
    text = str(result)
    assert max(map(len, text.splitlines())) <= 100
    assert all(layer.path in text and layer.type in text for layer in result.layers)
    assert "312 trainable, 16 in other state" in text


def test_the_dict_is_json():
    values = json.loads(json.dumps(summary(Net, IMAGES).to_dict()))
    assert values["layers"][1]["output"] == [{"shape": [4, 8, 8, 8], "dtype": "float32"}]
    assert values["parameters"] == 312


@pytest.mark.parametrize(("model", "message"), [(3, "of type int"), (lambda rngs: 3, "expected an nnx.Module")])
def test_what_is_no_model_is_named(model, message):
    with pytest.raises(UserError, match=message):
        summary(model, IMAGES)
