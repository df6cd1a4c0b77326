"""The pages of a server: one to try its model with, and one that tells how programs ask it."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from accelnet.artifact.model import Model
from accelnet.artifact.schema import input_words
from accelnet.report.document import document
from accelnet.report.markup import Markup, joined, section, table, tag
from accelnet.serving.example import example, kind_of_rows
from accelnet.serving.openapi import ROUTES

_STYLE = """
form{display:grid;gap:.9rem;max-width:38rem}.fields{display:grid;gap:.9rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,14rem),1fr))}label{display:grid;gap:.25rem;font-weight:600}
input,select,textarea,button{font:inherit;font-weight:400;padding:.5em .65em;color:var(--ink);background:var(--card);
border:1px solid var(--line);border-radius:.4rem;min-width:0;max-width:100%}textarea{min-height:9rem;
font:.9rem/1.4 ui-monospace,monospace}button{justify-self:start;background:#0072b2;color:#fff;border-color:#0072b2;
font-weight:600;cursor:pointer}button:disabled{opacity:.6}#preview{max-width:16rem;image-rendering:auto}
#answer{margin-top:1.5rem;min-height:6rem}#answer strong{font-size:1.4rem}.share{display:grid;gap:.1rem .8rem;
grid-template-columns:minmax(5rem,max-content) 1fr max-content;align-items:center;max-width:38rem;margin-top:.6rem}
.share div{height:.8rem;background:#0072b2;border-radius:.2rem;min-width:1px}pre{overflow-x:auto;padding:.75rem;
background:var(--card);border-radius:.5rem}a{color:inherit}
"""
_MOST_CHOICES = 200
_ASKED = (
    "One row gives one object, a list of rows an object with the list “predictions”. SERVER stands for the address, "
    "such as http://127.0.0.1:8000."
)
_ERRORS = (
    "An error is an object with one message: 400 what cannot be read, 422 what the model does not take, 413 too large, "
    "503 too much at once, 504 too late."
)


def trying(model: Model) -> bytes:
    """Return the page with a form for one row."""
    schema, name = model.schema, model.config["experiment"]
    fields = {
        "table": lambda: _column_fields(schema["fitted"]["columns"]),
        "picture": lambda: [
            tag("label", "Picture", tag("input", type="file", name_="file", accept="image/*", required="required")),
            tag("img", id="preview", alt="", hidden="hidden"),
        ],
        "text": lambda: [tag("label", "Text", tag("textarea", name_="text", required="required"))],
    }
    kind = kind_of_rows(schema)
    made = fields.get(kind, lambda: _array_fields(schema))()
    form = tag(
        "form",
        tag("div", *made, class_="fields" if kind == "table" else "whole"),
        tag("button", "Predict", type="submit"),
        id="try",
        data_kind="array" if kind == "arrays" else kind,
    )
    body = [
        tag("h1", name),
        tag("p", f"Takes {input_words(schema)}."),
        form,
        tag("div", id="answer", role="status", aria_live="polite"),
        tag("p", tag("a", "How programs ask this server", href="/docs")),
    ]
    script = files("accelnet.serving").joinpath("try.js").read_text(encoding="utf-8")
    return document(name, body, _STYLE, script).encode()


def _column_fields(columns: Sequence[Mapping[str, Any]]) -> list[Markup]:
    return [tag("label", one["name"], _column_field(one)) for one in columns]


def _column_field(column: Mapping[str, Any]) -> Markup:
    name, kind = column["name"], column["kind"]
    needed = {} if "fill" in column or column.get("flag") or column.get("ignore") else {"required": "required"}
    if kind == "number":
        return tag("input", type="number", step="any", name_=name, data_type="number", **needed)
    if kind == "time":
        return tag("input", type="text", name_=name, placeholder="2024-03-31 12:00:00", **needed)
    names = ("true", "false") if kind == "boolean" else column["names"]
    if len(names) > _MOST_CHOICES:
        return tag("input", type="text", name_=name, **needed)
    options = [tag("option", one, value=one) for one in names]
    return tag("select", *([] if needed else [tag("option", "(missing)", value="")]), *options, name_=name)


def _array_fields(schema: Mapping[str, Any]) -> list[Markup]:
    found = example(schema)
    text = tag("textarea", "" if found is None else json.dumps(found), name_="json", spellcheck="false")
    fields = [tag("label", "JSON", text)]
    if kind_of_rows(schema) == "array":
        fields.append(tag("label", "or an .npy file", tag("input", type="file", name_="file", accept=".npy")))
    return fields


def documentation(model: Model, name: str) -> bytes:
    """Return the page that tells how programs ask the server."""
    routes = [(f"{one.method.upper()} {one.path.format(name=name)}", one.text) for one in ROUTES]
    schema, row = model.schema, example(model.schema)
    calls = []
    if row is not None:
        calls.append(_call(f"-d {_quoted(json.dumps(row))}"))
        calls.append(_call(f"-d {_quoted(json.dumps([row, row]))}"))
    if kind_of_rows(schema) == "picture":
        calls += [_call("--data-binary @picture.png -H 'content-type: image/png'"), _call("-F a=@1.png -F b=@2.png")]
    if kind_of_rows(schema) in ("array", "picture"):
        calls.append(_call("--data-binary @rows.npy"))
    if kind_of_rows(schema) == "arrays":
        calls.append(_call(" ".join(f"-F {key}=@{key}.npy" for key in schema["inputs"])))
    shapes = [(key, one["dtype"], f"[{', '.join(map(str, one['shape']))}]") for key, one in schema["outputs"].items()]
    body = [
        tag("h1", f"Asking {model.config['experiment']}"),
        tag("p", f"Takes {input_words(schema)}; gives {schema['kind']}."),
        section("Routes", table("What there is", ["route", "what it does"], routes, words=[1])),
        section(
            "Predict",
            tag("p", _ASKED),
            *calls,
            tag("p", _ERRORS),
        ),
        section("The model's own outputs", table("By the protocol", ["name", "type", "shape"], shapes)),
        tag("p", joined(tag("a", "openapi.json", href="/openapi.json"), " ", tag("a", "Try it", href="/"))),
    ]  # fmt: skip
    return document(f"Asking {name}", body, _STYLE).encode()


def _call(arguments: str) -> Markup:
    return tag("pre", f"curl $SERVER/predict {arguments}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
