"""FLOPs of a whole step against formulas written by hand, for each family of models."""

import numpy as np
import optax
import pytest

import accelnet as an
from accelnet.training.flops import step_flops

BATCH = 6


def experiment(inputs, model, objective=None, **settings):
    rows = {"inputs": inputs}
    data = an.data.from_arrays(rows["inputs"], np.arange(len(inputs)) % 3, num_classes=3)
    defaults = {"optimizer": optax.sgd(0.1), "batch_size": BATCH, "steps": 2}
    return an.Experiment(
        data=data, model=model, objective=objective or an.objectives.softmax_cross_entropy(), **(defaults | settings)
    )


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def mlp(**settings):
    return experiment(random(40, 7), lambda rngs: an.models.MLP(7, (11, 13), 3, rngs=rngs), **settings)


def test_mlp_equals_the_hand_formula():
    flops = step_flops(mlp())
    layers = [7 * 11, 11 * 13, 13 * 3]
    assert flops.forward.product_flops == 2 * BATCH * sum(layers)
    # The gradient of every kernel, and of every layer's input but the first's.
    assert flops.backward.product_flops == 2 * BATCH * (2 * sum(layers) - layers[0])
    assert flops.optimizer.product_flops == 0
    # p + (-0.1) g: a multiplication and an addition per parameter.
    parameters = sum(layers) + 11 + 13 + 3
    assert parameters * 2 <= flops.optimizer.elementwise <= parameters * 2 + 32


def test_microbatches_count_each():
    whole, parts = step_flops(mlp()), step_flops(mlp(microbatch_size=2))
    assert parts.forward.product_flops == whole.forward.product_flops
    assert parts.backward.product_flops == whole.backward.product_flops


def test_a_device_share_counts_its_examples_alone():
    whole, third = step_flops(mlp()), step_flops(mlp(), microbatch_size=2)
    assert 3 * third.forward.product_flops == whole.forward.product_flops


def test_remat_adds_the_forward_pass_that_is_computed_again():
    plain, remat = step_flops(mlp()), step_flops(mlp(remat="blocks"))
    again = remat.backward.product_flops - plain.backward.product_flops
    # The result of the last layer is needed by no gradient but the loss's own.
    assert again >= 2 * BATCH * (7 * 11 + 11 * 13)
    assert remat.forward.product_flops == plain.forward.product_flops


def test_cnn_equals_the_hand_formula():
    flops = step_flops(
        experiment(random(40, 8, 8, 2), lambda rngs: an.models.CNN((8, 8, 2), (4, 5), 3, dense_features=(), rngs=rngs))
    )
    first, second = 8 * 8 * 9 * 2 * 4, 4 * 4 * 9 * 4 * 5
    head = 2 * 2 * 5 * 3
    assert flops.forward.product_flops == 2 * BATCH * (first + second + head)
    assert flops.backward.product_flops == 2 * BATCH * (first + 2 * second + 2 * head)


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3)])
def test_recurrent_layers_equal_the_hand_formula(cell, gates):
    steps, features, hidden = 9, 5, 8
    flops = step_flops(
        experiment(
            random(40, steps, features),
            lambda rngs: an.models.RNN(features, hidden, 3, cell=cell, rngs=rngs),
        )
    )
    inputs, recurrent, head = steps * features * gates * hidden, steps * hidden * gates * hidden, hidden * 3
    assert flops.forward.product_flops == 2 * BATCH * (inputs + recurrent + head)
    # No gradient of the inputs; of the recurrent products both.
    assert flops.backward.product_flops == 2 * BATCH * (inputs + 2 * recurrent + 2 * head)


def test_the_dict_lists_products_and_adds_up():
    values = step_flops(mlp()).to_dict()
    assert values["matrix_products"] == sum(row["flops"] for row in values["products"])
    assert values["forward"] > values["matrix_products"] // 4
