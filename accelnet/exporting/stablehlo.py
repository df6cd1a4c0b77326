"""A model as StableHLO: text, portable bytecode, and jax's own file.

Weights are arguments, in a file of their own: the text stays short enough to read and to compare, no weight is written
three times, and whoever compiles the program decides where weights lie. The program is that of the artifact, for CPU,
CUDA and TPU at once; its first argument is the number of the platform, where that makes a difference.
"""

from typing import Any

import jax
from jax import export
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

from accelnet.artifact.schema import described_arrays
from accelnet.errors import UserError

TEXT, BYTECODE, PROGRAM, ARGUMENTS = "model.mlir", "model.mlirbc", "model.jax", "model.mlir.json"
FILES = (TEXT, BYTECODE, PROGRAM, ARGUMENTS)


def to_stablehlo(exported: export.Exported) -> dict[str, bytes | dict[str, Any]]:
    """Return the files of a program: text, bytecode, jax's own, and what its arguments and results are.

    Args:
        exported: Program of weights by name and inputs.

    Returns:
        Contents by name of the file; that of the JSON file as values.
    """
    bytecode = exported.mlir_module_serialized
    with mlir.make_ir_context() as context:
        text = str(stablehlo.deserialize_portable_artifact(context, bytecode))
        if str(ir.Module.parse(text)) != text:
            raise UserError("the StableHLO text of the model cannot be read back: export it to artifact instead")
    return {
        TEXT: text.encode(),
        BYTECODE: bytecode,
        PROGRAM: bytes(exported.serialize(vjp_order=0)),
        ARGUMENTS: described_program(exported),
    }


def described_program(exported: export.Exported) -> dict[str, Any]:
    """Return the arguments and results of a program in the order of its main function, as plain values.

    Args:
        exported: The program.
    """
    (weights, inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    given = _named(weights, "") + _named(inputs, "inputs")
    kept = [given[number] for number in exported.module_kept_var_idx]
    platforms = {name: number for number, name in enumerate(exported.platforms)}
    first = [] if len(platforms) == 1 else [{"name": "platform", "dtype": "int32", "shape": [], "values": platforms}]
    results = _named(jax.tree.unflatten(exported.out_tree, exported.out_avals), "")
    return {"arguments": first + kept, "results": results}


def _named(tree: Any, name: str) -> list[dict[str, Any]]:
    """Describe the arrays of nested dicts, in jax's order, by their names joined with dots."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [
        {"name": ".".join(filter(None, (name, *(str(key.key) for key in path)))), **described_arrays(leaf)}
        for path, leaf in leaves
    ]
