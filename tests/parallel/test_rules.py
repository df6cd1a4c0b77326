"""Which rule places what, and why."""

import jax
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import accelnet as an
from accelnet.models.adapter import adapt
from accelnet.models.sharding import SHARDING_RULES
from accelnet.parallel.rules import ModelRule, Placement, followers, place

RULES = [ModelRule(*rule) for rule in SHARDING_RULES]
MESH = {"data": 2, "fsdp": 2, "model": 4}


@pytest.mark.parametrize(
    ("path", "shape", "axes", "spec", "reason"),
    [
        ("layers.0.linear.kernel", (8, 16), {"model": 4}, (None, "model"), "the model's rule"),
        ("layers.1.linear.kernel", (16, 8), {"model": 4}, ("model",), "the model's rule"),
        ("layers.10.linear.bias", (16,), {"model": 4}, ("model",), "the model's rule"),
        ("layers.1.linear.bias", (16,), {"model": 4}, (), "no rule names it"),
        ("layers.0.linear.kernel", (8, 6), {"model": 4}, (), "6 does not divide into 4 parts of model"),
        ("layers.0.linear.kernel", (8, 16), {"data": 4}, (), "its rule names no axis of this mesh"),
        ("stages.1.layers.0.conv.kernel", (3, 3, 8, 16), MESH, (None, None, None, "model"), "the model's rule"),
        (
            "conv.kernel",
            (3, 3, 64, 64),
            MESH,
            (None, None, "fsdp", "model"),
            "the model's rule; its largest free axis on fsdp",
        ),
        ("anything", (64, 128), {"fsdp": 2}, (None, "fsdp"), "its largest axis on fsdp"),
        ("anything", (65, 129), {"fsdp": 2}, (), "no rule names it; no free axis divides into 2 parts of fsdp"),
        ("anything", (63, 65), {"fsdp": 2}, (), "4,095 numbers, fsdp cuts from 4,096 on"),
        ("layers.0.forward.input_kernel", (8, 64), {"model": 4}, (None, "model"), "the model's rule"),
    ],
)
def test_an_array_lies_where_its_rule_says(path, shape, axes, spec, reason):
    placed = place(path, shape, axes, RULES)
    assert tuple(placed.spec) == spec and placed.reason == reason


def test_the_users_rule_comes_first_and_may_combine_axes():
    rules = [("head.kernel", PartitionSpec(("data", "model"), None)), *RULES]
    assert tuple(place("head.kernel", (8, 3), MESH, rules).spec) == (("data", "model"),)
    assert place("head.kernel", (8, 3), MESH, rules).reason == "rule head.kernel"


def test_a_rule_can_keep_a_parameter_whole():
    rules = [("conv.kernel", PartitionSpec()), *RULES]
    assert tuple(place("conv.kernel", (3, 3, 2, 8), {"model": 4}, rules).spec) == ()


def test_an_optimizers_state_follows_its_parameter():
    params = {"a": {"kernel": jax.ShapeDtypeStruct((8, 4), "float32")}}
    placed = {"a": {"kernel": Placement(PartitionSpec("fsdp"), "")}}
    state = jax.eval_shape(optax.adam(1e-3).init, params)
    specs = [tuple(where.spec) for where in jax.tree.leaves(followers(state, params, placed))]
    assert specs == [(), ("fsdp",), ("fsdp",)]  # the count, and both moments


def test_a_model_brings_its_rules_along_wherever_it_stands_and_names_of_others_mean_nothing():
    class Wrapped(nnx.Module):
        def __init__(self, rngs):
            self.body = an.models.MLP(4, (8,), 4, rngs=rngs)
            self.blocks = nnx.List([nnx.Linear(4, 8, rngs=rngs)])

        def __call__(self, x):
            return self.blocks[0](self.body(x))

    rules = [ModelRule(*rule) for rule in adapt(Wrapped).rules(None)]
    axes = {"model": 4}
    assert tuple(place("body.layers.0.linear.kernel", (4, 8), axes, rules).spec) == (None, "model")
    for name in ("blocks.0.bias", "blocks.0.kernel"):
        assert place(name, (8, 8) if "kernel" in name else (8,), axes, rules).reason == "no rule names it"
