"""The examples with the largest losses, to look at."""

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet.data.dataset import Data
from accelnet.data.encoding import undo_target
from accelnet.evaluating.classes import class_names
from accelnet.evaluating.predictions import Predictions
from accelnet.report.numbers import number, percent

NUM_WORST = 24
_LEAST_PIXELS = 5  # of height and width: smaller arrays are tables


def worst_predicted(data: Data, predictions: Predictions, num_examples: int = NUM_WORST) -> list[dict[str, Any]]:
    """Return the examples with the largest losses, those first.

    Args:
        data: Data set of the examples.
        predictions: Predictions of a split.
        num_examples: Largest number of examples.

    Returns:
        For each "row" (of the data's arrays), "loss", "target" and "predicted" (in words), and the input: "picture", a
        PNG as a data URI, of an image; "text" of characters; "inputs", by name, of a row of a table.
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
    """Return "target" and "predicted" of an example in words, nothing where there are none."""
    from scipy.special import expit, softmax

    kind, target = predictions.kind, predictions.targets[index]
    if predictions.outputs is None or (kind == "classes" and np.ndim(target)):
        return {}
    output = predictions.outputs[index]
    if kind == "classes":
        names, sure = class_names(data.info, len(output)), softmax(output.astype(np.float64))
        words = [[f"{names[c]} ({percent(sure[c])})"] for c in (int(target), int(output.argmax()))]
    elif kind == "labels":
        words = [map(number, np.ravel(target).tolist()), map(percent, expit(output.astype(np.float64)))]
    else:
        answers = [np.ravel(target), output]
        if "target" in data.info:
            answers = [undo_target(values, data.info["target"]) for values in answers]
        words = [map(number, values.tolist()) for values in answers]
    return {name: ", ".join(one) for name, one in zip(("target", "predicted"), words, strict=True)}


def _shown(data: Data, row: int) -> dict[str, Any]:
    inputs = data.arrays["inputs"]
    if isinstance(inputs, Mapping):
        return {}
    if is_images(inputs):
        return {"picture": picture(np.asarray(inputs[row]))}
    if {"vocabulary", "tokenizer"} & set(data.info):
        return {"text": data.decode(inputs[row])}
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
