"""A batch as the model sees it: prepared, in training augmented, with the key of the model's noise."""

from typing import Any

import jax

from accelnet.errors import user_code
from accelnet.experiment import Experiment
from accelnet.parallel.layout import Layout
from accelnet.parallel.noise import shard_key
from accelnet.scopes import scope
from accelnet.signature import Offer, call, described
from accelnet.training.state import AUGMENT, NOISE, random_key

Batch = dict[str, Any]


def num_examples(batch: Batch) -> int:
    """Return the number of examples of a batch, padding included."""
    return jax.tree.leaves(batch["inputs"])[0].shape[0]


def training_batch(
    experiment: Experiment, batch: Batch, layout: Layout, part: Any, seed: Any, step: Any, number: Any
) -> tuple[Batch, jax.Array]:
    """Return a part of a microbatch as training sees it, prepared and augmented, and the key of the model's noise."""
    batch = prepared(experiment, batch)
    noise, changes = (
        shard_key(random_key(seed, purpose, step, number), part, layout.num_parts, num_examples(batch))
        for purpose in (NOISE, AUGMENT)
    )
    if experiment.data.augment is not None:
        given = {"step": step, "progress": Offer(lambda: experiment.progress(step)), "task": experiment.objective.task}
        given |= {name: experiment.data.info[name] for name in ("num_classes",) if name in experiment.data.info}
        with scope("augmentation"):
            batch = call("augment", experiment.data.augment, changes, batch, **given)
    return batch, noise


def prepared(experiment: Experiment, batch: Batch) -> Batch:
    """Prepare a batch as the data says; where that fails, say so with the batch's shapes."""
    with user_code("prepare", described([batch])), scope("input"):
        return experiment.data.prepare(batch)
