"""The entries of an artifact, and what is written into them."""

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from accelnet.artifact.bundle import write_bundle
from accelnet.artifact.card import card
from accelnet.json_file import plain_value

WEIGHTS, PROGRAM = "weights.safetensors", "program.jax"
SUFFIX = ".accelnet"


def versions() -> dict[str, str]:
    """Return the versions of the packages that make a program.

    Example:
        >>> sorted(versions())
        ['accelnet', 'flax', 'jax', 'numpy']
    """
    return {name: metadata.version(name) for name in ("accelnet", "jax", "flax", "numpy")}


def write_entries(
    path: Path,
    weights: bytes,
    program: bytes,
    schema: Mapping[str, Any],
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    recipe: Mapping[str, Any],
) -> None:
    """Write the entries of an artifact, and a card.

    Raises:
        UserError: if they cannot be written.
    """
    parts = {"schema": schema, "metrics": metrics, "config": config, "model": recipe}
    parts = {name: plain_value(part) for name, part in parts.items()}
    entries = {f"{name}.json": (json.dumps(part, indent=1) + "\n").encode() for name, part in parts.items()}
    told = card(parts["schema"], parts["metrics"], parts["config"]).encode()
    write_bundle(
        path, {"README.md": told, **entries, PROGRAM: program, WEIGHTS: weights}, config["versions"]["accelnet"]
    )
