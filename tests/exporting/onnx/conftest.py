"""A function in JAX against the ONNX file of it in onnxruntime."""

from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.export import symbolic_shape

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

BATCH, STEPS = symbolic_shape("b, t")
# Sums of a few hundred float32 products, rounded in another order.
TOLERANCE = 1e-5


def shape(*sizes, dtype=jnp.float32):
    """An input's shape, in which "b" and "t" are sizes that differ from call to call."""
    symbols = {"b": BATCH, "t": STEPS}
    return jax.ShapeDtypeStruct(tuple(symbols.get(size, size) for size in sizes), dtype)


def rows_of(inputs, batch, steps, seed=0):
    """Random rows; integers are valid lengths and tokens below 10."""
    rng = np.random.default_rng(seed)
    known = {str(BATCH): batch, str(STEPS): steps}

    def draw(spec):
        sizes = tuple(known.get(str(size), size) for size in spec.shape)
        if np.issubdtype(spec.dtype, np.integer):
            return rng.integers(1, min(steps, 10) + 1, sizes).astype(spec.dtype) - (len(sizes) == 2)
        return rng.normal(size=sizes).astype(spec.dtype)

    return jax.tree.map(draw, inputs)


@pytest.fixture
def agrees():
    """Check that one file gives what the function gives, for each of the sizes; return the file's operators."""
    from accelnet.exporting.onnx import check_onnx, to_onnx

    def check(function, inputs, sizes=((1, 4), (5, 9)), tolerance=TOLERANCE):
        data = to_onnx(function, inputs)
        for batch, steps in sizes:
            difference = check_onnx(data, function, rows_of(inputs, batch, steps))
            assert difference.largest <= tolerance
            assert difference.num_rows  # of the outputs, which need not be the batch's
        return operators(data)

    return check


def operators(data):
    """How often each operator is in a file."""
    return Counter(node.op_type for node in onnx.load_from_string(data).graph.node)


@pytest.fixture
def tools():
    return SimpleNamespace(shape=shape, rows_of=rows_of, operators=operators, of_module=of_module)


def of_module(module, seed=0):
    """A module in evaluation mode as a function, with every weight and statistic moved away from where it starts."""
    rng = np.random.default_rng(seed)
    module.eval()
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        value = variable.get_value()
        if jnp.issubdtype(value.dtype, jnp.floating):
            noise = 0.1 * rng.normal(size=value.shape)
            variable.set_value((value + (np.abs(noise) if path[-1] == "var" else noise)).astype(value.dtype))
    graphdef, state = nnx.split(module)

    def call(inputs):
        model = nnx.merge(graphdef, state, copy=True)
        return model(**inputs) if isinstance(inputs, dict) else model(inputs)

    return call
