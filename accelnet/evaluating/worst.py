"""The examples that a run predicts worst, to look at."""

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet.data.dataset import Data
from accelnet.data.encoding import undo_target
from accelnet.data.vocabulary import decode
from accelnet.evaluating.classes import class_names
from accelnet.evaluating.predictions import Predictions
from accelnet.report.numbers import number, percent

NUM_WORST = 24
_LEAST_PIXELS = 5  # of height and width: smaller arrays are tables


def worst_predicted(data: Data, predictions: Predictions, num_examples: int = NUM_WORST) -> list[dict[str, Any]]:
    """Return the examples with the largest losses, those first.

    Args:
        data: whose examples they are.
        predictions: of a split.
        num_examples: at most.

    Returns:
        For each "row" (of the data's arrays), "loss", "target" and "predicted" (in words), and what it is: "picture",
        a PNG as a data URI, of images; "text" of characters; "inputs", by name, of a table.
    """
    losses = predictions.example_losses
    order = np.argsort(-losses, kind="stable")[:num_examples]
    return [
        {"row": predictions.rows[index], "loss": float(losses[index])}
        | _answers(data, predictions, index)
        | _shown(data, predictions.rows[index])
        for index in map(int, order)
    ]


def _answers(data: Data, predictions: Predictions, index: int) -> dict[str, str]:
    from scipy.special import expit, softmax

    outputs, target = predictions.outputs, predictions.targets[index]
    if outputs is None:
        return {}
    output = outputs[index]
    if predictions.kind == "classes":
        if np.ndim(target):
            return {}
        names, sure = class_names(data.info, len(output)), softmax(output.astype(np.float64))
        return {
            name: f"{names[index]} ({percent(sure[index])})"
            for name, index in (("target", int(target)), ("predicted", int(output.argmax())))
        }
    target = np.ravel(target)
    if predictions.kind == "labels":
        return {
            "target": ", ".join(number(float(value)) for value in target),
            "predicted": ", ".join(percent(share) for share in expit(output.astype(np.float64))),
        }
    if "target" in data.info:
        target, output = (undo_target(values, data.info["target"]) for values in (target, output))
    return {
        name: ", ".join(number(float(value)) for value in values)
        for name, values in (("target", target), ("predicted", output))
    }


def _shown(data: Data, row: int) -> dict[str, Any]:
    inputs = data.arrays["inputs"]
    if isinstance(inputs, Mapping):
        return {}
    if is_images(inputs):
        return {"picture": picture(np.asarray(inputs[row]))}
    if "vocabulary" in data.info:
        return {"text": decode(inputs[row], data.info["vocabulary"])}
    names = data.info.get("input_names", ())
    if inputs.ndim == 2 and len(names) == inputs.shape[1]:
        values = data.raw(np.array([row]))["inputs"][0]
        return {"inputs": {name: float(value) for name, value in zip(names, values, strict=True)}}
    return {}


def is_images(inputs: np.ndarray) -> bool:
    """Say whether inputs are pictures: [N, height, width, 1 or 3], or bytes [N, height, width]."""
    shape = inputs.shape[1:]
    channels = len(shape) == 3 and shape[2] in (1, 3)
    grey = len(shape) == 2 and inputs.dtype == np.uint8
    return (channels or grey) and min(shape[:2]) >= _LEAST_PIXELS


def picture(pixels: np.ndarray) -> str:
    """Return an image [height, width], [.., 1] or [.., 3] as a PNG in a data URI, from its least to its largest value.

    Example:
        >>> picture(np.eye(8))[:22]
        'data:image/png;base64,'
    """
    from matplotlib.image import imsave

    pixels = pixels.astype(np.float64)
    low, high = pixels.min(), pixels.max()
    pixels = (pixels - low) / ((high - low) or 1.0)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    # Small ones are made larger here: not every browser keeps the edges of pixels that it enlarges itself.
    factor = max(1, math.ceil(64 / max(pixels.shape[:2])))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    file = io.BytesIO()
    imsave(file, pixels, format="png", cmap="gray", vmin=0, vmax=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
