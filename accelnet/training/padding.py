"""Whether padding can be taken out of a loss, which its mask then does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.data.dataset import Data
from accelnet.errors import UserCodeError, user_code
from accelnet.models.pure import PureModel
from accelnet.objectives.objective import Objective
from accelnet.signature import described, wants


def sample_batch(data: Data, rows: int) -> Any:
    """Return a prepared batch of zeros with this number of rows; only shapes and dtypes matter."""
    batch = jax.tree.map(
        lambda a: jnp.zeros((rows, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype)), dict(data.arrays)
    )
    batch |= {"mask": jnp.ones((rows,), bool)}
    with user_code("prepare", described([batch])):
        return data.prepare(batch)


def couples_padding(data: Data, objective: Objective, model: Callable[[], PureModel]) -> bool:
    """Say whether padding cannot be taken out of the loss: one number for a batch, or losses that see other examples.

    A loss that asks for `mask` applies it itself. Whether the loss of an example depends on the others is found by
    its effect, on random outputs. A loss that also asks for the model, its params or sown values is trusted.

    Args:
        data: Data set.
        objective: Objective with the loss.
        model: Function that returns the model; it is called only where the loss has to be tried.
    """
    asked = wants(objective.loss).names
    if "mask" in asked or (getattr(objective.loss, "__module__", "") or "").startswith("accelnet."):
        return False
    outputs, loss = jax.eval_shape(lambda: _sample_loss(data, objective, model()))
    if loss.ndim == 0:
        return True
    try:
        with jax.ensure_compile_time_eval():
            return not asked & {"model", "params", "sown"} and _sees_others(data, objective, outputs)
    except (UserCodeError, jax.errors.JAXTypeError):
        # It fails, which the step will say, with the shapes that it has there; or it closes over traced numbers.
        return False


def _sees_others(data: Data, objective: Objective, like: Any) -> bool:
    rng = np.random.default_rng(0)
    rows = data.splits["train"][: len(jax.tree.leaves(like)[0])]
    batch = data.prepare({**data.take(np.array(rows)), "mask": np.ones(len(rows), bool)})
    given = {"key": jax.random.key(0), "step": jnp.int32(0), "progress": jnp.float32(0)}

    def drawn(leaf: Any) -> Any:
        both = rng.normal(size=(2, *leaf.shape)).astype(np.float32)
        both[1, :-1] = both[0, :-1]  # the last example alone differs
        return jnp.asarray(both, leaf.dtype)

    outputs = jax.tree.map(drawn, like)
    losses = jax.jit(jax.vmap(lambda one: objective.raw(one, batch, {**given, "train": True})[0]))(outputs)
    first, second = np.asarray(losses)[:, : len(rows) - 1]
    return not np.allclose(first, second, rtol=1e-4, atol=1e-6, equal_nan=True)


def _sample_loss(data: Data, objective: Objective, pure: PureModel) -> tuple[Any, jax.Array]:
    """Compute outputs and loss of a few examples of zeros in training; only their shapes matter."""
    key, batch = jax.random.key(0), sample_batch(data, min(4, data.num_examples("train")))
    given = {"step": jnp.int32(0), "progress": jnp.float32(0)}
    params, state = pure.init(key, batch["inputs"])

    def model(inputs: Any, *, params: Any = params, train: bool = True, method: str | None = None) -> Any:
        return pure.apply(params, state, inputs, key=key, train=train, method=method, **given)[0]

    outputs, _, sown = pure.apply(params, state, batch["inputs"], key=key, train=True, sown=True, **given)
    offered = {"model": model, "params": params, "key": key, "train": True, "sown": sown, **given}
    return outputs, objective.raw(outputs, batch, offered)[0]
