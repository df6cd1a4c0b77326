"""The program of an artifact: from encoded inputs to answers, for any platform and batch, in JAX's own format."""

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend.mlir import passmanager
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

from accelnet.artifact.outputs import answered, kind_of
from accelnet.errors import UserCodeError, UserError

if TYPE_CHECKING:
    from accelnet.models.precision import Precision

PLATFORMS = ("cpu", "cuda", "tpu")
BATCH, STEPS = "batch", "steps"
# The batch of a program whose model cannot be traced without knowing it.
_FIXED_BATCH = 64
Weights = Mapping[str, Any]
Shape = tuple[Any, ...]


class NotAccelnetsError(Exception):
    """Report that a model or `prepare` is not accelnet's own, was made with what JSON cannot hold, or lacks Flax."""


@dataclasses.dataclass(frozen=True)
class Forward:
    """The way from encoded inputs to outputs, by functions of accelnet or of the user's.

    Args:
        apply: `apply` of a `PureModel`.
        unflatten: Function from weights by name to the model's params and state.
        prepare: Function of a batch, as of `Data`.
        others: Shapes [N, ...] of a batch beside its inputs, which are zeros here: targets.
        precision: That of the run.
        step: Updates made.
        progress: Share of the run that is done.
    """

    apply: Callable[..., Any]
    unflatten: Callable[[Weights], tuple[Any, Any]]
    prepare: Callable[..., Any]
    others: Mapping[str, Any]
    precision: "Precision"
    step: int
    progress: float

    def __call__(self, weights: Weights, inputs: Any) -> Any:
        """Compute outputs of inputs, arrays [B, ...] as the data holds them."""
        from accelnet.models.precision import with_precision

        size = jax.tree.leaves(inputs)[0].shape[0]

        def zeros(like: Any) -> jax.Array:
            return jnp.zeros((size, *like.shape[1:]), jax.dtypes.canonicalize_dtype(like.dtype))

        batch = {**jax.tree.map(zeros, dict(self.others)), "inputs": inputs, "mask": jnp.ones((size,), bool)}
        offered = {"step": jnp.int32(self.step), "progress": jnp.float32(self.progress)}
        apply, (params, state) = with_precision(self.apply, self.precision), self.unflatten(weights)
        inputs = self.prepare(batch)["inputs"]
        return apply(params, state, inputs, key=jax.random.key(0), train=False, **offered)[0]

    def answer(self, task: str, target: Mapping[str, Any] | None) -> Callable[[Weights, Any], dict[str, jax.Array]]:
        """Return the function from weights and inputs to answers."""

        def answer(weights: Weights, inputs: Any) -> dict[str, jax.Array]:
            outputs = self(weights, inputs)
            return answered(kind_of(task, outputs), outputs, target)

        return answer


def export_answer(
    answer: Callable[[Weights, Any], Any], weights: Weights, held: Any, with_steps: bool
) -> export.Exported:
    """Export a function for any batch, and any number of steps; where it cannot be traced so, for a batch of 64.

    Args:
        answer: Function of weights and inputs.
        weights: Weights by name, or their shapes.
        held: Shapes [N, ...] of inputs.
        with_steps: Whether the second axis of inputs, where they have one, counts the steps of sequences.

    Raises:
        UserError: if jax cannot export it, with the reason.

    Example:
        >>> like = jax.ShapeDtypeStruct((5, 2), np.float32)
        >>> exported = export_answer(lambda weights, x: x * weights["w"], {"w": np.float32(3)}, like, False)
        >>> [str(aval.shape) for aval in exported.in_avals]
        ['()', '(batch, 2)']
    """
    shapes = {name: jax.ShapeDtypeStruct(np.shape(one), one.dtype) for name, one in weights.items()}
    failed: Exception | None = None
    for batch, steps in [(BATCH, STEPS)] * with_steps + [(BATCH, None), (_FIXED_BATCH, None)]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tries that fail; the run has shown the model's own
                found = export.export(jax.jit(answer), platforms=PLATFORMS)(shapes, _symbolic(held, batch, steps))
            return _without_places(found)
        except Exception as error:  # noqa: BLE001, whatever a model or jax makes of a size that is not known
            failed = error
    reason = failed.error if isinstance(failed, UserCodeError) else failed
    text = str(reason).strip().partition("\n")[0] or type(reason).__name__
    raise UserError(f"the model cannot be exported: {text}") from failed


def reexport(exported: export.Exported) -> export.Exported:
    """Export an exported program again, by this version of jax.

    Example:
        >>> like = jax.ShapeDtypeStruct((5, 2), np.float32)
        >>> exported = export_answer(lambda weights, x: x * weights["w"], {"w": np.float32(3)}, like, False)
        >>> str(reexport(exported).in_avals[1].shape)
        '(batch, 2)'
    """
    args, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    shapes = jax.tree.map(lambda aval: jax.ShapeDtypeStruct(aval.shape, aval.dtype), args)
    return _without_places(export.export(jax.jit(exported.call), platforms=exported.platforms)(*shapes))


def with_steps_in(held: Any, task: str) -> bool:
    """Say whether the second axis of inputs counts steps: beside lengths [N], or of tokens [N, T].

    Example:
        >>> with_steps_in({"inputs": np.zeros((3, 7, 2)), "lengths": np.zeros(3, np.int32)}, "classes")
        True
    """
    if isinstance(held, Mapping):
        return "lengths" in held and len(held["lengths"].shape) == 1 and _has_steps(held)
    return task == "tokens" and len(held.shape) == 2 and held.dtype.kind in "iu"


def _has_steps(held: Mapping[str, Any]) -> bool:
    sizes = {one.shape[1] for one in jax.tree.leaves(dict(held)) if len(one.shape) > 1}
    return len(sizes) == 1


def _symbolic(held: Any, batch: Any, steps: Any) -> Any:
    scope = export.SymbolicScope()

    def size(given: Any) -> Any:
        return export.symbolic_shape(given, scope=scope)[0] if isinstance(given, str) else given

    rows, time = size(batch), None if steps is None else size(steps)

    def shape(one: Any) -> jax.ShapeDtypeStruct:
        rest = one.shape[1:] if time is None else (time, *one.shape[2:])[: len(one.shape) - 1]
        return jax.ShapeDtypeStruct((rows, *rest), jax.dtypes.canonicalize_dtype(one.dtype))

    return jax.tree.map(shape, held)


def _without_places(exported: export.Exported) -> export.Exported:
    """Leave out the file and the line of each operation: paths of the user's machine, and a third of the bytes."""
    content = exported.mlir_module_serialized
    version = re.search(rb"StableHLO_v([0-9.]+)", content)
    if version is None:
        return exported
    with mlir.make_ir_context() as context:
        module = stablehlo.deserialize_portable_artifact(context, content)
        passmanager.PassManager.parse("builtin.module(strip-debuginfo)").run(module.operation)
        bare = stablehlo.serialize_portable_artifact(module, version[1].decode())
    return dataclasses.replace(exported, mlir_module_serialized=bare)
