"""Latencies are those of what an artifact runs."""

import jax
import numpy as np
import pytest

import accelnet as an
from accelnet.compressing.bits import quantize
from accelnet.compressing.finetune import untrained_run
from accelnet.evaluating import latency
from accelnet.evaluating.latency import inference, make_answer
from accelnet.ops import kernels
from accelnet.ops.host_call import HostCall

INPUTS = np.random.default_rng(0).integers(0, 256, (32, 6, 6, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def runs():
    experiment = an.Experiment(
        data=an.data.from_arrays(INPUTS, np.arange(32) % 3, class_names=("a", "b", "c")),
        model=lambda rngs: an.models.MLP(36, (48, 48), 3, rngs=rngs),
        optimizer=an.optim.adam(0.01),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=8,
        steps=1,
    )
    whole = an.fit(experiment, progress=False)
    return {0: whole, 8: untrained_run(*quantize(whole.experiment, whole.params, whole.model_state, 8, rows=8))}


@pytest.mark.cpu
@pytest.mark.skipif(not kernels.load(), reason="no C++ compiler: XLA runs all")
@pytest.mark.parametrize("bits", [0, 8])
def test_what_is_timed_is_what_an_artifact_runs(runs, bits, tmp_path, monkeypatch):
    run = runs[bits]
    model = an.load(run.save(tmp_path / "a.accelnet"))
    answer = make_answer(run, 5)
    inputs = np.asarray(run.experiment.data.take(np.arange(5))["inputs"])
    called, call = [], HostCall.__call__
    monkeypatch.setattr(HostCall, "__call__", lambda self, arrays: called.append(self) or call(self, arrays))
    found, expected = answer(), model.answers(inputs)["outputs"]
    np.testing.assert_array_equal(found, expected)  # the same chain
    assert len(called) == 2 and all(type(one) is np.ndarray for one in (found, expected))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves((run.params, run.model_state)))
    assert weights < answer.num_bytes < 4 * weights  # panels have columns of zeros


def test_without_kernels_xla_runs_it(runs, monkeypatch):
    monkeypatch.setattr(latency.kernels, "load", lambda: False)
    answer = make_answer(runs[0], 5)
    assert answer().shape == (5, 3) and answer.num_bytes > 0
    found = inference(lambda weights, x: {"y": weights * x}, np.float32(3))(np.float32(2))
    assert isinstance(found["y"], jax.Array) and float(found["y"]) == 6.0
