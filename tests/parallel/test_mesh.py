"""Meshes, also of devices that are not here."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest

import accelnet as an
from accelnet.parallel.layout import make_layout
from accelnet.parallel.mesh import make_mesh


@dataclass(frozen=True)
class Chip:
    """What a TPU says of itself."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v4"


def chips(slices):
    places = [(x, y, 0) for y in range(2) for x in range(2)]
    return [Chip(s * 4 + i, s, place, process_index=s) for s in range(slices) for i, place in enumerate(places)]


def test_the_first_axis_spans_the_slices_and_the_inner_axes_stay_within_one():
    devices = chips(3)
    for axes in ({"data": 3, "fsdp": 4}, {"data": 6, "model": 2}, {"data": -1}):
        grid = make_mesh(axes, devices).devices
        slices = np.vectorize(lambda chip: chip.slice_index)(grid)
        per_slice = slices.reshape(3, -1)
        assert (per_slice == per_slice[:, :1]).all() and len(set(per_slice[:, 0])) == 3


def test_a_first_axis_that_cannot_span_the_slices_is_refused():
    with pytest.raises(an.UserError, match=r"lies on 3 slices, .* first axis of 3, 6"):
        make_mesh({"fsdp": 4, "data": 3}, chips(3))


def test_other_devices_keep_the_order_of_their_hosts():
    grid = make_mesh({"data": 2, "model": 4}, jax.devices()).devices
    assert grid.ravel().tolist() == jax.devices()


def test_auto_cuts_the_weights_only_where_they_would_not_fit():
    @dataclass(frozen=True)
    class Small(Chip):
        def memory_stats(self):
            return {"bytes_limit": 1000}

    devices = [Small(i, 0, (i % 2, i // 2, 0)) for i in range(4)]
    assert make_layout("auto", state_bytes=250, devices=devices).axes == {"data": 4}
    assert make_layout("auto", state_bytes=251, devices=devices).axes == {"fsdp": 4}
    assert make_layout(devices=devices).axes == {"data": 4}


def test_without_a_mesh_a_cpu_is_one_device_and_pmap_takes_all():
    assert make_layout().mesh is None
    assert make_layout(strategy="pmap").axes == {"data": 8}


def test_an_unknown_strategy_is_named():
    with pytest.raises(an.UserError, match="strategy is 'xmap', expected one of jit, pmap"):
        make_layout("data=8", "xmap")
