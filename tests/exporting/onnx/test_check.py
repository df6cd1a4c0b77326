"""What is not right is said: in a file that differs, in models that cannot be written, in inputs that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.export import symbolic_shape

import accelnet as an
from accelnet.errors import UserCodeError, UserError
from accelnet.exporting.onnx import check_onnx, elementwise, to_onnx
from accelnet.exporting.onnx.rules import RULES, made


def wrong_tanh(graph, step, value):
    """A rule that writes another function."""
    return made(graph.add("Softsign", graph.tensor(value)), step.out_avals[0])


def layered(x):
    with jax.named_scope("first"):
        x = jnp.sin(x)
    with jax.named_scope("second"):
        x = jnp.tanh(x)
    return x * 3


def test_a_difference_names_the_first_layer_and_the_line(tools, monkeypatch):
    monkeypatch.setitem(RULES, "tanh", wrong_tanh)
    spec = tools.shape("b", 3)
    with pytest.raises(UserError, match=r"outputs by \d.*first to differ is the layer second, tanh of .*test_check"):
        check_onnx(to_onnx(layered, spec), layered, tools.rows_of(spec, 4, 1))


def test_a_layer_of_accelnets_that_differs_is_named_by_its_class(tools, monkeypatch):
    from accelnet.models.adapter import adapt

    monkeypatch.setitem(RULES, "logistic", wrong_tanh)
    pure = adapt(an.models.MLP(3, (4,), 2, activation=nnx.sigmoid, rngs=nnx.Rngs(0)))
    params, state = pure.init(jax.random.key(0), jnp.zeros((1, 3)))

    def function(x):
        return pure.apply(params, state, x, key=jax.random.key(0), train=False)[0]

    spec = tools.shape("b", 3)
    with pytest.raises(UserError, match=r"the first to differ is the layer MLP/.*, logistic"):
        check_onnx(to_onnx(function, spec), function, tools.rows_of(spec, 4, 1))


def test_a_result_that_is_not_finite_is_a_difference(tools):
    spec = tools.shape("b", 3)
    data = to_onnx(lambda x: x / 0, spec)
    with pytest.raises(UserError, match="outputs by inf"):
        check_onnx(data, jnp.sin, tools.rows_of(spec, 4, 1))


def test_the_difference_of_each_output_is_told(tools):
    spec = {"a": tools.shape("b", 3), "b": tools.shape("b", 3)}

    def function(batch):
        return {"sum": batch["a"] + batch["b"], "nested": [batch["a"] * 2]}

    found = check_onnx(to_onnx(function, spec), function, tools.rows_of(spec, 4, 1))
    assert found.outputs == {"nested.0": 0.0, "sum": 0.0} and found.largest == 0.0 and found.num_rows == 4


def while_loop(x):
    return lax.while_loop(lambda c: c.sum() < 100, lambda c: c + 1, x)


def random(x):
    return x + jax.random.normal(jax.random.key(0), x.shape)


def in_bfloat16(x):
    return (x.astype(jnp.bfloat16) * 2).astype(jnp.float32)


def fourier(x):
    return jnp.abs(jnp.fft.fft(x))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (while_loop, "primitive while repeats something an unknown number of times"),
        (random, "random_bits draws random numbers"),
        (in_bfloat16, "computes in bfloat16"),
        (fourier, "complex64"),
    ],
)
def test_a_primitive_that_cannot_be_written_is_named_with_its_line(function, message, tools):
    with pytest.raises(UserError, match=message) as caught:
        to_onnx(function, tools.shape("b", 3))
    line = function.__code__.co_firstlineno + 1
    assert f"test_check.py:{line} ({function.__name__})" in str(caught.value)


def test_a_model_that_wants_a_known_batch_is_shown_with_its_line(tools):
    def function(x):
        return x * (1 if x.shape[0] < 8 else 2)

    with pytest.raises(UserCodeError, match=r"(?s)traced for export.*x.shape\[0\] < 8.*inconclusive"):
        to_onnx(function, tools.shape("b", 3))


def test_a_symbol_that_is_the_size_of_no_axis_is_refused():
    (half,) = symbolic_shape("2*h")
    with pytest.raises(UserError, match="depends on h, which is the whole size of no axis"):
        to_onnx(jnp.sin, jax.ShapeDtypeStruct((half,), jnp.float32))


def test_an_input_and_an_output_of_one_name_are_refused(tools):
    with pytest.raises(UserError, match="both named x"):
        to_onnx(lambda batch: {"x": batch["x"] + 1}, {"x": tools.shape("b", 3)})


def test_rows_of_another_shape_are_an_error_of_one_line(tools):
    data = to_onnx(jnp.sin, tools.shape("b", 3))
    with pytest.raises(UserError, match=r"onnxruntime cannot run the ONNX file: .*dimension"):
        check_onnx(data, jnp.sin, np.zeros((2, 4), np.float32))


def test_metadata_and_names_are_in_the_file(tools):
    import onnx

    data = to_onnx(
        lambda batch: jnp.sin(batch["pixels"]), {"pixels": tools.shape("b", 3)}, metadata={"classes": '["a"]'}
    )
    model = onnx.load_from_string(data)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"classes": '["a"]'}
    assert [entry.name for entry in model.graph.input] == ["pixels"]
    assert [entry.name for entry in model.graph.output] == ["outputs"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "b"
    assert model.opset_import[0].version >= 18


def test_equal_models_give_equal_bytes(tools):
    spec = tools.shape("b", 3)
    assert to_onnx(layered, spec) == to_onnx(layered, spec)


def test_constants_are_computed_once_and_unused_parts_left_out(tools):
    weights = jnp.ones((3, 3))

    def function(x):
        unused = jnp.cosh(x)
        return (x @ jnp.linalg.inv(weights + 2 * jnp.eye(3)), unused)[0]

    assert set(tools.operators(to_onnx(function, tools.shape("b", 3)))) == {"MatMul", "Identity"}


def test_every_elementwise_rule_has_its_own_name():
    assert elementwise._DIRECT.keys().isdisjoint(elementwise._FORMULAS)
