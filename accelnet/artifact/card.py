"""The model card: what an artifact is, in Markdown, for whoever looks into the zip."""

from collections.abc import Mapping
from typing import Any

from accelnet.artifact.outputs import OUTPUTS
from accelnet.artifact.schema import input_words
from accelnet.characters import visible

_GIVEN = {
    "classes": "logits of classes, their probabilities, and the likeliest class",
    "labels": "logits of answers yes or no, and the probabilities of yes",
    "tokens": "logits of the next token at each step, and the likeliest token",
    "numbers": "numbers",
    "other": "the model's outputs",
}
_USE = """```python
import accelnet as an

model = an.load("model.accelnet")
model.predict(inputs)
```"""
_BARE = """```python
import io, json, zipfile
import jax, numpy as np
from jax import export

archive = zipfile.ZipFile("model.accelnet")
content = archive.read("weights.safetensors")
size = int.from_bytes(content[:8], "little")
types = {"F32": np.float32, "I32": np.int32, "U32": np.uint32, "U8": np.uint8, "BOOL": np.bool_}
weights = {
    name: np.frombuffer(content[8 + size :][slice(*one["data_offsets"])], types[one["dtype"]]).reshape(one["shape"])
    for name, one in json.loads(content[8 : 8 + size]).items()
}
program = export.deserialize(bytearray(archive.read("program.jax")))
answers = jax.jit(program.call)(weights, inputs)  # a dict of arrays, as schema.json tells
```"""


def card(schema: Mapping[str, Any], metrics: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the card of an artifact.

    Args:
        schema: What it takes and gives.
        metrics: Metrics by split, with intervals where they are known.
        config: Experiment, settings, versions and data of the run.

    Example:
        >>> schema = {"inputs": {"dtype": "float32", "shape": ["batch", 2]}, "fitted": {}, "tokenizer": None}
        >>> schema |= {
        ...     "kind": "other",
        ...     "outputs": {"outputs": {"dtype": "float32", "shape": ["batch", 1]}},
        ...     "batch": 64,
        ... }
        >>> metrics = {"step": 3, "metrics": {}, "intervals": {}}
        >>> card(schema, metrics, {"experiment": "toy", "data": "ab", "settings": {}, "versions": {}}).splitlines()[0]
        '# toy'
    """
    names = schema["fitted"].get("class_names", ())
    lines = [
        f"# {_cell(config['experiment'])}", "", f"Weights of step {metrics['step']:,}, as accelnet trained them.", "",
        "## Inputs and outputs", "", f"- Takes {input_words(schema)}.",
        f"- Gives {_GIVEN[schema['kind']]}"
        + (f", of: {', '.join(map(_cell, names))}." if names else "."),
        *_array_lines(schema["outputs"]),
    ]  # fmt: skip
    if "target" in schema["fitted"]:
        lines.append("- `numbers` are in the units of the file, and `outputs` standardized.")
    batch = schema["batch"]
    lines.append("- Any number of rows at once." if batch is None else f"- {batch} rows at once, no more and no fewer.")
    lines += ["", "## Metrics", "", *_metric_lines(metrics), "", "## Made with", ""]
    lines += [f"- {name} {version}" for name, version in config["versions"].items() if version]
    lines += [f"- data with the fingerprint {config['data']}"]
    lines += [f"- {_cell(name)}: {_cell(value)}" for name, value in config["settings"].items()]
    lines += [
        "",
        "## How to use it",
        "",
        _USE,
        "",
        "Or with jax, flatbuffers and NumPy alone, for inputs as in schema.json:",
        "",
    ]
    lines += [_BARE, ""]
    return "\n".join(lines)


def _array_lines(outputs: Mapping[str, Any]) -> list[str]:
    order = sorted(outputs, key=lambda name: name != OUTPUTS)
    return [f"- `{name}`: {outputs[name]['dtype']} [{', '.join(map(str, outputs[name]['shape']))}]" for name in order]


def _metric_lines(metrics: Mapping[str, Any]) -> list[str]:
    rows = []
    for split, found in metrics["metrics"].items():
        for name, value in found.items():
            interval = metrics["intervals"].get(split, {}).get(name)
            within = "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
            rows.append(
                f"| {_cell(split)} | {_cell(name)} | {'undefined' if value is None else f'{value:.4g}'} | {within} |"
            )
    return ["| split | metric | value | 95 % interval |", "|---|---|---|---|", *rows] if rows else ["None were kept."]


def _cell(value: Any) -> str:
    text = visible(str(value)).replace("\n", " ")
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text)
