"""The interface of a server as OpenAPI describes it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from accelnet.artifact.model import Model
from accelnet.artifact.schema import input_words
from accelnet.serving.example import example, kind_of_rows

_ANY: Mapping[str, Any] = {}
_BYTES = {"type": "string", "format": "binary"}


class Route(NamedTuple):
    """Describe a route.

    Attributes:
        method: "get" or "post".
        path: Path, with the name of the model as {name}.
        text: What it does.
        kind: Content type of the answer.
    """

    method: str
    path: str
    text: str
    kind: str = "application/json"


ROUTES = (
    Route("post", "/predict", "Predict from one row or several: JSON, a picture, an .npy file, or a form of files"),
    Route("get", "/health", "Say whether the server runs"),
    Route("get", "/ready", "Say whether all shapes are compiled: 200, or 503 before that"),
    Route("get", "/metrics", "Requests, times, batches and the queue, for Prometheus", "text/plain"),
    Route("get", "/v2", "Name the server (Open Inference Protocol)"),
    Route("get", "/v2/health/live", "Say whether the server runs"),
    Route("get", "/v2/health/ready", "Say whether it is ready"),
    Route("get", "/v2/models/{name}", "Describe the model's tensors"),
    Route("get", "/v2/models/{name}/ready", "Say whether the model is ready"),
    Route("post", "/v2/models/{name}/infer", "Predict from tensors in JSON"),
)


def documented(model: Model, name: str) -> dict[str, Any]:
    """Return the description of a server's interface, OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for route in ROUTES:
        path = route.path.format(name=name)
        entry: dict[str, Any] = {"summary": route.text, "responses": _responses(route)}
        if route.method == "post":
            entry["requestBody"] = {"required": True, "content": _contents(model, route)}
        paths.setdefault(path, {})[route.method] = entry
    return {
        "openapi": "3.1.0",
        "info": {
            "title": model.config["experiment"],
            "version": model.config["versions"]["accelnet"],
            "description": f"Takes {input_words(model.schema)}; gives {model.schema['kind']}.",
        },
        "paths": paths,
    }


def _contents(model: Model, route: Route) -> dict[str, Any]:
    if route.path != "/predict":
        return {"application/json": {"schema": {"type": "object", "required": ["inputs"]}}}
    row = example(model.schema)
    found: dict[str, Any] = {"application/json": {"schema": _ANY, **({} if row is None else {"example": row})}}
    kind = kind_of_rows(model.schema)
    if kind == "picture":
        found["image/*"] = {"schema": _BYTES}
    if kind in ("picture", "array"):
        found["application/octet-stream"] = {"schema": _BYTES}
    if kind in ("picture", "array", "arrays"):
        found["multipart/form-data"] = {"schema": {"type": "object", "additionalProperties": _BYTES}}
    return found


def _responses(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = {"200": {"description": "Done", "content": {route.kind: {"schema": _ANY}}}}
    if route.method == "post":
        texts = {
            "400": "It cannot be read",
            "408": "It came too slowly",
            "413": "It is too large",
            "415": "It is compressed",
            "422": "The model does not take it",
            "503": "Too much at once, or not ready yet",
            "504": "Too late",
        }
        error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
        content = {"application/json": {"schema": error}}
        found |= {status: {"description": text, "content": content} for status, text in texts.items()}
    return found
