"""The directory of a search: which run it is of, and the trainings that are finished."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from accelnet.artifact.recipe import flattened
from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.json_file import plain_value, read_json
from accelnet.training.run import Run

_SEARCH, _TRAINING = "search.json", "training.json"


class SearchStore:
    """Keep what a search has done, so that the same call does none of it again.

    Args:
        directory: Directory of the search. None: nothing is kept.

    Example:
        >>> SearchStore(None).folder("widths 1/2") is None
        True
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory

    def claim(self, original: Run) -> None:
        """Begin the search of a run, or go on with it.

        Raises:
            UserError: if the directory is of another run.
        """
        if self.directory is None:
            return
        path, now = self.directory / _SEARCH, {"experiment": original.experiment.name, "weights": _digest(original)}
        shape = {"experiment": str, "weights": str}
        before = read_json(path, "a search for smaller networks", shape, "give another directory as --out")
        if before is not None and before != now:
            differs = "experiment" if before["experiment"] != now["experiment"] else "weights"
            raise UserError(
                f"{self.directory} holds smaller networks of another run (its {differs} are others): give another "
                "directory as --out"
            )
        if before is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(now, indent=1) + "\n")

    def folder(self, name: str) -> Path | None:
        """Return the work directory of a training; None where nothing is kept."""
        return None if self.directory is None else self.directory / re.sub(r"[^\w=,+. ]", "-", name)

    def read(self, name: str) -> dict[str, Any]:
        """Return what is known of a training: "rate" when that was found, "seconds" when it is finished."""
        folder = self.folder(name)
        if folder is None:
            return {}
        shape = {"rate?": dict, "seconds?": float}
        advice = f"remove {folder}, and the training is done again"
        return read_json(folder / _TRAINING, "a training of the search", shape, advice) or {}

    def write(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep what is known of a training."""
        folder = self.folder(name)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / _TRAINING, json.dumps(plain_value(values), indent=1) + "\n")


def _digest(run: Run) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, one in sorted(flattened(jax.device_get((run.params, run.model_state))).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(np.asarray(one)).tobytes())
    return digest.hexdigest()
