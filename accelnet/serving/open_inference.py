"""The Open Inference Protocol, version 2, as KServe and others speak it: tensors in JSON."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet.artifact.model import Model
from accelnet.artifact.prediction import Prediction
from accelnet.artifact.raw_rows import takes_text
from accelnet.artifact.schema import encode
from accelnet.errors import UserError
from accelnet.serving.limits import Refused
from accelnet.wording import listed, shown

_TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "bfloat16": "FP32",
}  # fmt: skip
_NUMPY = {kind: name for name, kind in _TYPES.items() if name != "bfloat16"}


def described(model: Model, name: str) -> dict[str, Any]:
    """Return what the protocol calls the metadata of a model."""
    schema = model.schema
    outputs = [_tensor(key, one["dtype"], one["shape"]) for key, one in schema["outputs"].items()]
    if schema["fitted"].get("class_names") and schema["kind"] == "classes":
        outputs.append(_tensor("labels", "BYTES", schema["outputs"]["classes"]["shape"]))
    return {"name": name, "versions": ["1"], "platform": "accelnet", "inputs": _inputs(schema), "outputs": outputs}


def read_tensors(model: Model, request: Any) -> Any:
    """Return the encoded inputs of a request of the protocol.

    Args:
        model: The model.
        request: The request's JSON value.

    Raises:
        Refused: with 400 if it is no request of the protocol.
        UserError: if the tensors are not what the model takes.
    """
    given = request.get("inputs") if isinstance(request, Mapping) else None
    if not isinstance(given, list) or not all(isinstance(one, Mapping) for one in given):
        raise Refused(400, 'the request has no list "inputs" of tensors with name, shape, datatype and data')
    tensors = {str(one.get("name")): _read(one) for one in given}
    names = [one["name"] for one in _inputs(model.schema)]
    if set(tensors) != set(names) or len(tensors) != len(given):
        raise UserError(f"inputs are {listed(str(one.get('name')) for one in given)}, expected {listed(names)}")
    if "columns" in model.schema["fitted"]:
        return encode({name: _flat(name, one) for name, one in tensors.items()}, model.schema)
    if takes_text(model.schema) and isinstance(tensors[names[0]], list):
        return encode(_flat(names[0], tensors[names[0]]), model.schema)
    alone = "dtype" in model.schema["inputs"]
    return encode(tensors["inputs"] if alone else tensors, model.schema)


def told_tensors(prediction: Prediction, request: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the response of the protocol to a request.

    Raises:
        UserError: if the request asks for an output that there is not.
    """
    found: dict[str, np.ndarray] = dict(prediction.values)
    if prediction.kind == "classes" and prediction.class_names and prediction.labels is not None:
        found["labels"] = prediction.labels
    asked = request.get("outputs") or [{"name": one} for one in found]
    told = asked if isinstance(asked, list) else [asked]
    names = [one["name"] for one in told if isinstance(one, Mapping) and one.get("name") in list(found)]
    if not isinstance(asked, list) or len(names) != len(asked):
        raise UserError(f"outputs are {shown(asked)}, expected a list of tensors with a name of {listed(found)}")
    kinds = {one: "BYTES" if found[one].dtype.kind == "U" else _TYPES[found[one].dtype.name] for one in names}
    outputs = [
        {
            "name": one,
            "datatype": kinds[one],
            "shape": list(found[one].shape),
            "data": np.ascontiguousarray(found[one]).reshape(-1),
        }
        for one in names
    ]
    identity = {"id": request["id"]} if isinstance(request.get("id"), str) else {}
    return {"model_name": name, "model_version": "1", **identity, "outputs": outputs}


def _inputs(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = schema["fitted"].get("columns")
    if columns is not None:
        kinds = {"number": "float64", "boolean": "bool"}
        return [_tensor(one["name"], kinds.get(one["kind"], "BYTES"), ["batch"]) for one in columns]
    if takes_text(schema):
        return [_tensor("inputs", "BYTES", ["batch"])]
    if isinstance(schema["inputs"].get("dtype"), str):
        return [_tensor("inputs", schema["inputs"]["dtype"], schema["inputs"]["shape"])]
    return [_tensor(name, one["dtype"], one["shape"]) for name, one in schema["inputs"].items() if "dtype" in one]


def _tensor(name: str, dtype: str, shape: Any) -> dict[str, Any]:
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    return {"name": name, "datatype": _TYPES.get(dtype, "BYTES"), "shape": sizes}


def _read(tensor: Mapping[str, Any]) -> Any:
    """Return a tensor as an array, of BYTES as a list."""
    name, shape, kind, data = (tensor.get(key) for key in ("name", "shape", "datatype", "data"))
    sizes = shape if isinstance(shape, list) and all(type(one) is int and one >= 0 for one in shape) else None
    if sizes is None or not isinstance(data, list) or (kind != "BYTES" and kind not in _NUMPY):
        raise Refused(400, f"the tensor {shown(name)} needs a shape, a datatype such as FP32, and data, a list")
    if kind == "BYTES":
        return data
    try:
        array = np.asarray(data)
        if array.dtype.kind not in "biuf":
            raise ValueError("it holds more than numbers")
        with np.errstate(all="ignore"):
            cast = array.astype(_NUMPY[kind])
        if cast.dtype.kind != "f" and not np.array_equal(cast, array):
            raise ValueError(f"{kind} cannot hold its values")
        return cast.reshape(sizes)
    except (ValueError, TypeError, OverflowError) as error:
        raise Refused(400, f"the tensor {shown(name)} is not {kind} {sizes}: {error}") from None


def _flat(name: str, values: Any) -> list[Any]:
    found = values.reshape(-1).tolist() if isinstance(values, np.ndarray) else values
    if not all(isinstance(one, str | int | float | None) for one in found):
        raise UserError(f"the tensor {shown(name)} holds {shown(found)}, expected numbers or text")
    return found
