"""A written graph as the bytes of an ONNX file."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet.errors import UserError
from accelnet.exporting.onnx.graph import Graph, Node
from accelnet.exporting.onnx.sizes import is_known
from accelnet.packages import imported
from accelnet.scopes import classes

# The oldest set that has all operators used here, for runtimes of any age.
OPSET = 18
_IR_VERSION = 8
_MOST_BYTES = 2**31 - 1


def serialize(graph: Graph, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of an ONNX file of a graph, checked by onnx itself."""
    onnx = imported("onnx", "onnx")
    held = sum(array.nbytes for array in graph.constants.values())
    if held > _MOST_BYTES:
        raise UserError(f"the model holds {held / 1e9:.1f} GB of weights: one file of ONNX holds 2.1 GB at most")
    model = onnx.helper.make_model(
        _graph(onnx, graph, "accelnet"),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="accelnet",
    )
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _graph(onnx: Any, graph: Graph, name: str) -> Any:
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    ends = [[_info(onnx, *end) for end in ends] for ends in (graph.inputs, graph.outputs)]
    nodes = [_node(onnx, node, number) for number, node in enumerate(graph.nodes)]
    return onnx.helper.make_graph(nodes, name, *ends, constants)


def _info(onnx: Any, name: str, dtype: Any, shape: tuple[Any, ...]) -> Any:
    sizes = [int(size) if is_known(size) else str(size) for size in shape]
    return onnx.helper.make_tensor_value_info(name, _type(onnx, dtype), sizes)


def _type(onnx: Any, dtype: Any) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _node(onnx: Any, node: Node, number: int) -> Any:
    settings = {k: _type(onnx, v) if isinstance(v, np.dtype) else v for k, v in node.attributes.items()}
    bodies = {key: _graph(onnx, body, f"{node.outputs[0]}_{key}") for key, body in node.bodies.items()}
    name = "/".join(part for part in (classes(node.scope), f"{node.op}_{number}") if part)
    return onnx.helper.make_node(node.op, node.inputs, node.outputs, name=name, **settings, **bodies)
