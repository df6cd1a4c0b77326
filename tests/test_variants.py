"""Every operation, objective and update rule gives the same with jit, without, and under pmap."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from accelnet import objectives, ops, optim
from accelnet.ops.quantized import pack, quantized_dot


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


OPS = {
    "conv_general_dilated": (
        lambda x, k: ops.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        ),
        (draw(2, 5, 5, 3), draw(3, 3, 3, 4, seed=1)),
    ),
    "max_pool": (lambda x: ops.max_pool(x, (2, 2), strides=(2, 2)), (draw(2, 4, 4, 3),)),
    "avg_pool": (lambda x: ops.avg_pool(x, (2, 2), strides=(2, 2)), (draw(2, 4, 4, 3),)),
    "dot_general": (
        lambda a, b: ops.dot_general(a, b, (((1,), (0,)), ((), ())), precision="highest"),
        (draw(4, 5), draw(5, 3, seed=1)),
    ),
    "quantized_dot": (
        lambda x, scale: quantized_dot(x, pack(np.arange(-7, 8, dtype=np.int8).reshape(5, 3), 4), scale),
        (draw(4, 5), abs(draw(3, seed=1)) + 1),
    ),
    "take_rows": (ops.take_rows, (draw(6, 3), np.array([1, 5, 0], np.int32))),
    "linear_recurrence": (ops.linear_recurrence, (abs(draw(2, 4, 3)) / 4, draw(2, 4, 3, seed=1))),
}
CLASSES = {"targets": np.array([0, 2, 1], np.int32), "mask": np.array([True, True, False])}
NUMBERS = {"targets": draw(3, 2, seed=2), "mask": np.array([True, True, False])}
OBJECTIVES = {
    "softmax": (
        objectives.softmax_cross_entropy(
            label_smoothing=0.1,
            metrics={"accuracy": objectives.Accuracy(), "second": objectives.TopKAccuracy(2),
                     "f1": objectives.F1(3, average="macro"), "perplexity": objectives.Perplexity()},
        ),
        draw(3, 3), CLASSES,
    ),
    "token": (
        objectives.token_cross_entropy(metrics={"bits": objectives.BitsPerCharacter()}), draw(3, 2, 4),
        CLASSES | {"targets": np.array([[0, 1], [3, 2], [1, 1]], np.int32)},
    ),
    "sigmoid": (
        objectives.sigmoid_cross_entropy(metrics={"accuracy": objectives.BinaryAccuracy()}), draw(3, 2),
        NUMBERS | {"targets": np.array([[0, 1], [1, 1], [0, 0]], np.float32)},
    ),
    "squared_error": (
        objectives.squared_error(
            num_outputs=2, metrics={"r2": objectives.R2(2), "rounded": objectives.RoundedAccuracy()}
        ),
        draw(3, 2), NUMBERS,
    ),
    "huber": (objectives.huber(num_outputs=2, metrics={"mae": objectives.MeanAbsoluteError()}), draw(3, 2), NUMBERS),
}  # fmt: skip
RULES = sorted(optim.algorithms)


def named(values):
    return [(name, name) for name in values]


class Variants(chex.TestCase):
    """The three ways in which one function runs; jit on the CPU fuses, so floats agree to rounding alone."""

    def check(self, function, *args):
        expected = jax.tree.map(np.asarray, function(*args))
        chex.assert_trees_all_close(self.variant(function)(*args), expected, rtol=2e-5, atol=2e-6)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    @parameterized.named_parameters(named(OPS))
    def test_operation(self, name):
        function, args = OPS[name]
        self.check(jax.value_and_grad(lambda x, *rest: jnp.sum(jnp.square(function(x, *rest)))), *args)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    @parameterized.named_parameters(named(OBJECTIVES))
    def test_objective(self, name):
        objective, outputs, batch = OBJECTIVES[name]

        def measured(outputs, batch):
            mean, states = objective.evaluate(outputs, batch)
            return mean, objective.compute(states)

        self.check(jax.value_and_grad(measured, has_aux=True), outputs, batch)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    @parameterized.named_parameters(named(RULES))
    def test_update_rule(self, name):
        optimizer = optim.adapt_optimizer(optim.algorithms[name](1e-2))
        params, grads = ({"kernel": draw(4, 3, seed=n), "bias": draw(3, seed=n + 9)} for n in (0, 1))

        def two_steps(params, grads):
            state = optimizer.init(params)
            for number in range(2):
                updates, state = optimizer.update(grads, state, params, progress=number / 10)
                params = optax.apply_updates(params, updates)
            return params

        self.check(two_steps, params, grads)
