"""Training on batches that are changed at random: the same on every layout, in every chunk, and after a break."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.parallel.mesh import make_mesh, parse_mesh
from accelnet.training.rhythm import Pace

pytestmark = pytest.mark.usefixtures("no_pictures")

rng = np.random.default_rng(0)
LABELS = (np.arange(70) % 3).astype(np.int32)
IMAGES = (rng.normal(size=(70, 6, 6, 3)) + LABELS[:, None, None, None]).astype(np.float32)
SPLITS = {"train": range(50), "validation": range(50, 60), "test": range(60, 70)}
CHANGES = an.data.compose(
    an.data.random_crop(1),
    an.data.random_shift(1, 1),
    an.data.random_flip("vertical"),
    an.data.color_jitter(0.2, 0.2, 0.2, 0.1),
    an.data.random_noise(0.1),
    an.data.cutout(2),
)


AUGMENTS = {
    "mixup": an.data.compose(CHANGES, an.data.mixup(0.4)),
    "cutmix": an.data.compose(CHANGES, an.data.cutmix()),
    None: CHANGES,
}
ARRAYS = {"inputs": IMAGES, "targets": LABELS}
# The same objects make the same programs: see `accelnet.training.reuse`.
DATA = {
    name: an.data.Data("mixed", ARRAYS, SPLITS, augment=augment, info={"num_classes": 3})
    for name, augment in AUGMENTS.items()
}
SETTINGS = {
    "model": lambda rngs: an.models.CNN((6, 6, 3), (4,), 3, norm="batch", rngs=rngs),
    "optimizer": an.optim.momentum(0.02),
    "objective": an.objectives.softmax_cross_entropy(label_smoothing=0.1, class_weights=(1.0, 2.0, 0.5)),
    "batch_size": 8,  # the last of an epoch has two examples
    "steps": 10,
    "log_every": an.Every(steps=1),
}


def experiment(name=None, **changes):
    return an.Experiment(**(SETTINGS | {"data": DATA[name]} | changes))


def fit(experiment, mesh=None, **options):
    if mesh is not None:
        axes = parse_mesh(mesh)
        mesh = make_mesh(axes, jax.devices()[: math.prod(axes.values())])
    return an.fit(experiment, progress=False, mesh=mesh, **options)


def losses(run):
    return [row["loss"] for row in run.rows if row["split"] == "train"]


# Of ways to mix and layouts, each of the one with two of the other.
@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        ("mixup", [("data=4", "jit"), ("data=4", "pmap")]),
        ("cutmix", [("data=2,fsdp=2", "jit"), ("data=4", "pmap")]),
    ],
)
def test_mixed_batches_are_the_same_on_several_devices_and_compile_once(name, layouts):
    made = experiment(name)
    one = fit(made)
    assert one.result["compiles"] == {"train": 1, "eval": 1}
    for mesh, strategy in layouts:
        many = fit(made, mesh=mesh, strategy=strategy)
        # Sums over a batch are taken in another order.
        np.testing.assert_allclose(losses(many), losses(one), rtol=2e-5)
        assert many.metrics["test"] == pytest.approx(one.metrics["test"], rel=1e-4)
    assert not np.allclose(losses(fit(experiment())), losses(one), rtol=1e-2)


def test_steps_one_by_one_and_a_run_that_was_broken_off_give_the_same_bits(tmp_path):
    made = experiment("mixup", microbatch_size=4, save_every=an.Every(steps=2))
    whole = fit(made)
    chex.assert_trees_all_equal(fit(made, pace=Pace(chunk_seconds=1e-9)).state, whole.state)

    def die(moment):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fit(made, workdir=tmp_path, events=[an.Event(an.Every(steps=7), die)])
    chex.assert_trees_all_equal(fit(made, workdir=tmp_path, resume=True).state, whole.state)


def test_evaluation_sees_the_rows_as_they_are():
    class Same(nnx.Module):
        def __init__(self, rngs):
            self.bias = nnx.Param(jnp.zeros(3))

        def __call__(self, x):
            return x.mean((1, 2)) + 0.0 * self.bias[...][None]

    run = fit(experiment("mixup", model=Same, steps=2))
    for split in ("validation", "test"):
        rows = SPLITS[split]
        right = IMAGES[rows.start : rows.stop].mean((1, 2)).argmax(1) == LABELS[rows.start : rows.stop]
        assert run.metrics[split]["accuracy"] == pytest.approx(right.mean())


def test_a_batch_that_cannot_be_paired_is_refused_before_the_first_step():
    with pytest.raises(an.UserError, match="has 3 examples, and neighbours are mixed: expected an even number"):
        fit(experiment("mixup", batch_size=12), mesh="data=4")


def test_mixed_batches_train_in_bfloat16():
    low, full = fit(experiment("cutmix", precision="bfloat16")), fit(experiment("cutmix"))
    np.testing.assert_allclose(losses(low)[:5], losses(full)[:5], rtol=3e-2)  # 8 bits of mantissa
