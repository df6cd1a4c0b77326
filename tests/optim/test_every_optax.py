"""Every optimizer and transformation of the installed Optax trains a small net."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

from accelnet import optim
from accelnet.errors import UserError
from tests.optim.toy_loop import loss_of, make_params, train

C = optax.contrib


def descend(*direction):
    return optax.chain(*direction, optax.scale(-0.05))


def is_kernel(params):
    return jax.tree.map(lambda leaf: leaf.ndim == 2, params)


def labels(params):
    return jax.tree.map(lambda leaf: "kernels" if leaf.ndim == 2 else "biases", params)


def always(updates, state, params=None, **extra_args):
    return jnp.bool_(True)


def norm_of_first(updates, params=None, **extra_args):
    return optax.tree.norm(updates)


# How to make those that need other arguments, or that are only a part of an optimizer.
TABLE = {
    "adaptive_grad_clip": lambda: descend(optax.adaptive_grad_clip(0.1)),
    "add_noise": lambda: descend(optax.add_noise(0.01, 0.5, key=jax.random.key(0))),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.05), 5),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05)),
    "clip": lambda: descend(optax.clip(1.0)),
    "clip_by_block_rms": lambda: descend(optax.clip_by_block_rms(1.0)),
    "clip_by_global_norm": lambda: descend(optax.clip_by_global_norm(1.0)),
    "conditionally_mask": lambda: optax.conditionally_mask(optax.adam(0.05), lambda step: step > 2),
    "conditionally_transform": lambda: descend(
        optax.conditionally_transform(optax.clip(1.0), lambda _, progress, **__: progress < 0.5, True)
    ),
    "ema": lambda: descend(optax.ema(0.5)),
    "flatten": lambda: optax.flatten(optax.adam(0.05)),
    "freeze": lambda: optax.chain(optax.adam(0.05), optax.freeze(is_kernel(make_params()))),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(optax.cosine_decay_schedule(0.05, 20)),
    "keep_params_nonnegative": lambda: optax.chain(optax.adam(0.05), optax.keep_params_nonnegative()),
    "lookahead": lambda: optax.lookahead(optax.adam(0.05), 5, 0.5),
    "masked": lambda: optax.chain(
        optax.masked(optax.adam(0.05), is_kernel),
        optax.masked(optax.sgd(0.05), lambda p: jax.tree.map(lambda one: not one, is_kernel(p))),
    ),
    "measure_with_ema": None,  # a measure, no transformation
    "multi_transform": lambda: optax.multi_transform({"kernels": optax.adam(0.05), "biases": optax.sgd(0.05)}, labels),
    "named_chain": lambda: optax.named_chain(("clip", optax.clip(1.0)), ("adam", optax.adam(0.05))),
    "polyak_sgd": lambda: optax.polyak_sgd(max_learning_rate=0.1),
    "partition": lambda: optax.partition({"kernels": optim.adam(0.05), "biases": optax.polyak_sgd()}, labels),
    "scale": lambda: optax.scale(-0.05),
    "scale_by_backtracking_linesearch": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10, store_grad=True)
    ),
    "scale_by_learning_rate": lambda: optax.scale_by_learning_rate(0.05),
    "scale_by_rprop": lambda: optax.chain(optax.scale_by_rprop(0.01), optax.scale(-1.0)),
    "scale_by_schedule": lambda: descend(optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, 20))),
    "scale_by_zoom_linesearch": lambda: optax.chain(optax.scale(-1.0), optax.scale_by_zoom_linesearch(10)),
    "selective_transform": lambda: optax.selective_transform(optax.adam(0.05), freeze_mask=is_kernel(make_params())),
    "snapshot": None,  # a measure, no transformation
    "stateless": lambda: optax.stateless(lambda updates, _: jax.tree.map(lambda leaf: -0.05 * leaf, updates)),
    "stateless_with_tree_map": lambda: optax.stateless_with_tree_map(lambda leaf, _: -0.05 * leaf),
    "trace": lambda: descend(optax.trace(0.5)),
    "with_extra_args_support": lambda: optax.with_extra_args_support(optax.adam(0.05)),
    "hutchinson_estimator_diag_hessian": lambda: C.sophia(
        0.05, hessian_diagonal_fn=C.hutchinson_estimator_diag_hessian()
    ),
    "mechanize": lambda: C.mechanize(optax.adam(0.05)),
    "reduce_on_plateau": lambda: optax.chain(optax.adam(0.05), C.reduce_on_plateau(patience=2)),
    "scale_by_cocob": C.scale_by_cocob,  # it holds its own sign and size
    "scale_by_muon": lambda: C.muon(0.05),  # of matrices alone
    "sam": lambda: C.sam(optax.sgd(0.05), optax.chain(C.normalize(), optax.sgd(0.05))),
    "schedule_free": lambda: C.schedule_free(optax.sgd(0.05), 0.05),
    "split_real_and_imaginary": lambda: C.split_real_and_imaginary(optax.adam(0.05)),
    "inject_stateful_hyperparams": None,  # deprecated, for inject_hyperparams
    "differentially_private_aggregate": None,  # of one gradient for each example, see below
    "dpsgd": None,
    "set_to_zero": None,  # trains nothing
}
# Combinations that are in use.
WRAPPED = {
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.05), every_k_schedule=2),
    "MultiSteps of one that needs the loss": lambda: optax.MultiSteps(optax.polyak_sgd(), every_k_schedule=2),
    "MultiSteps as a transformation": lambda: optax.MultiSteps(optax.adam(0.05), 2).gradient_transformation(),
    "MultiSteps that skip": lambda: optax.MultiSteps(
        optim.adam(0.05, schedule=optim.schedules.cosine()), 2, should_skip_update_fn=optax.skip_not_finite
    ),
    "MultiSteps of lookahead": lambda: optax.MultiSteps(optax.lookahead(optax.adam(0.05), 2, 0.5), 2),
    "lookahead after clipping": lambda: optax.chain(optax.clip(1.0), optax.lookahead(optax.adam(0.05), 5, 0.5)),
    "lookahead that resets": lambda: optax.lookahead(optax.adam(0.05), 5, 0.5, reset_state=True),
    "lookahead of ours": lambda: optax.lookahead(optim.momentum(0.02, schedule=optim.schedules.cosine()), 5, 0.5),
    "sam of ours": lambda: C.sam(optim.adam(0.05, schedule=optim.schedules.cosine()), optim.sgd(0.01)),
    "sam, opaque": lambda: C.sam(optax.sgd(0.05), optax.chain(C.normalize(), optax.sgd(0.05)), opaque_mode=True),
    "sam of three": lambda: C.sam(optax.adam(0.05), optax.chain(C.normalize(), optax.sgd(0.02)), sync_period=3),
    "sam in a chain": lambda: optax.chain(optax.clip(1.0), C.sam(optax.sgd(0.05), optax.sgd(0.01))),
    "sam beside a plateau": lambda: optax.chain(
        optim.adapt_optimizer(C.sam(optax.sgd(0.05), optax.sgd(0.01))), C.reduce_on_plateau()
    ),
    "schedule-free momentum of ours": lambda: C.schedule_free(optim.sgd(0.05), 0.05),
    "l-bfgs after clipping": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.lbfgs()),
    "l-bfgs with a plateau": lambda: optax.chain(optax.lbfgs(), C.reduce_on_plateau()),
    "inject_hyperparams of sam": lambda: optax.inject_hyperparams(
        lambda rate: C.sam(optax.sgd(rate), optax.sgd(0.01), opaque_mode=True)
    )(optax.linear_schedule(0.05, 0.0, 20)),
    "sophia in a partition": lambda: optax.chain(
        optax.add_noise(0.01, 0.5, key=jax.random.key(0)), C.sophia(0.02), optim.average_params(0.5)
    ),
    "reduce_on_plateau of ours": lambda: optax.chain(optim.adam(0.05), optim.reduce_on_plateau(patience=2)),
    "noise under a condition": lambda: optax.apply_if_finite(
        optax.chain(optax.add_noise(0.01, 0.5, key=jax.random.key(0)), optax.sgd(0.05)), 3
    ),
}


def is_transformation(made):
    return isinstance(made, optax.GradientTransformation)


def found_in(module):
    """Return every public function that makes a transformation, by its name or what it returns."""
    for name in sorted(dir(module)):
        function = getattr(module, name)
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        signature = inspect.signature(function)
        arguments = {"learning_rate": 0.05} if "learning_rate" in signature.parameters else {}
        try:
            made = function(**arguments)
        except (TypeError, ValueError):
            if "GradientTransformation" in str(signature.return_annotation):
                yield name, None
        else:
            if is_transformation(made):
                yield name, (lambda made=made: made) if arguments else (lambda made=made: descend(made))


def every_optimizer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that Optax has deprecated
        found = dict(found_in(optax)) | dict(found_in(C))
    return found | {name: make for name, make in TABLE.items() if name in found}, set(TABLE) - set(found)


OPTIMIZERS, GONE = every_optimizer()
NOT_TRAINED = [name for name, make in TABLE.items() if make is None]
# Twenty steps are few for those that begin with tiny ones or with a search for their rate.
STEPS = {"adadelta": 500, "scale_by_adadelta": 500, "dog": 500, "dowg": 500, "prodigy": 200, "dadapt_adamw": 500}


def test_the_table_names_what_is_there():
    assert not GONE
    assert len(OPTIMIZERS) > 100


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(NOT_TRAINED)))
def test_it_trains(name):
    make = OPTIMIZERS[name]
    assert make is not None, f"{name} needs arguments: add it to the table"
    # Optax's own code promotes ranks in one of them.
    with jax.numpy_rank_promotion("allow"):
        check_training(make(), STEPS.get(name, 20))


@pytest.mark.parametrize("name", WRAPPED)
def test_a_combination_trains(name):
    check_training(WRAPPED[name](), 20)


def check_training(optimizer, num_steps):
    first = optim.adapt_optimizer(optimizer).init(make_params())
    before = jax.tree.map(jax.typeof, first)
    # The loop itself refuses a state whose structure or types change.
    _, state, loss = train(optimizer, num_steps)
    assert jax.tree.map(jax.typeof, state) == before
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(before))
    assert all(jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool for leaf in jax.tree.leaves(state))
    assert loss < float(loss_of(make_params()))


@pytest.mark.parametrize("name", ["adam", "sam", "lookahead", "lbfgs", "schedule_free", "sophia", "muon"])
def test_bfloat16_params_train_too(name):
    params, _, loss = train(OPTIMIZERS[name](), STEPS.get(name, 20), dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert loss < float(loss_of(make_params(jnp.bfloat16)))


def test_what_wants_one_gradient_for_each_example_is_refused_in_words():
    optimizer = optim.adapt_optimizer(C.differentially_private_aggregate(1.0, 0.1, key=0))
    with pytest.raises(UserError, match=r"the optimizer's update fails with ValueError: .* to have a batch dimension"):
        optimizer.init(make_params())
