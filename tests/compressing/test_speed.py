"""Layers that fewer bits make slower keep their floats."""

import jax
import numpy as np
import pytest

import accelnet as an
from accelnet.compressing import speed
from accelnet.compressing.bits import quantizable, quantize, to_stored, to_training
from accelnet.compressing.candidate import cost_of, weighing_of
from accelnet.compressing.fewer_bits import FewerBits
from accelnet.compressing.finetune import untrained_run
from accelnet.compressing.layer_inputs import InputMoments
from accelnet.compressing.proposals import RankLadder
from tests.compressing import modules
from tests.compressing.modules import IMAGES, TOKENS, SequenceToSequence, VisionTransformer

SENTENCES = {"source": TOKENS, "target": TOKENS[:, :-1]}
LAYERS = ["embedding", "layers.0.backward", "layers.0.forward", "output_layer"]


def untrained(model, inputs):
    splits = {"train": range(12), "validation": range(12, 16)}
    data = an.data.Data("rows", {"inputs": inputs, "targets": np.arange(16) % 4}, splits)
    experiment = an.Experiment(
        data=data,
        model=model,
        batch_size=4,
        steps=1,
        optimizer=an.optim.adam(1e-2),
        objective=an.objectives.softmax_cross_entropy(),
    )
    return untrained_run(experiment, *experiment.pure_model.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def run():
    def rnn(rngs):
        return an.models.RNN(8, 16, 4, num_symbols=20, bidirectional=True, dropout=0.5, rngs=rngs)

    return untrained(rnn, np.random.default_rng(0).integers(0, 20, (16, 6)).astype(np.int32))


def timed(monkeypatch, slow_sizes, slow_layers, slow_together=()):
    """Let networks be slow at some batch sizes while some layers have fewer bits, and return what was timed."""
    seen = []

    def make_answer(run, batch_size):
        model = run.experiment.model
        return batch_size, set(model.compression.bits) if hasattr(model, "compression") else set()

    def measure_in_turns(answers, _):
        one = answers["smaller"]
        seen.append(one if isinstance(one, str) else one[0])
        slow = isinstance(one, str) and one in slow_layers
        if not isinstance(one, str):
            slow = one[0] in slow_sizes and bool(one[1] & {*slow_layers, *slow_together})
        return {"whole": {"ratio": 1.0}, "smaller": {"ratio": 1.5 if slow else 0.5}}

    monkeypatch.setattr(speed, "make_answer", make_answer)
    monkeypatch.setattr(speed, "measure_in_turns", measure_in_turns)
    monkeypatch.setattr(speed, "_layer", lambda _, path: path)
    monkeypatch.setattr(speed, "_answer", lambda path, _: path)
    return seen


def test_calls_of_layers_are_known_without_computing(run):
    assert list(quantizable(run.experiment)) == LAYERS
    calls = speed.layer_calls(run, LAYERS, 3)
    shapes = {path: args[0].shape for path, (args, _) in calls.items()}
    assert shapes["embedding"] == (3, 6) and shapes["output_layer"] == (3, 32)
    assert set(shapes) == set(LAYERS)


@pytest.mark.slow  # of eight programs
def test_layers_are_timed_alone(run):
    smaller = untrained_run(*quantize(*weighing_of(run), 8, moments={}))
    ratios = speed.layer_ratios(run, smaller, 2)
    assert set(ratios) == set(LAYERS) and all(0.01 < one < 100 for one in ratios.values())


def test_a_layer_keeps_its_floats_where_the_network_and_it_are_slower(run, monkeypatch):
    seen = timed(monkeypatch, {2}, {"embedding", "layers.0.forward"})
    notes = []
    bits = FewerBits(InputMoments(lambda _: None), (1, 2), notes.append)
    experiment, params, state = bits.stored(8, run)
    assert seen == [1, 2, *speed.layer_calls(run, LAYERS, 1), 1, 2]
    assert dict(experiment.model.compression.bits) == {"layers.0.backward": 8, "output_layer": 8}
    np.testing.assert_array_equal(params["embedding"]["embedding"], run.params["embedding"]["embedding"])
    assert state["output_layer"]["kernel"].dtype == np.int8
    (note,) = notes
    assert note.startswith("layers that are slower with 8 bits kept their floats: embedding (1.50 times as long), ")


def test_layers_that_are_slower_together_keep_their_floats_half_by_half(run, monkeypatch):
    """Those of a Transformer are faster one by one, and 1.4 times as slow in the network."""
    timed(monkeypatch, {2}, set(), {"embedding"})
    experiment, *_ = FewerBits(InputMoments(lambda _: None), (1, 2), lambda _: None).stored(8, run)
    left = dict(experiment.model.compression.bits)
    assert "embedding" not in left and 0 < len(left) < len(LAYERS) - 1


def test_a_network_that_is_slower_with_any_layer_of_few_bits_is_smaller_alone(run, monkeypatch):
    timed(monkeypatch, {1}, set(), LAYERS)
    notes = []
    experiment, *_ = FewerBits(InputMoments(lambda _: None), (1, 2), notes.append).stored(8, run)
    assert dict(experiment.model.compression.bits) == dict.fromkeys(LAYERS, 8)
    assert notes == ["with 8 bits a network is smaller, and slower, whichever of its layers keep their floats"]


def test_recurrent_kernels_of_low_rank_stay_whole_where_their_layers_are_slower(run, monkeypatch):
    slow, sizes = {"layers.0.forward"}, (1, 4)
    timed(monkeypatch, set(), slow)
    notes, weighing, inputs = [], weighing_of(run), InputMoments(lambda _: None)
    ladder = RankLadder(weighing, cost_of(run.experiment), inputs, sizes, notes.append)
    kernels = [path for path in ladder.found if path.endswith("recurrent_kernel")]
    assert kernels == ["layers.0.backward.recurrent_kernel"]
    (note,) = notes
    assert note == "layers.0.forward.recurrent_kernel stays whole: with a low rank, its layer takes 1.50 times as long"
    # One of low rank has no fewer bits, and it is said so.
    proposal = ladder.propose(1.2)
    assert "layers.0.backward.recurrent_kernel" in proposal.experiment.model.compression.ranks
    FewerBits(inputs, (), notes.append).stored(8, untrained_run(*proposal.weigh()))
    assert "computes with them: layers.0.backward" in notes[-1] and "recurrent_down" in notes[-1]


def test_nothing_is_timed_layer_by_layer_where_the_network_is_faster(run, monkeypatch):
    seen = timed(monkeypatch, set(), set(LAYERS))
    experiment, *_ = FewerBits(InputMoments(lambda _: None), (1, 64), pytest.fail).stored(4, run)
    assert seen == [1, 64] and dict(experiment.model.compression.bits) == dict.fromkeys(LAYERS, 4)


def test_what_was_trained_for_few_bits_keeps_floats_too(run, monkeypatch):
    timed(monkeypatch, {1}, {"output_layer"})
    rounded = untrained_run(to_training(run.experiment, 8), run.params, run.model_state)
    made = FewerBits(InputMoments(lambda _: None), (1,), lambda _: None).trained(8, rounded)
    expected = to_stored(*weighing_of(rounded), embeddings=8, leaving=["output_layer"])
    assert made[0].model.compression == expected[0].model.compression
    assert set(made[0].model.compression.bits) == set(LAYERS[:3])
    np.testing.assert_array_equal(made[1]["output_layer"]["kernel"], run.params["output_layer"]["kernel"])


@pytest.mark.parametrize(
    ("model", "inputs", "shapes"),
    [
        (
            VisionTransformer,
            IMAGES,
            {"blocks.0.attention.query": (3, 4, 16), "head": (3, 16)},
        ),
        (SequenceToSequence, SENTENCES, {"head": (3, 5, 8), "symbols": (3, 6)}),
    ],
)
def test_calls_of_others_layers_are_known(model, inputs, shapes):
    given = modules.experiment(model, inputs, *((TOKENS[:, 1:], 11) if model is SequenceToSequence else ()))
    run = untrained_run(given, *given.pure_model.init(jax.random.key(0), given.sample_inputs()))
    calls = speed.layer_calls(run, quantizable(given), 3)
    assert set(calls) <= set(quantizable(given))
    assert {path: calls[path][0][0].shape for path in shapes} == shapes
    # Those in a loop over steps are called with one step.
    assert all(args[0].shape[0] == 3 for args, _ in calls.values())
