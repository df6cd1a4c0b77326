"""The two compiled programs of a run: a chunk of training steps, and a chunk of evaluation batches."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from accelnet.data.feed import AbstractFeed
from accelnet.experiment import Experiment
from accelnet.optim import eval_params, learning_rate
from accelnet.training.state import TrainState, init_state
from accelnet.training.step import make_loss, make_train_step

Tree = Any


class RecompilationError(RuntimeError):
    """Report that a program got operands it was not compiled for."""


@dataclass
class Program:
    """A function compiled once, ahead of time, for fixed shapes. A call with any others is an error.

    Args:
        name: for messages.
        function: what to compile.
        operands: its abstract arguments (`jax.ShapeDtypeStruct`s).
        donate: positions of arguments whose buffers the program may reuse.

    Example:
        >>> double = Program("double", lambda x: 2 * x, (jax.ShapeDtypeStruct((2,), jnp.float32),))
        >>> double(jnp.ones(2)).tolist()
        [2.0, 2.0]
        >>> double(jnp.ones(3))
        Traceback (most recent call last):
        accelnet.training.program.RecompilationError: program 'double' would have to be compiled again:
          argument 0: float32[3], compiled for float32[2]

    Source: original.
    """

    name: str
    function: Callable[..., Any]
    operands: tuple[Any, ...]
    donate: tuple[int, ...] = ()
    compiles: int = field(default=0, init=False)
    compile_seconds: float = field(default=0.0, init=False)

    @cached_property
    def lowered(self) -> Any:
        """The program before compilation (`jax.stages.Lowered`)."""
        return jax.jit(self.function, donate_argnums=self.donate).lower(*self.operands)

    @cached_property
    def compiled(self) -> Any:
        """The compiled program (`jax.stages.Compiled`)."""
        start = time.perf_counter()
        compiled = self.lowered.compile()
        self.compile_seconds += time.perf_counter() - start
        self.compiles += 1
        return compiled

    @cached_property
    def _expected(self) -> tuple[Any, list[tuple[tuple[int, ...], Any]]]:
        leaves, structure = jax.tree.flatten(self.operands)
        return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]

    def __call__(self, *operands: Any) -> Any:
        compiled = self.compiled
        leaves, structure = jax.tree.flatten(operands)
        if (structure, [(leaf.shape, leaf.dtype) for leaf in leaves]) != self._expected:
            raise RecompilationError(
                f"program {self.name!r} would have to be compiled again:\n  "
                + "\n  ".join(_differences(self.operands, operands))
            )
        try:
            return compiled(*operands)
        except ValueError as error:  # a sharding or layout that is not the compiled one
            raise RecompilationError(f"program {self.name!r} would have to be compiled again:\n  {error}") from error


def _differences(expected: tuple[Any, ...], given: tuple[Any, ...]) -> list[str]:
    def described(tree: Any) -> dict[str, str]:
        return {
            f"argument {path[0].idx}{jax.tree_util.keystr(path[1:])}": f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }

    old, new = described(expected), described(given)
    return [
        f"{path}: {new.get(path, 'nothing')}, compiled for {old.get(path, 'nothing')}"
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    ]


class Failure(flax.struct.PyTreeNode):
    """A step whose loss was not finite, or, at the end of a chunk, weights that are not.

    Attributes:
        happened: bool scalar.
        loss: float32 scalar, the loss at that step.
        grad_norm: float32 scalar, global norm of the gradients there; NaN if the loss was finite.
        param_norm: float32 scalar, global norm of the weights that the loss was computed with, or of those at the end.
    """

    happened: jax.Array
    loss: jax.Array
    grad_norm: jax.Array
    param_norm: jax.Array


def make_train_chunk(experiment: Experiment, feed: AbstractFeed) -> Callable[..., Any]:
    """Return the function that runs a number of steps.

    `train_chunk(state, operand, num_steps, reset) -> (state, report)`. `num_steps` is an int32 operand, so one
    program serves chunks of every length, and where a run is cut into chunks cannot change a bit of it.
    `reset` (bool) empties the metrics first. `report` holds "metrics" (float32 scalars by name, over the steps
    since the last reset), "loss" of the last step, "learning_rate" and "failure". A step whose loss is not
    finite ends the chunk.
    """
    step = make_train_step(experiment)
    objective = experiment.objective

    def train_chunk(state: TrainState, operand: Tree, num_steps: jax.Array, reset: jax.Array) -> Any:
        metrics = jax.tree.map(lambda new, old: jnp.where(reset, new, old), objective.empty(), state.metrics)

        def goes_on(carry: Any) -> jax.Array:
            index, _, _, failure = carry
            return (index < num_steps) & ~failure.happened

        def body(carry: Any) -> Any:
            index, state, _, _ = carry

            def microbatch(part: Any) -> Tree:
                return feed.train_batch(operand, index, state.step, part, state.seed)

            after, loss, grads = step(state, microbatch)
            failed = ~jnp.isfinite(loss)
            nothing = jnp.float32(jnp.nan)
            # The norms cost a pass over the gradients, 4 % of an MLP's step: only when there is something to say.
            grad_norm, param_norm = jax.lax.cond(
                failed,
                lambda grads, params: (_norm(grads), _norm(params)),
                lambda *_: (nothing, nothing),
                grads,
                state.params,
            )
            return index + 1, after, loss, Failure(failed, loss, grad_norm, param_norm)

        nothing = jnp.float32(jnp.nan)
        start = (
            jnp.int32(0),
            state.replace(metrics=metrics),
            nothing,
            Failure(jnp.bool_(False), *[nothing] * 3),
        )
        _, state, loss, failure = jax.lax.while_loop(goes_on, body, start)
        # The last update can spoil the weights without a loss that shows it; such weights must not be saved as good.
        norm = _norm(state.params)
        spoiled = Failure(~jnp.isfinite(norm), loss, nothing, norm)
        failure = jax.tree.map(lambda a, b: jnp.where(failure.happened, a, b), failure, spoiled)
        rate = learning_rate(state.opt_state)
        report = {
            "metrics": objective.compute(state.metrics),
            "loss": loss,
            "learning_rate": nothing if rate is None else jnp.asarray(rate, jnp.float32),
            "failure": failure,
        }
        return state, report

    return train_chunk


def _norm(tree: Tree) -> jax.Array:
    return jnp.asarray(optax.tree.norm(tree), jnp.float32)


def make_eval_chunk(experiment: Experiment, feed: AbstractFeed) -> Callable[..., Any]:
    """Return the function that evaluates a number of batches.

    `eval_chunk(params, opt_state, model_state, metrics, operand, first, num_batches, start, stop) -> (metrics,
    values)`: the metric states with the batches `first` to `first + num_batches` of the rows `start` to `stop`
    merged in, and what they compute to. The weights are the averaged ones where the optimizer keeps such.
    """
    loss = make_loss(experiment)
    objective = experiment.objective

    def eval_chunk(
        params: Tree, opt_state: Tree, model_state: Tree, metrics: Tree, operand: Tree,
        first: jax.Array, num_batches: jax.Array, start: jax.Array, stop: jax.Array,
    ) -> Any:  # fmt: skip
        params = eval_params(opt_state, params)

        def body(index: jax.Array, metrics: Tree) -> Tree:
            batch = experiment.data.prepare(feed.eval_batch(operand, index, first, start, stop))
            _, (_, states, _) = loss(params, model_state, batch, key=jax.random.key(0), train=False)
            return objective.merge(metrics, states)

        metrics = jax.lax.fori_loop(0, num_batches, body, metrics)
        return metrics, objective.compute(metrics)

    return eval_chunk


@dataclass(frozen=True)
class Programs:
    """What a run compiles, and the shapes it is compiled for.

    Attributes:
        init: seed -> `TrainState`.
        train: see `make_train_chunk`.
        evaluate: see `make_eval_chunk`.
        abstract_state: shapes of the `TrainState`.
    """

    init: Program
    train: Program
    evaluate: Program
    abstract_state: TrainState


def make_programs(experiment: Experiment, feed: AbstractFeed) -> Programs:
    """Build the programs of an experiment from shapes alone: nothing is allocated, read or compiled yet.

    Args:
        experiment: what is trained.
        feed: how batches reach the program.

    Returns:
        The `Programs`; each compiles when it is first called.

    Source: original.
    """
    number = jax.ShapeDtypeStruct((), jnp.int32)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)

    def init(seed: jax.Array) -> TrainState:
        return init_state(experiment, seed)

    state = jax.eval_shape(init, seed)
    train_operand, eval_operand = feed.abstract()
    train = (state, train_operand, number, jax.ShapeDtypeStruct((), jnp.bool_))
    evaluate = (state.params, state.opt_state, state.model_state, state.metrics, eval_operand, *[number] * 4)
    return Programs(
        init=Program("init", init, (seed,)),
        train=Program("train", make_train_chunk(experiment, feed), train, donate=(0,)),
        evaluate=Program("eval", make_eval_chunk(experiment, feed), evaluate),
        abstract_state=state,
    )
