"""Which rule places what, and why."""

import jax
import optax
import pytest
from jax.sharding import PartitionSpec

from accelnet.parallel.rules import DEFAULT_RULES, Placement, followers, place

MESH = {"data": 2, "fsdp": 2, "model": 4}


@pytest.mark.parametrize(
    ("path", "shape", "axes", "spec", "reason"),
    [
        ("layers.0.linear.kernel", (8, 16), {"model": 4}, (None, "model"), "default rule"),
        ("layers.1.linear.kernel", (16, 8), {"model": 4}, ("model",), "default rule"),
        ("layers.10.linear.bias", (16,), {"model": 4}, ("model",), "default rule"),
        ("layers.1.linear.bias", (16,), {"model": 4}, (), "no rule names it"),
        ("layers.0.linear.kernel", (8, 6), {"model": 4}, (), "6 does not divide into 4 parts of model"),
        ("layers.0.linear.kernel", (8, 16), {"data": 4}, (), "its rule names no axis of this mesh"),
        ("stages.1.layers.0.conv.kernel", (3, 3, 8, 16), MESH, (None, None, None, "model"), "default rule"),
        (
            "conv.kernel",
            (3, 3, 64, 64),
            MESH,
            (None, None, "fsdp", "model"),
            "default rule; its largest free axis on fsdp",
        ),
        ("anything", (64, 128), {"fsdp": 2}, (None, "fsdp"), "its largest axis on fsdp"),
        ("anything", (65, 129), {"fsdp": 2}, (), "no rule names it; no free axis divides into 2 parts of fsdp"),
        ("anything", (63, 65), {"fsdp": 2}, (), "4,095 numbers, fsdp cuts from 4,096 on"),
        ("layers.0.forward.input_kernel", (8, 64), {"model": 4}, (None, "model"), "default rule"),
    ],
)
def test_an_array_lies_where_its_rule_says(path, shape, axes, spec, reason):
    placed = place(path, shape, axes)
    assert tuple(placed.spec) == spec and placed.reason == reason


def test_the_users_rule_comes_first_and_may_combine_axes():
    rules = [("head.kernel", PartitionSpec(("data", "model"), None)), *DEFAULT_RULES]
    assert tuple(place("head.kernel", (8, 3), MESH, rules).spec) == (("data", "model"),)
    assert place("head.kernel", (8, 3), MESH, rules).reason == "rule head.kernel"


def test_a_rule_can_keep_a_parameter_whole():
    rules = [("conv.kernel", PartitionSpec()), *DEFAULT_RULES]
    assert tuple(place("conv.kernel", (3, 3, 2, 8), {"model": 4}, rules).spec) == ()


def test_an_optimizers_state_follows_its_parameter():
    params = {"a": {"kernel": jax.ShapeDtypeStruct((8, 4), "float32")}}
    placed = {"a": {"kernel": Placement(PartitionSpec("fsdp"), "")}}
    state = jax.eval_shape(optax.adam(1e-3).init, params)
    specs = [tuple(where.spec) for where in jax.tree.leaves(followers(state, params, placed))]
    assert specs == [(), ("fsdp",), ("fsdp",)]  # the count, and both moments
