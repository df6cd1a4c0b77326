"""The benchmark's arithmetic, what it refuses, and a run of one round."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

import bench  # noqa: E402

from bench_systems import accelnet_chunks, cases, comparison, flax_loop, onnx_runtimes, rounds  # noqa: E402

pytestmark = pytest.mark.slow


def test_losses_are_compared_relative_to_the_reference():
    difference = comparison.largest_difference([2.0, 1.0, 4.0], [2.0, 1.1, 4.2])
    assert (difference.step, difference.reference, difference.loss) == (1, 1.0, 1.1)
    assert math.isclose(difference.relative, 0.1)


def test_first_steps_must_agree_closely_and_later_ones_as_closely_as_the_other_peers_do():
    ours, first, later = [2.0] * 20, [2.0, 2.001] + [2.0] * 18, [2.0] * 19 + [2.01]
    assert comparison.refusal(ours, first).step == 1 and comparison.refusal(ours, later).step == 19
    assert comparison.refusal(ours, [2.0] * 19 + [2.001]) is None
    assert comparison.refusal(ours, later, [ours, [2.0] * 19 + [2.006]]) is None
    assert comparison.refusal(ours, later, [ours, [2.0] * 19 + [2.004]]) is not None
    assert comparison.refusal(ours, first, [ours, later, first]) is not None
    assert comparison.refusal([1.0, 1.0], [1.0, math.nan]) is not None
    assert comparison.refusal([1e-9], [5e-8]) is None  # losses near 0 are compared with 1e-3


def test_losses_of_a_population_are_compared_member_by_member():
    difference = comparison.largest_difference([[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0], [1.0, 3.0]])
    assert (difference.step, difference.relative) == (1, 0.5)


def test_each_round_begins_with_another_system():
    assert [comparison.rotated("abc", turn) for turn in range(4)] == [
        list("abc"),
        list("bca"),
        list("cab"),
        list("abc"),
    ]


def test_the_faster_allocator_counts():
    times = {("torch", "default"): [3.0, 1.0, 2.0], ("torch", "tuned"): [1.5, 1.5, 9.0], ("flax", "default"): [1.0]}
    assert comparison.counted_variants(times) == {"torch": "tuned", "flax": "default"}


def test_the_best_peer_has_the_smallest_median_and_is_neither_accelnet_nor_the_limit():
    times = {"limit": [0.1, 0.1, 0.1], "accelnet": [1.0, 1.0, 1.0], "torch": [9.0, 2.0, 2.0], "flax": [3.0, 3.0, 1.0]}
    assert comparison.best_peer(times) == "torch"
    assert comparison.best_peer({"accelnet": [1.0], "limit": [1.0]}) is None


def test_a_ratio_is_the_median_of_the_ratios_within_rounds():
    # The second round ran on a machine that was twice as slow: the ratio does not see it.
    assert comparison.paired_ratio([2.0, 4.0, 2.0], [1.0, 2.0, 0.5]) == 2.0


def test_the_summary_leaves_out_cases_without_a_ratio():
    summary = comparison.summary([{"ratio": 2.0}, {"ratio": 8.0}, {"ratio": None}, {"ratio": 32.0}])
    assert summary["min_ratio"] == 2.0 and summary["geomean_ratio"] == pytest.approx(8.0)
    assert summary["geomean_but_largest"] == pytest.approx(4.0)
    assert set(comparison.summary([{"ratio": None}]).values()) == {None}


def test_the_record_says_what_the_readme_says_of_it():
    cases = json.loads((ROOT / "benchmarks" / "bench.json").read_text())["cases"]
    assert f"{comparison.summary(cases)['geomean_but_largest']:.2f} times as fast" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("option", ["--cases", "--systems"])
def test_an_unknown_name_exits_with_2_and_names_the_known(option, capsys, monkeypatch):
    monkeypatch.setattr(bench, "has_peers", lambda: True)
    with pytest.raises(SystemExit) as exit_:
        bench.main([option, "fashion_cmm"])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert "fashion_cmm" in message and ("fashion_cnn" in message if option == "--cases" else "keras_torch" in message)
    assert len(message.splitlines()) == 1


def test_another_learning_rate_is_refused():
    case = cases.CASES["xor_mlp"]
    arrays = accelnet_chunks.export(case)
    losses = {"accelnet": accelnet_chunks.make(case, "accelnet", arrays).losses(20)}
    losses["flax"] = flax_loop.make(case, "flax", arrays).losses(20)
    losses["other"] = flax_loop.make(case._replace(learning_rate=1.1e-3), "flax", arrays).losses(20)
    notes = {(name, "default"): {"status": "measured", "losses": of_system} for name, of_system in losses.items()}
    found = rounds.compared(notes)
    assert found["flax", "default"]["status"] == "measured"
    refused = found["other", "default"]
    assert refused["status"] == "refused"
    assert "its loss at step 5 is 0." in refused["reason"]


@pytest.mark.parametrize("name", ["char_gru", "bidirectional_lstm"])
def test_other_shapes_of_a_case_are_one_line_and_agree(name):
    case = {
        "char_gru": cases.char_rnn("char_gru", 8, 4, cell="gru", embedding=6, num_symbols=11, num_steps=5),
        "bidirectional_lstm": cases.sequence_rnn(
            "bidirectional_lstm", (6, 5), 8, 4, num_layers=2, bidirectional=True, shortest=2
        ),
    }[name]
    compare_systems(case, "flax_loop", "flax")


@pytest.mark.parametrize(
    "case",
    [
        cases.mlp("mlp", (12, 7, 3), 4),
        cases.cnn("cnn", (8, 12, 2), (4, 6), 4),
        cases.separable_cnn("separable_cnn", (16, 8, 3), (4, 6), 4),
        cases.char_rnn("char_gru", 8, 4, cell="gru", embedding=6, num_symbols=11, num_steps=5),
        cases.sequence_rnn("lstm", (6, 5), 8, 4, num_layers=2, bidirectional=True, shortest=2),
        cases.mlp("population", (12, 7, 3), 4, kind="population", members=3),
    ],
    ids=lambda case: case.name,
)
def test_pytorch_agrees_on_other_shapes(case):
    pytest.importorskip("torch")
    compare_systems(case, "pytorch", "torch")


@pytest.mark.parametrize("system", ["onnxruntime", "openvino"])
def test_runtimes_of_onnx_files_run_the_same_network(system):
    pytest.importorskip(system)
    compare_systems(cases.cnn("cnn", (8, 12, 2), (4, 6), 4, "inference"), "onnx_runtimes", system)
    with pytest.raises(NotImplementedError, match="trains none"):
        onnx_runtimes.make(cases.CASES["xor_mlp"], system, None)


def compare_systems(case, module, system):
    arrays = accelnet_chunks.export(case)
    reference = accelnet_chunks.make(case, "accelnet", arrays).losses(5)
    losses = importlib.import_module(f"bench_systems.{module}").make(case, system, arrays).losses(5)
    # Recurrences and other networks without gradients near zero: rounding alone.
    assert comparison.largest_difference(reference, losses).relative < 1e-4


def test_a_round_from_the_command_to_the_files(tmp_path, capsys):
    assert bench.run(["xor_mlp"], ["flax"], 1, tmp_path, turn_seconds=0.01) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    (row,) = found["cases"]
    assert list(row) == ["case", "kind", "limit_seconds", "systems", "best_peer", "ratio"]
    assert (row["case"], row["kind"], row["best_peer"]) == ("xor_mlp", "train", "flax")
    assert list(row["systems"]) == ["accelnet", "flax"]
    for cell in row["systems"].values():
        assert cell["status"] == "measured" and cell["first_step_seconds"] > cell["compile_seconds"] > 0
        assert cell["spread"][0] <= cell["step_seconds"] <= cell["spread"][1] and cell["peak_bytes"] > 50 << 20
    assert row["ratio"] == found["min_ratio"] == pytest.approx(found["geomean_ratio"])
    assert {"machine", "versions", "date"} < set(found)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.png"]
    assert "xor_mlp" in capsys.readouterr().out


def test_a_worker_that_dies_costs_its_row_only(monkeypatch):
    original = rounds.Worker.ask

    def ask(self, command, **arguments):
        if command == "losses" and self.name.startswith("flax"):
            self.process.kill()
        return original(self, command, **arguments)

    monkeypatch.setattr(rounds.Worker, "ask", ask)
    said = []
    row = rounds.measure(cases.CASES["xor_mlp"], ["accelnet", "flax"], rounds=1, turn_seconds=0.01, say=said.append)
    assert row["systems"]["accelnet"]["status"] == "measured"
    assert row["systems"]["flax"]["status"] == "failed" and "`losses`" in row["systems"]["flax"]["reason"]
    assert (row["best_peer"], row["ratio"]) == (None, None)
