"""The model's forward pass with less kept for the backward pass, and again from a loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from accelnet.ops import kernels
from accelnet.training.settings import Remat

Tree = Any

# Primitives, and names given by `checkpoint_name`, whose results are dear to compute again; all else is recomputed
# under remat="products". A custom gradient hides the primitives of accelnet's own operations: these have names.
_PRODUCTS = ("dot_general", "conv_general_dilated", kernels.NAME)
_PRODUCT_NAMES = ("product", "block")


def with_remat(function: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """Keep less for the backward pass and compute it again there.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
    """
    if remat == "none":
        return function
    if remat == "products":
        named = jax.checkpoint_policies.save_only_these_names(*_PRODUCT_NAMES)

        def policy(primitive: Any, *args: Any, **params: Any) -> bool:
            return primitive.name in _PRODUCTS or named(primitive, *args, **params)

    else:
        policy = jax.checkpoint_policies.save_only_these_names("block")
    return jax.checkpoint(function, policy=policy)


@dataclass
class BoundModel:
    """The model as a loss can call it again: pure, differentiable, with noise of its own in every call.

    Args:
        apply: Function of the model, in the run's precision.
        params: Parameters of a call that gives none, nested dict.
        model_state: State of the model, nested dict. What a call changes of it is dropped.
        key: Key of the noise.
        train: Mode of a call that gives none.
        settings: Arguments of `apply` that are the same in every call.
        calls: Number of calls so far.

    Example:
        >>> model = BoundModel(lambda params, state, x, **_: (params * x, state), 2.0, {}, jax.random.key(0), False)
        >>> float(model(3.0)), float(jax.grad(model)(3.0))
        (6.0, 2.0)
    """

    apply: Callable[..., Any]
    params: Tree
    model_state: Tree
    key: jax.Array
    train: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 0

    def __call__(
        self, inputs: Any, *, params: Tree = None, train: bool | None = None, method: str | None = None
    ) -> Any:
        """Compute outputs of inputs, prepared ones: with other params, in another mode, or by another method."""
        self.calls += 1
        outputs, _ = self.apply(
            self.params if params is None else params,
            self.model_state,
            inputs,
            key=jax.random.fold_in(self.key, self.calls),
            train=self.train if train is None else train,
            method=method,
            **self.settings,
        )
        return outputs
