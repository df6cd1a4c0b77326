"""Metrics of predicted text: bits per character at each position, and samples of what the model writes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.evaluating.predictions import Predictions
from accelnet.models.precision import with_precision
from accelnet.training.run import Run

_SAMPLES = ((0.7, 0), (0.7, 1), (1.0, 2))  # temperature and seed
_SAMPLED_CHARACTERS = 300


def describe_tokens(run: Run, predictions: Predictions) -> dict[str, Any]:
    """Describe predictions of the next token at each of T steps.

    Args:
        run: Run that made them.
        predictions: Predictions of windows of tokens.

    Returns:
        "bits_by_position", the mean loss in bits at each step of a window, and, for text, "samples": each with
        "temperature", "beginning" and "text".
    """
    losses, weights = predictions.losses, predictions.weights
    with np.errstate(invalid="ignore"):
        by_position = np.sum(losses * weights, axis=0) / np.sum(weights, axis=0) / math.log(2)
    described: dict[str, Any] = {"bits_by_position": by_position.tolist()}
    if {"vocabulary", "tokenizer"} & set(run.experiment.data.info):
        spread = np.linspace(predictions.rows[0], predictions.rows[-1], len(_SAMPLES)).astype(int).tolist()
        described["samples"] = [
            {"temperature": temperature, **continuation(run, temperature=temperature, seed=seed, row=row)}
            for (temperature, seed), row in zip(_SAMPLES, spread, strict=True)
        ]
    return described


def continuation(
    run: Run,
    num_characters: int = _SAMPLED_CHARACTERS,
    *,
    temperature: float = 0.7,
    seed: int = 0,
    row: int | None = None,
) -> dict[str, str]:
    """Continue a window of the data with characters that are drawn from the model's predictions, one after the other.

    p(c) = softmax(logits / temperature)_c

    Args:
        run: Run of an experiment on `accelnet.data.text`, whose model maps tokens [B, T] to logits [B, T, V].
        num_characters: Number of characters to draw.
        temperature: Above 0; 1 draws from the model's own distribution, less draws likelier characters more often.
        seed: Seed of the draws.
        row: Row of the data's arrays with the window. None: the first of the test split.

    Returns:
        "beginning", the window, and "text", the drawn characters.
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
    return {"beginning": data.decode(np.asarray(tokens[0])), "text": data.decode(np.asarray(drawn))}
