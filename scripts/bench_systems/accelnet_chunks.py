"""accelnet, as a user's `Experiment` runs: chunks of steps in one compiled program.

The initial weights and the order of the batches of every other system are made here too.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

import accelnet as an
from accelnet.exporting.onnx import to_onnx
from accelnet.ops.prepared import Prepared
from accelnet.training.program import prepare
from accelnet.training.step import make_train_step
from bench_systems.cases import Arrays, Case, forward_loss
from bench_systems.system import System, timed

an.runtime.prepare()  # before the first array
_OBJECTIVES = {
    "softmax": an.objectives.softmax_cross_entropy,
    "token": an.objectives.token_cross_entropy,
    "sigmoid": an.objectives.sigmoid_cross_entropy,
}


def make_experiment(case: Case) -> an.Experiment:
    """Write the case as an experiment."""
    inputs, targets, lengths = case.make_data(np.random.default_rng(0), case.batch_size * case.num_batches)
    if lengths is not None:
        inputs = {"inputs": inputs, "lengths": lengths}
    return an.Experiment(
        data=an.data.from_arrays(inputs, targets, validation=0.0, test=0.0, normalize=False),
        model=case.model,
        optimizer=an.optim.adam(case.learning_rate),
        objective=_OBJECTIVES[case.loss](),
        batch_size=case.batch_size,
        epochs=1,
    )


def initial_state(case: Case, experiment: an.Experiment) -> Any:
    """Return the first `TrainState`, of a population stacked. Members differ in weights alone, not in order."""
    init = prepare(experiment)[1].init
    if case.kind != "population":
        return init(np.uint32(experiment.seed))
    states = [init(np.uint32(seed)) for seed in range(case.members)]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return state.replace(seed=jnp.zeros_like(state.seed))


def export(case: Case) -> Arrays:
    """Return the initial weights and the batches in their order."""
    experiment = make_experiment(case)
    state = initial_state(case, experiment)
    params = flatten_dict(state.params, sep="/")
    order = experiment.order
    if order.is_whole:
        rows = np.arange(case.batch_size)[None, :]
    else:
        rows = order.block(range(order.steps_per_epoch), seed=experiment.seed)[0][:, 0]
    inputs, lengths = experiment.data.arrays["inputs"], None
    if isinstance(inputs, dict):
        inputs, lengths = inputs["inputs"], inputs["lengths"][rows]
    weights = {name: np.asarray(leaf) for name, leaf in params.items()}
    batches = Arrays(weights, inputs[rows], experiment.data.arrays["targets"][rows], lengths)
    if case.kind != "inference":
        return batches
    shape = jax.ShapeDtypeStruct(batches.inputs.shape[1:], batches.inputs.dtype)
    file = to_onnx(partial(_predict, experiment.pure_model, state.params, state.model_state), shape)
    return batches._replace(onnx=np.frombuffer(file, np.uint8))


def _predict(model: Any, params: Any, model_state: Any, inputs: Any) -> jax.Array:
    return model.apply(params, model_state, inputs, key=jax.random.key(0), train=False)[0]


def make(case: Case, _: str, arrays: Arrays) -> System:
    """Make the system."""
    return {"train": _train, "population": _population, "inference": _inference}[case.kind](case, arrays)


def _train(case: Case, _: Arrays) -> System:
    experiment = make_experiment(case)
    feed, programs = prepare(experiment)
    operand = feed.train_operand(0, 1)
    state: Any = None

    def restart() -> None:
        nonlocal state
        state = programs.init(np.uint32(experiment.seed))

    def chunk(num_steps: int) -> Any:
        nonlocal state
        state, report = programs.train(state, operand, np.int32(num_steps), np.bool_(True))
        return jax.device_get(report)["loss"]

    return _chunks(restart, chunk)


def _population(case: Case, _: Arrays) -> System:
    experiment = make_experiment(case)
    feed, _programs = prepare(experiment)
    operand = feed.train_operand(0, 1)
    step = make_train_step(experiment)

    @partial(jax.jit, donate_argnums=0)
    def run(state: Any, operand: Any, num_steps: jax.Array) -> Any:
        def body(index: jax.Array, carry: Any) -> Any:
            state, _ = carry
            batch = feed.train_batch(operand, index, state.step[0], 0, state.seed[0], 0)
            state, losses, _ = jax.vmap(lambda member: step(member, lambda *_: batch))(state)
            return state, losses

        return jax.lax.fori_loop(0, num_steps, body, (state, jnp.zeros(case.members)))

    state: Any = None

    def restart() -> None:
        nonlocal state
        state = initial_state(case, experiment)

    def chunk(num_steps: int) -> Any:
        nonlocal state
        state, losses = run(state, operand, num_steps)
        return jax.device_get(losses)

    return _chunks(restart, chunk)


def _chunks(restart: Any, chunk: Any) -> System:
    def losses(num_steps: int) -> list[Any]:
        restart()
        return [chunk(1).tolist() for _ in range(num_steps)]

    def run(num_steps: int) -> tuple[float, int]:
        start = time.perf_counter()
        chunk(num_steps)
        return time.perf_counter() - start, num_steps

    restart()
    return System(losses, run)


def _inference(case: Case, arrays: Arrays) -> System:
    experiment = make_experiment(case)
    state = initial_state(case, experiment)

    def forward(weights: Any, inputs: Any) -> jax.Array:
        return _predict(experiment.pure_model, *weights, inputs)

    predict = Prepared(forward, (state.params, state.model_state))  # as a loaded artifact does it
    batches = list(arrays.inputs)  # on the host, as a server has them

    def step(number: int) -> np.ndarray:
        return np.asarray(predict(batches[number % len(batches)]))

    def losses(num_steps: int) -> list[float]:
        return [forward_loss(case, np.asarray(step(n)), arrays.targets[n]) for n in range(num_steps)]

    return System(losses, timed(step))
