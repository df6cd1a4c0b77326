"""The compiled kernels against their plain meanings, and where which of the two is taken."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from accelnet.ops import cells, convolution, kernels, patches
from accelnet.ops.geometry import Geometry, transposed_kernels
from accelnet.ops.kernels import compiler as finding
from accelnet.ops.kernels import library

pytestmark = pytest.mark.cpu

ONES = {1: (1,), 2: (1, 1), 3: (1, 1, 1)}


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    if not kernels.load():
        pytest.skip("no C++ compiler here, so there are no kernels")


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def assert_close(actual, expected, relative=1e-5):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=relative * (float(np.abs(e).max()) + 1e-6), rtol=0)


# Shapes that every program in the kernels meets, whole and partial vectors, tiles, bands and borders.
CONVOLUTIONS = {
    "one image, one channel": ((1, 28, 28, 1), (3, 3, 1, 32), Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)),
    "winograd": ((3, 13, 10, 16), (3, 3, 16, 40), Geometry((1, 1), ((1, 1), (0, 2)), (1, 1), (1, 1), 1)),
    "winograd, cropped": ((4, 9, 9, 32), (3, 3, 32, 16), Geometry((1, 1), ((-1, 1), (2, -2)), (1, 1), (1, 1), 1)),
    "many lines": ((2, 70, 40, 24), (3, 3, 24, 17), Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)),
    "deep": ((2, 6, 6, 130), (3, 3, 130, 20), Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)),
    "1x1": ((4, 7, 5, 9), (1, 1, 9, 33), Geometry((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1)),
    "strided": ((5, 11, 12, 6), (3, 3, 6, 8), Geometry((2, 3), ((1, 1), (0, 1)), (1, 1), (1, 1), 1)),
    "dilated": ((2, 9, 9, 5), (3, 2, 5, 7), Geometry((1, 1), ((2, 2), (1, 1)), (1, 1), (2, 3), 1)),
    "transposed": ((2, 5, 6, 7), (4, 3, 7, 5), Geometry((1, 1), ((2, 3), (1, 2)), (2, 3), (1, 1), 1)),
    "all at once": ((2, 6, 7, 4), (3, 2, 2, 6), Geometry((2, 3), ((3, 2), (1, 4)), (3, 2), (2, 1), 2)),
    "taps that meet nothing": ((2, 4, 4, 3), (1, 1, 3, 4), Geometry((1, 1), ((0, 0), (0, 0)), (3, 2), (1, 1), 1)),
    "grouped": ((3, 8, 8, 24), (3, 3, 8, 48), Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 3)),
    "depthwise": ((3, 40, 41, 20), (3, 3, 1, 20), Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 20)),
    "depthwise, strided, 5x5": ((2, 9, 9, 16), (5, 5, 1, 16), Geometry((2, 2), ((2, 2), (2, 2)), (1, 1), (1, 1), 16)),
    "depthwise, two outputs": ((2, 8, 8, 6), (3, 3, 1, 12), Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 6)),
    "a sequence": ((3, 50, 6), (5, 6, 10), Geometry((2,), ((4, 0),), (1,), (1,), 1)),
    "a volume": ((2, 5, 6, 7, 3), (3, 3, 3, 3, 4), Geometry((1, 2, 1), ((1, 1), (0, 0), (2, 1)), ONES[3], ONES[3], 1)),
}


# Members of a population have images of their own, kernels of their own, or both: all three for one case of each loop.
AXES = [(0, None), (None, 0), (0, 0)]
WITH_ALL_AXES = {"winograd", "1x1", "all at once", "depthwise"}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_and_its_gradients_are_those_of_the_plain_programs(name):
    lhs_shape, rhs_shape, geometry = CONVOLUTIONS[name]
    rng = np.random.default_rng(0)
    lhs, rhs = random(rng, *lhs_shape), random(rng, *rhs_shape)
    gradient = random(rng, lhs_shape[0], *geometry.output_sizes(lhs_shape, rhs_shape), rhs_shape[-1])

    @jax.jit
    def by_kernels(lhs, rhs, gradient):
        out, pull = jax.vjp(lambda lhs, rhs: convolution._convolve(lhs, rhs, geometry), lhs, rhs)
        return out, *pull(gradient)

    @jax.jit
    def plain(lhs, rhs, gradient):
        transposed = geometry.transposed(lhs.shape, rhs.shape)
        mirrored = transposed_kernels(rhs, geometry.groups)
        out = patches.convolve(lhs, rhs, geometry)
        lhs_gradient = patches.convolve(gradient, mirrored, transposed)
        return out, lhs_gradient, patches.kernel_gradient(lhs, gradient, rhs.shape, geometry)

    assert "accelnet_convolve" in by_kernels.lower(lhs, rhs, gradient).as_text()
    assert_close(by_kernels(lhs, rhs, gradient), plain(lhs, rhs, gradient))
    number = list(CONVOLUTIONS).index(name) % 3
    for axes in AXES if name in WITH_ALL_AXES else [AXES[number]]:
        many = [x if axis is None else np.stack([x, -x, x * 0.5]) for x, axis in zip((lhs, rhs), axes, strict=True)]
        assert_close(*(jax.vmap(f, in_axes=(*axes, None))(*many, gradient) for f in (by_kernels, plain)))


def test_kernels_fit_into_nested_maps():
    rng = np.random.default_rng(0)
    lhs, rhs = random(rng, 2, 3, 2, 6, 6, 4), random(rng, 3, 3, 3, 4, 5)
    geometry = Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)

    def nested(convolve):
        inner = jax.vmap(lambda x, k: convolve(x, k, geometry))
        return jax.jit(jax.vmap(inner, in_axes=(0, None)))(lhs, rhs)

    assert_close(nested(convolution._convolve), nested(convolution.native))


CELLS = {"simple": cells.SIMPLE, "lstm": cells.LSTM, "gru": cells.GRU}


# Each cell with and without lengths, in both directions, for one sequence and for several.
@pytest.mark.parametrize(
    ("name", "steps", "batch", "hidden", "lengths", "reverse"),
    [
        ("lstm", 6, 1, 128, False, False),  # threads share the units
        ("simple", 6, 1, 128, False, True),
        ("gru", 5, 1, 160, True, True),
        ("simple", 5, 3, 4, True, False),
        ("gru", 5, 3, 4, False, False),
        ("lstm", 4, 33, 20, True, True),
        ("gru", 6, 8, 16, True, False),
        ("lstm", 6, 8, 16, True, False),
        ("lstm", 2, 130, 9, False, True),
        ("simple", 2, 130, 9, True, True),
        ("gru", 1, 1, 8, False, True),
    ],
)
def test_a_recurrence_and_its_gradients_are_those_of_the_plain_scan(name, steps, batch, hidden, lengths, reverse):
    cell, rng = CELLS[name], np.random.default_rng(0)
    gates = cell.num_gates * hidden
    arrays = {
        "projected": random(rng, steps, batch, gates),
        "kernel": random(rng, hidden, gates) * 0.3,
        "first": tuple(random(rng, batch, hidden) for _ in range(cell.num_states)),
        "bias": random(rng, gates) if cell is cells.GRU else None,
    }
    valid = (np.arange(steps)[:, None] < rng.integers(0, steps + 1, batch))[:, :, None] if lengths else None
    weights = random(rng, steps, batch, hidden), random(rng, batch, hidden)

    def of_hiddens(hiddens, last):
        return (hiddens * weights[0]).sum() + sum((state * weights[1]).sum() for state in last)

    def by_kernels(arrays):
        out = cells.scan_cell(cell, reverse, cells.Operands(**arrays, valid=valid))
        return of_hiddens(*out), out

    def plain(arrays):
        a = arrays
        given = [x for x in (a["bias"], valid) if x is not None]
        meaning = cells._Forward(cell, reverse, False, False, a["bias"] is not None, valid is not None)
        hiddens, *last = meaning(a["projected"], *a["first"], a["kernel"], *given)
        return of_hiddens(hiddens, last), (hiddens, tuple(last))

    # The sum itself, whose terms cancel, is not compared.
    ours, theirs = (jax.jit(jax.grad(f, has_aux=True)) for f in (by_kernels, plain))
    assert "accelnet_recur_backward" in ours.lower(arrays).as_text()
    assert_close(ours(arrays), theirs(arrays))
    members = arrays | {"kernel": np.stack([arrays["kernel"], -arrays["kernel"]])}
    axes = {key: 0 if key == "kernel" else None for key in arrays}
    assert_close(*(jax.vmap(f, in_axes=(axes,))(members) for f in (ours, theirs)))


def test_kernels_have_second_derivatives_through_their_meaning():
    rng = np.random.default_rng(0)
    projected, kernel, first = random(rng, 3, 2, 16), random(rng, 4, 16), (random(rng, 2, 4), random(rng, 2, 4))

    def curvature(scan):
        return jax.jit(jax.grad(lambda kernel: (jax.grad(lambda k: scan(k)[0].sum())(kernel) ** 2).sum()))(kernel)

    meaning = cells._Forward(cells.LSTM, False, False, False, False, False)
    ours = curvature(lambda k: cells.scan_cell(cells.LSTM, False, cells.Operands(projected, k, first)))
    assert_close(ours, curvature(lambda k: meaning(projected, *first, k)))


def test_tanh_and_sigmoid_are_right_everywhere():
    x = jnp.concatenate(
        [jnp.linspace(-100, 100, 4001), jnp.linspace(-1, 1, 2001), jnp.array([jnp.inf, -jnp.inf, jnp.nan])]
    )
    nothing = jnp.zeros((1, 1))
    zeros = jnp.zeros((x.size, 1))
    tanh = cells.scan_cell(cells.SIMPLE, False, cells.Operands(x.reshape(1, -1, 1), nothing, (zeros,)))[0]
    # Two units in the last place of a float32 are 2.4e-7.
    np.testing.assert_allclose(tanh.ravel(), np.tanh(np.asarray(x, np.float64)), rtol=3e-7)
    # Where float32's nearest to tanh(x) is 1, it is 1, and nothing is beyond.
    np.testing.assert_array_equal(tanh.ravel()[np.abs(x) > 9.02], np.sign(x[np.abs(x) > 9.02]))
    assert np.nanmax(np.abs(tanh)) == 1
    gates = jnp.zeros((1, x.size, 4)).at[0, :, 3].set(x).at[0, :, 0].set(100.0).at[0, :, 2].set(100.0)
    out = cells.scan_cell(cells.LSTM, False, cells.Operands(gates, jnp.zeros((1, 4)), (zeros, zeros)))[0].ravel()
    # A sigmoid is half of a tanh above a half, so that what is near 0 is right to the same absolute 2e-7.
    np.testing.assert_allclose(out, np.tanh(1) / (1 + np.exp(-np.asarray(x, np.float64))), rtol=0, atol=2e-7)


def example():
    geometry = Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)
    function = jax.jit(lambda lhs, rhs: convolution._convolve(lhs, rhs, geometry))
    return function, jnp.ones((8, 6, 6, 4)), jnp.ones((3, 3, 4, 8))


def test_a_program_for_one_device_calls_kernels_and_an_export_does_not():
    function, lhs, rhs = example()
    assert "@accelnet_convolve" in function.lower(lhs, rhs).as_text()
    exported = jax.export.export(function, platforms=["cpu", "tpu"])(lhs, rhs)
    assert "@accelnet_" not in exported.mlir_module()
    again = jax.export.deserialize(exported.serialize())
    assert_close(again.call(lhs, rhs), function(lhs, rhs))


def test_a_program_that_xla_partitions_holds_no_kernels_and_the_parts_of_shard_map_do():
    function, lhs, rhs = example()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    cut = jax.device_put(lhs, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(rhs, NamedSharding(mesh, PartitionSpec()))
    assert "accelnet_convolve" not in function.lower(cut, whole).as_text()
    assert_close(function(cut, whole), function(lhs, rhs))
    specs = {"in_specs": (PartitionSpec("data"), PartitionSpec()), "out_specs": PartitionSpec("data")}
    # As accelnet itself maps: operations with gradients of their own do not track what varies.
    mapped = jax.jit(jax.shard_map(function, mesh=mesh, check_vma=False, **specs))
    assert "accelnet_convolve" in mapped.lower(cut, whole).as_text()
    assert_close(mapped(cut, whole), function(lhs, rhs))


def test_kernels_are_called_in_loops():
    function, lhs, _ = example()
    square = jnp.ones((3, 3, 4, 4)) * 0.02

    def loop(convolve):
        return jax.jit(lambda x: lax.fori_loop(0, 5, lambda _, x: convolve(x, square), x))(lhs)

    geometry = Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)
    assert_close(loop(function), loop(lambda x, k: convolution.native(x, k, geometry)))


SUM = """
import os, sys
os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[:int(sys.argv[1])]))
import jax, jax.numpy as jnp, numpy as np, hashlib
from accelnet.ops import conv_general_dilated, lstm
rng = np.random.default_rng(0)
shapes = (9, 12, 12, 16), (3, 3, 16, 16), (5, 5, 16, 8)
lhs, rhs, plain = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)
numbers = ("NHWC", "HWIO", "NHWC")
kernels = tuple(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((192, 64), (16, 64), (64,)))
def loss(lhs, rhs, plain, kernels):
    x = conv_general_dilated(lhs, rhs, (1, 1), "SAME", dimension_numbers=numbers)
    y = conv_general_dilated(x, plain, (2, 2), "SAME", dimension_numbers=numbers)
    return jnp.sum(jnp.sin(y)) + jnp.sum(lstm(x.reshape(9, 12, -1), *kernels)[0])
grads = jax.jit(jax.grad(loss, (0, 1, 2, 3)))
text = grads.lower(lhs, rhs, plain, kernels).as_text()
assert "accelnet_kernel_gradient" in text and "accelnet_recur" in text
# The products around the kernels are XLA's, whose sums may depend on the threads: the kernels' own results alone.
out = grads(lhs, rhs, plain, kernels)[1:3]
print(hashlib.sha256(b"".join(np.asarray(g).tobytes() for g in out)).hexdigest())
"""


@pytest.mark.slow
def test_the_number_of_threads_changes_no_bit_of_a_kernel():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one core")
    runs = [
        subprocess.run(
            [sys.executable, "-c", SUM, n], env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
        )
        for n in "12"
    ]
    assert [run.returncode for run in runs] == [0, 0], [run.stderr[-2000:] for run in runs]
    assert runs[0].stdout == runs[1].stdout


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        (None, "found no C++ compiler"),
        ("false", "could not be compiled"),
        ("/no/such/compiler", "could not be compiled"),
    ],
)
def test_without_a_working_compiler_one_line_says_so(monkeypatch, capsys, compiler, message):
    monkeypatch.delenv("CXX", raising=False)
    if compiler is None:
        monkeypatch.setattr(finding.shutil, "which", lambda _: None)
        monkeypatch.setattr(finding, "packaged_compiler", lambda: None)
    else:
        monkeypatch.setenv("CXX", compiler)
    assert library._library.__wrapped__() is None
    said = capsys.readouterr().err
    assert message in said and "ACCELNET_KERNELS=xla" in said


def test_kernels_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: False)
    function, _, rhs = example()
    lhs = jnp.ones((5, 7, 6, 4))  # a shape of this test alone: nothing of it is traced yet
    lowered = function.lower(lhs, rhs)
    assert "accelnet_convolve" not in lowered.as_text()
    geometry = Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)
    assert_close(lowered.compile()(lhs, rhs), convolution.native(lhs, rhs, geometry))
