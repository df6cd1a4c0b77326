"""The step, from top to bottom: the step, the gradient of a batch, the loss of a microbatch, and the update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from accelnet.experiment import Experiment
from accelnet.models.precision import with_precision
from accelnet.models.pure import merged
from accelnet.objectives.weights import safe_ratio
from accelnet.ops.wide import in_float32
from accelnet.parallel.layout import ONE_DEVICE, SAME, Layout
from accelnet.parallel.parts import Parts
from accelnet.scopes import scope
from accelnet.signature import Offer
from accelnet.training.batch import Batch, training_batch
from accelnet.training.forward import BoundModel, with_remat
from accelnet.training.state import UPDATE, TrainState, random_key

Tree = Any
Microbatch = Callable[[Tree, Any, Any], Batch]

# What a loss draws is not what the model draws.
_LOSS_KEY, _AGAIN_KEY = 0x10555, 0xA6A19


def make_train_step(
    experiment: Experiment,
    layout: Layout = ONE_DEVICE,
    num_microbatches: int | None = None,
    observe: Callable[[jax.Array, Tree, Tree], tuple[Tree, Tree]] = lambda _loss, _grads, params: (params, ()),
) -> Callable[..., Any]:
    """Return the step of an experiment, a pure function.

    Args:
        experiment: What is trained.
        layout: Devices on which batches and weights lie.
        num_microbatches: Microbatches of a batch. None: those of the experiment's order.
        observe: Function `observe(loss, grads, params) -> (params, seen)`, called before the update; that starts from
            the params that it returns.

    Returns:
        `step(state, microbatch, operand, spec) -> (state, loss, seen)`: the state after one update, the mean loss
        before it (float32 scalar), and what `observe` saw. For the arguments see `make_gradient`.
    """
    gradient, update = make_gradient(experiment, layout, num_microbatches), make_update(experiment)

    def step(
        state: TrainState, microbatch: Microbatch, operand: Tree = None, spec: Any = SAME
    ) -> tuple[TrainState, jax.Array, Tree]:
        def of(params: Tree) -> Any:
            with scope("gradient"):
                return gradient(state.replace(params=params), microbatch, operand, spec)

        grads, loss, states, model_state = of(state.params)
        params, seen = observe(loss, grads, state.params)
        with scope("optimizer"):
            state = update(state.replace(params=params), grads, loss, states, model_state, of)
        return state, loss, seen

    return step


def make_gradient(
    experiment: Experiment, layout: Layout = ONE_DEVICE, num_microbatches: int | None = None
) -> Callable[..., Any]:
    """Return the function that gives the gradient of a whole batch.

    The gradient of the batch's mean loss is the weighted mean of its parts' gradients, exactly:
    g = sum_j w_j g_j / sum_j w_j. The parts are microbatches, one after the other, so that a batch may be larger than
    memory, and their shares on the devices, side by side. Devices exchange gradients once, after the last microbatch.

    Args:
        experiment: What is trained.
        layout: Devices on which batches and weights lie.
        num_microbatches: Microbatches of a batch. None: those of the experiment's order.

    Returns:
        `gradient(state, microbatch, operand, spec) -> (grads, loss, metric states, model_state)`.
        `microbatch(operand, number, part)` gives a device's part of a microbatch; `spec` says how the mesh cuts
        `operand`. Gradients have the parameters' dtype; in float16 they are those of the unscaled loss.
    """
    parts = layout.parts
    of_loss = jax.grad(make_loss(experiment, parts), has_aux=True)
    if experiment.precision == "bfloat16":
        of_loss = in_float32(of_loss)
    num_microbatches = num_microbatches or experiment.order.num_microbatches
    merge, empty = experiment.objective.merge, experiment.objective.empty

    def gradient(state: TrainState, microbatch: Microbatch, operand: Tree = None, spec: Any = SAME) -> Any:
        cuts = layout.cuts(state.params)
        scale = None if state.loss_scale is None else state.loss_scale.scale

        def of_part(params: Tree, others: Any, operand: Tree) -> Any:
            """Compute what one device does: its part of each microbatch, and one exchange with the others."""
            model_state, frozen, scale, seed, step = others
            part, params = parts.index(), parts.gather(params, cuts)

            def add(number: Any, carry: Any) -> Any:
                model_state, sums = carry
                batch = microbatch(operand, number, part)
                batch, noise = training_batch(experiment, batch, layout, part, seed, step, number)
                grads, (mean, weight, states, model_state) = of_loss(
                    params, model_state, batch, key=noise, train=True, frozen=frozen, step=step, scale=scale
                )
                if scale is not None:
                    grads = jax.tree.map(lambda g: g.astype(jnp.float32) / scale, grads)
                if sums is None:  # the one microbatch, which needs no weight
                    return model_state, (grads, mean, weight, states)
                total, total_mean, total_weight, total_states = sums
                total = jax.tree.map(lambda a, b: a + b * weight, total, grads)
                return model_state, (
                    total, total_mean + mean * weight, total_weight + weight, merge(total_states, states)
                )  # fmt: skip

            if num_microbatches == 1:
                model_state, (grads, mean, _, states) = add(jnp.int32(0), (model_state, None))
            else:
                zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
                start = model_state, (zeros, jnp.float32(0), jnp.float32(0), empty())
                model_state, sums = jax.lax.fori_loop(0, num_microbatches, add, start)
                grads, mean, weight, states = sums
                grads = jax.tree.map(lambda g, p: safe_ratio(g, weight).astype(p.dtype), grads, params)
                mean = safe_ratio(mean, weight)
            grads, mean = parts.total(grads, cuts), parts.total(mean)
            return grads, mean, merge_parts(experiment, parts, states), parts.agreed(model_state)

        of_parts = parts.map(of_part, (cuts, SAME, spec), (cuts, SAME, SAME, SAME))
        return of_parts(state.params, (state.model_state, state.frozen, scale, state.seed, state.step), operand)

    return gradient


def make_loss(experiment: Experiment, parts: Parts = ONE_DEVICE.parts) -> Callable[..., Any]:
    """Return the function that is differentiated.

    `loss(params, model_state, batch, *, key, train, frozen=None, step=0, scale=None) -> (scaled, aux)`, where `aux` is
    (mean, weight, metric states, model_state). The mean is over the examples of the batch that are not masked, by
    weight; `weight` is the sum of weights. Where `batch` is one of several parts, batch statistics are those of the
    whole, `weight` is that of the whole in training, and the mean is this part's share of the whole's. `scaled` is the
    mean times `scale`, that of float16's gradients.
    """
    apply, objective = with_precision(experiment.pure_model.apply, experiment.precision), experiment.objective

    def loss(
        params: Tree, model_state: Tree, batch: Batch, *,
        key: jax.Array, train: bool, frozen: Any = None, step: Any = 0, scale: Any = None,
    ) -> Any:  # fmt: skip
        offered = {"step": step, "progress": experiment.progress(step)}
        # Where no batch is partial nothing has to be masked.
        mask = None if train and not experiment.order.has_padding else batch["mask"]
        settings = {"axes": parts.axes, "mask": mask, **offered}

        def forward(params: Tree, model_state: Tree, inputs: Tree) -> Any:
            return apply(params, model_state, inputs, key=key, train=train, sown=True, **settings)

        forward = with_remat(forward, experiment.remat) if train else forward
        params = merged(params, frozen) if frozen else params
        with scope("model"):
            outputs, after, sown = forward(params, model_state, batch["inputs"])
        experiment.check_outputs(outputs, batch)

        def again() -> BoundModel:
            return BoundModel(apply, params, model_state, jax.random.fold_in(key, _AGAIN_KEY), train, settings)

        with scope("loss"):
            total, weight, states = objective.totals(
                outputs, batch, model=Offer(again), params=params, train=train, sown=sown,
                key=Offer(lambda: jax.random.fold_in(key, _LOSS_KEY)), **offered,
            )  # fmt: skip
            mean = safe_ratio(total, weight)
        if train and parts.count > 1:
            # Before the backward pass: through batch statistics, a part's loss has gradients in other parts.
            own, weight = weight, jax.lax.stop_gradient(parts.total(weight))
            mean = mean * safe_ratio(own, weight)
        return mean if scale is None else mean * scale, (mean, weight, states, after)

    return loss


def merge_parts(experiment: Experiment, parts: Parts, states: Tree) -> Tree:
    """Merge the metric states of what the devices have seen: in one sum where that is what merging means."""
    objective = experiment.objective
    summed = parts.total({name: state for name, state in states.items() if name in objective.additive})
    merged = {
        name: parts.merged(state, objective.metrics[name].merge, objective.metrics[name].empty())
        for name, state in states.items()
        if name not in objective.additive
    }
    return {name: (summed | merged)[name] for name in states}


def make_update(experiment: Experiment) -> Callable[..., TrainState]:
    """Return what a step does with its gradient.

    `update(state, grads, loss, metric states, model_state, of=None) -> state`. The optimizer gets what it asks for of
    `value`, `grad`, `value_fn`, `grad_fn`, `obj_fn`, `key`, `step` and `progress`; the functions, which look at the
    same batch with other params, need `of`, from params to what `make_gradient`'s function returns.
    """
    optimizer = experiment.transformation

    def update(
        state: TrainState, grads: Tree, loss: jax.Array, states: Tree, model_state: Tree, of: Any = None
    ) -> TrainState:
        value_fn, grad_fn = batch_functions(of)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params,
            value=loss, grad=grads, value_fn=value_fn, grad_fn=grad_fn, obj_fn=value_fn,
            key=random_key(state.seed, UPDATE, state.step), step=state.step, progress=experiment.progress(state.step),
        )  # fmt: skip
        new = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
            metrics=experiment.objective.merge(state.metrics, states),
        )
        if state.loss_scale is not None:
            finite = jnp.isfinite(optax.tree.norm(grads))
            kept = state.replace(step=new.step, metrics=new.metrics)
            # An overflow of the scaled gradients skips the update: the scale was too large, not the loss wrong.
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)
            new = new.replace(loss_scale=state.loss_scale.adjust(finite))
        return new

    return update


def batch_functions(of: Callable[[Tree], Any] | None) -> tuple[Any, Any]:
    """Return the loss and the gradient of a step's batch as functions of the params; (None, None) without `of`.

    The loss has the gradient that is computed along with it: what is exchanged between devices has no other.
    """
    if of is None:
        return None, None

    @jax.custom_vjp
    def value_fn(params: Tree) -> jax.Array:
        return of(params)[1]

    def forward(params: Tree) -> Any:
        grads, loss, *_ = of(params)
        return loss, grads

    def backward(grads: Tree, cotangent: jax.Array) -> Any:
        return (jax.tree.map(lambda g: (g * cotangent).astype(g.dtype), grads),)

    value_fn.defvjp(forward, backward)
    return value_fn, lambda params, *_: of(params)[0]
