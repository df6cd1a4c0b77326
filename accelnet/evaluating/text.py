"""What can be said of predicted text: bits per character, where they go, and what the model writes itself."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.data.vocabulary import decode
from accelnet.evaluating.predictions import Predictions
from accelnet.training.forward import with_precision
from accelnet.training.run import Run

_SAMPLES = ((0.7, 0), (0.7, 1), (1.0, 2))  # temperature and seed
_SAMPLED_CHARACTERS = 300


def describe_tokens(run: Run, predictions: Predictions) -> dict[str, Any]:
    """Describe predictions of the next token at each of T steps.

    Args:
        run: that made them.
        predictions: of windows of tokens.

    Returns:
        "bits_by_position": the mean loss in bits at each step of a window, and, of text, "samples": each with
        "temperature", "beginning" and "text".
    """
    losses, weights = predictions.losses, predictions.weights
    with np.errstate(invalid="ignore"):
        by_position = np.sum(losses * weights, axis=0) / np.sum(weights, axis=0) / math.log(2)
    described: dict[str, Any] = {"bits_by_position": by_position.tolist()}
    if "vocabulary" in run.experiment.data.info:
        described["samples"] = [
            {"temperature": temperature, **continuation(run, temperature=temperature, seed=seed, row=row)}
            for (temperature, seed), row in zip(_SAMPLES, _spread(predictions.rows), strict=True)
        ]
    return described


def _spread(rows: range) -> list[int]:
    return [rows[index * (len(rows) - 1) // max(1, len(_SAMPLES) - 1)] for index in range(len(_SAMPLES))]


def continuation(
    run: Run,
    num_characters: int = _SAMPLED_CHARACTERS,
    *,
    temperature: float = 0.7,
    seed: int = 0,
    row: int | None = None,
) -> dict[str, str]:
    """Let a model of characters go on from a window of its data, drawing each from the last window.

    p(c) = softmax(logits / temperature)_c

    Args:
        run: of an experiment on `accelnet.data.text`, whose model maps tokens [B, T] to logits [B, T, V].
        num_characters: to draw.
        temperature: above 0; 1 draws from the model's own distribution, less draws likelier characters more often.
        seed: of the draws.
        row: of the data's arrays, where the beginning is. None: the first of the test split.

    Returns:
        "beginning", the window, and "text", what was drawn.
    """
    data = run.experiment.data
    apply = with_precision(run.experiment.pure_model.apply, run.experiment.precision)
    row = data.splits["test"].start if row is None else row
    tokens = jnp.asarray(data.arrays["inputs"][row : row + 1], jnp.int32)

    def text(params: Any, model_state: Any, tokens: jax.Array, keys: jax.Array) -> jax.Array:
        def draw(tokens: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits, _ = apply(params, model_state, tokens, key=key, train=False)
            token = jax.random.categorical(key, logits[:, -1].astype(jnp.float32) / temperature).astype(jnp.int32)
            return jnp.concatenate([tokens[:, 1:], token[:, None]], axis=1), token[0]

        return jax.lax.scan(draw, tokens, keys)[1]

    keys = jax.random.split(jax.random.key(seed), num_characters)
    drawn = jax.jit(text)(run.params, run.model_state, tokens, keys)
    vocabulary = data.info["vocabulary"]
    return {"beginning": decode(tokens[0], vocabulary), "text": decode(drawn, vocabulary)}
