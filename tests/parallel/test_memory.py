"""Memory that does not suffice is one message, before minutes have passed."""

import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.parallel import memory
from accelnet.parallel.memory import Limit
from accelnet.training.compiled import Program
from tests.users import toy

MIB = 1 << 20


def limited(monkeypatch, free, most, most_more=None):
    monkeypatch.setattr(memory, "limits", lambda devices: [Limit("a limit of the test", free, most, most_more)])


def product(rows):
    """A program with `rows` MiB of temporaries, and an argument and a result of a KiB."""
    shape = jax.ShapeDtypeStruct((256,), jnp.float32)

    def large(x):
        # A product takes its operand as an array, where a sum would compute it on its way.
        return (jnp.sin(jnp.arange(1024 * rows, dtype=jnp.float32)[:, None] * x[None, :]) @ x)[:256]

    return Program("large", large, (shape,))


def test_what_surely_cannot_fit_is_refused_before_the_first_step(monkeypatch):
    model = lambda rngs: an.models.MLP(8, (2048, 2048), 2, rngs=rngs)  # noqa: E731
    limited(monkeypatch, 16 * MIB, 16 * MIB)
    made = []
    monkeypatch.setattr(Program, "compiled", property(made.append))
    # 2,048 x 2,048 weights and Adam's two moments of each.
    with pytest.raises(
        an.UserError, match=r"48.* MiB of weights .* needs 48.* 16.0 MiB \(a limit of the test\)"
    ) as said:
        toy.fit(model)
    assert "\n" not in str(said.value) and "fsdp" in str(said.value) and "`plan`" in str(said.value)
    assert not made


@pytest.mark.parametrize("limits", [(1, 16 * MIB, None), (16 * MIB, 1 << 40, 16 * MIB)])
def test_a_program_that_cannot_be_called_is_refused_by_the_compilers_count(monkeypatch, limits):
    program = product(20)
    limited(monkeypatch, *limits)
    with pytest.raises(an.UserError, match=r"a call of the program 'large' needs .* MiB, and there are 16.0 MiB"):
        program(jnp.ones(256))


def test_what_others_may_give_back_is_only_a_warning(monkeypatch, capsys):
    program = product(20)
    limited(monkeypatch, 16 * MIB, 1 << 40)
    program(jnp.ones(256))
    said = capsys.readouterr().err
    assert "warning: a call of the program 'large' needs" in said and "16.0 MiB are free now" in said
    program(jnp.ones(256))
    assert not capsys.readouterr().err


def test_a_run_that_fits_is_told_nothing(capsys):
    toy.fit(lambda rngs: nnx.Linear(8, 2, rngs=rngs))
    assert "warning" not in capsys.readouterr().err


def test_each_simulated_device_counts(monkeypatch):
    limited(monkeypatch, 100, 100)
    memory.check_memory("it", 50, 50, jax.local_devices()[:2])
    with pytest.raises(an.UserError, match="it needs 150 B"):
        memory.check_memory("it", 50, 50, jax.local_devices()[:3])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 1.2 TiB"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nmore"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_a_failed_allocation_is_one_message(error):
    def fails(moment):
        raise error

    experiment = toy.experiment(lambda rngs: nnx.Linear(8, 2, rngs=rngs), events=[an.Event("start", fails)])
    with pytest.raises(an.UserError, match="memory is exhausted") as said:
        an.fit(experiment, progress=False)
    assert "\n" not in str(said.value)


def test_another_failure_stays_what_it_is():
    with pytest.raises(RuntimeError, match="else"), memory.exhaustion_explained():
        raise RuntimeError("something else")


def test_the_limits_of_this_machine_are_found():
    (machine, *_) = [limit for limit in memory.host_limits() if "machine" in limit.name]
    assert machine.free_bytes > 0 and machine.most_bytes > 1 << 28


def test_memory_that_was_freed_counts_as_free():
    block = np.ones(64 * MIB, np.uint8)
    before = memory._freed_bytes()
    del block
    assert memory._freed_bytes() >= before


def test_a_control_group_limits(monkeypatch, tmp_path):
    for path in ("memory.max", "memory.current"):
        (tmp_path / path).write_text({"memory.max": f"{MIB}\n", "memory.current": "1000\n"}[path])
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 600\n")
    monkeypatch.setattr(memory, "_groups_of", lambda: [(tmp_path, memory.VERSION_2)])
    assert list(memory._groups()) == [(MIB, 400)]
    assert any("control group" in limit.name and limit.most_bytes >= MIB for limit in memory.host_limits())
    (tmp_path / "memory.max").write_text("max\n")
    assert list(memory._groups()) == []


SCRIPT = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (6_000_000_000,) * 2)
import sys
from dataclasses import dataclass
import accelnet as an
@dataclass(frozen=True)
class Config:
    width: int = 40_000
def experiment(config: Config):
    return an.Experiment(
        data=an.data.xor(), model=lambda rngs: an.models.MLP(2, (config.width, config.width), 1, rngs=rngs),
        optimizer=an.optim.adam(1e-3), objective=an.objectives.squared_error(), batch_size=4, steps=3,
    )
an.main(experiment, ["train", "--quiet"])
"""


@pytest.mark.slow
@pytest.mark.cpu
def test_two_layers_of_forty_thousand_in_six_gigabytes_end_at_once(tmp_path):
    path = tmp_path / "big.py"
    path.write_text(SCRIPT)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done
    assert done.stderr.startswith("error: the run, with 17.9 GiB of weights and optimizer state")
    assert len(done.stderr.splitlines()) == 1 and "ulimit -v" in done.stderr and not done.stdout


def test_the_limit_of_the_address_space_is_the_kernels(monkeypatch):
    held = memory._table("/proc/self/status")["VmSize"]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (held + MIB, held + MIB))
    (limit,) = [one for one in memory.host_limits() if "ulimit" in one.name]
    assert limit.most_bytes == held + MIB and limit.most_more_bytes >= 0
