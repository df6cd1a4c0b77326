"""The examples with the largest losses, to look at."""

from typing import Any

import numpy as np

from accelnet.data.dataset import Data
from accelnet.data.encoding import undo_target
from accelnet.data.glance.examples import shown_inputs
from accelnet.evaluating.classes import class_names
from accelnet.evaluating.predictions import Predictions
from accelnet.report.numbers import number, percent

NUM_WORST = 24


def worst_predicted(data: Data, predictions: Predictions, num_examples: int = NUM_WORST) -> list[dict[str, Any]]:
    """Return the examples with the largest losses, those first.

    Args:
        data: Data set of the examples.
        predictions: Predictions of a split.
        num_examples: Largest number of examples.

    Returns:
        For each "row" (of the data's arrays), "loss", "target" and "predicted" (in words), and the input, as
        `shown_inputs` gives it.
    """
    losses = predictions.example_losses
    order = np.argsort(-losses, kind="stable")[:num_examples]
    inputs = data.raw(np.array([predictions.rows[index] for index in order.tolist()], np.int64))["inputs"]
    return [
        {"row": predictions.rows[index], "loss": float(losses[index])}
        | _answers(data, predictions, index)
        | shown_inputs(data, inputs, place)
        for place, index in enumerate(order.tolist())
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
