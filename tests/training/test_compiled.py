"""What a program asks of the compiler."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

import accelnet as an
from accelnet.training import compiled
from accelnet.training.compiled import Program
from accelnet.training.program import prepare


@pytest.fixture
def experiment():
    return an.Experiment(
        data=an.data.xor(),
        model=lambda rngs: an.models.MLP(2, (4,), 1, rngs=rngs),
        optimizer=an.optim.adam(1e-2),
        objective=an.objectives.sigmoid_cross_entropy(),
        batch_size=4,
        steps=2,
    )


@pytest.mark.parametrize(
    ("platform", "asked"),
    [
        ("cpu", {"xla_backend_optimization_level": 1}),
        ("gpu", {"xla_gpu_deterministic_ops": True}),
        ("tpu", None),
    ],
)
def test_a_gpu_alone_is_asked_for_the_same_bits_in_every_run(platform, asked, monkeypatch):
    monkeypatch.setattr(compiled, "devices_of", lambda _: [SimpleNamespace(platform=platform)])
    shape = jax.ShapeDtypeStruct((2,), np.float32)
    program = Program("double", lambda x: 2 * x, (shape,), runs_once=True, deterministic=True)
    assert program._compile(SimpleNamespace(compile=lambda options: options)) == asked


def test_what_a_run_begins_with_is_waited_for():
    """Where there was no memory for it, reading its step waited for ever (fault 549 of scripts/faultstorm.py)."""
    shape = jax.ShapeDtypeStruct((400, 400), np.float32)

    def long(matrix):
        return jax.lax.fori_loop(0, 200, lambda _, one: one @ matrix, matrix)

    program = Program("long", long, (shape,), runs_once=True)
    assert program(np.eye(400, dtype=np.float32)).is_ready()


def test_all_programs_of_a_deterministic_run_are_and_resuming_it_otherwise_is_a_change(experiment):
    fixed = experiment.replace(deterministic=True)
    _, programs = prepare(fixed)
    start = programs.starting_from({"head.bias": np.zeros(1, np.float32)}).__closure__
    starts = [cell.cell_contents for cell in start if isinstance(cell.cell_contents, Program)]
    every = [programs.init, programs.train, programs.evaluate, programs.evaluate_rest(2)[0], *starts]
    assert len(every) == 5 and all(program.deterministic for program in every)
    assert set(fixed.description()) - set(experiment.description()) == {"deterministic"}
