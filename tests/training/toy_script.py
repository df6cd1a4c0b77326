"""An experiment script of a small model with all kinds of noise, for tests in processes of their own."""

import atexit
import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path

import optax

import accelnet as an
from accelnet.data.rows import lazy_arrays
from accelnet.data.stored import StoredRows
from tests.training.conftest import CUT, toy_data, toy_experiment


@dataclass(frozen=True)
class Config:
    steps: int = 50
    batch_size: int = 12
    microbatch_size: int | None = None
    on_device: bool | None = None
    reads: str = ""
    """File, without its ending, where each process writes how many rows it read; then rows are read one by one."""
    pause: float = 0.0
    """Seconds that every step takes longer on each device."""


def experiment(config: Config) -> an.Experiment:
    made = toy_experiment(
        # No epoch ends with a batch of two: batch statistics make +1 and -1 of two examples, and gradients of rounding.
        data=toy_data(num_train=54),
        steps=config.steps,
        batch_size=config.batch_size,
        microbatch_size=config.microbatch_size,
        on_device=config.on_device,
        log_every=an.Every(steps=1 if not config.pause else 5),
        # No Adam: see test_layouts.py.
        optimizer=optax.chain(an.optim.momentum(0.02), an.optim.average_params(0.9)),
        eval_batch_size=12,
        save_every=an.Every(steps=10),
        sharding_rules=CUT,
    )
    if config.reads:
        data = made.data
        rows = CountedRows(dict(data.arrays))
        atexit.register(rows.write, f"{config.reads}.{os.environ.get('JAX_PROCESS_ID', 'alone')}")
        made = made.replace(data=dataclasses.replace(data, arrays=lazy_arrays(rows)))
    slow = lambda batch: {**batch, "inputs": _after(config.pause, made.data.prepare(batch)["inputs"])}  # noqa: E731
    return made.replace(data=dataclasses.replace(made.data, prepare=slow)) if config.pause else made


class CountedRows(StoredRows):
    """Rows that count how many of the training split were read."""

    stored = False
    count = 0

    def read(self, rows):
        self.count += len(rows)
        return super().read(rows)

    def write(self, path):
        Path(path).write_text(str(self.count))


def _after(seconds: float, array):
    import jax

    def wait(a):
        time.sleep(seconds)
        return a

    return jax.pure_callback(wait, jax.ShapeDtypeStruct(array.shape, array.dtype), array)


if __name__ == "__main__":
    an.main(experiment)
