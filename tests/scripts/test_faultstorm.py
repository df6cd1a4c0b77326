"""The storm of faults: what it draws, what it notices, and a storm of a few faults."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from accelnet.errors import UserError
from accelnet.training.record import TensorBoardLog
from scripts.faultstorm import kinds
from scripts.faultstorm.faults import ALL, DAMAGES, Course, Fault, damage, draw, group_of
from scripts.faultstorm.judge import misnamed, misnamed_resume
from scripts.faultstorm.outcome import Outcome, Reference, differences, shown_by_tensorboard
from scripts.faultstorm.processes import Ended, Sent

pytestmark = [pytest.mark.slow, pytest.mark.waits]

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "faultstorm.py"
OPERATIONS = ["o config.json", "w metrics.jsonl", "w metrics.jsonl", "r checkpoints/15", "M memory"]


def test_a_seed_draws_the_same_faults_again_and_another_seed_others():
    runs = ("mlp", "wide", "float16", "three")
    first, again, other = (
        [draw(seed, index, runs, ALL, lambda *_: Course(2.0, OPERATIONS)) for index in range(3 * len(ALL))]
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert [fault.kind for fault in first] == list(ALL) * 3


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("metrics.jsonl", "metrics.jsonl*"),
        (".config.json.1f2e3d4c.tmp", ".config.json.*.tmp*"),
        ("checkpoints/15/state/d/aa146d7601017015482d95926b69b405", "checkpoints/*/state/d*"),
        ("tensorboard/events.out.tfevents.1795903388.vm.17", "tensorboard/events.out.tfevents.*.vm.**"),
    ],
)
def test_files_that_differ_in_steps_and_random_names_are_of_one_group(path, pattern):
    assert group_of(path) == pattern


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_changes_one_file(tmp_path, kind):
    for step in (10, 20):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "state").write_bytes(bytes(range(step)))
    (tmp_path / "config.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    named = damage(tmp_path, Fault(0, kind, "mlp", midway=True, file=(0.3, 0.4)))
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert [path for path in before if after.get(path) != before[path]] == [tmp_path / named]


def ended(*codes, said):
    return Ended(codes, tuple(said), "hit", 1.0, ())


LOST = "error: rank 1 on vm is lost: it ended or was killed"
MISSING = "error: 2 of 3 processes arrived within 15 s; missing: 1 (here: 0 on vm, 2 on vm)"
OF_CPP = "E1130 19:34:48.692808   10259 coordination_service_agent.cc:289] Polled an error\n"
EARLY = "preempted: told to end (SIGTERM) before anything began"


@pytest.mark.parametrize(
    ("kind", "rank", "codes", "said", "right"),
    [
        ("kill", 0, (-9,), [""], True),
        ("kill", 1, (5, -9, 5), [LOST, "", LOST], True),
        ("kill", 1, (2, -9, 5), [LOST, "", LOST], False),
        ("kill", 2, (5, 5, -9), [LOST, LOST, ""], False),
        ("full disk", 0, (2,), ["error: cannot write a: No space left on device. Free space"], True),
        ("full disk", 0, (1,), ["error: cannot write a: No space left on device. Free space"], False),
        ("full disk", 0, (2,), ["error: cannot write a: Input/output error"], False),
        ("SIGINT", 0, (130,), ["interrupted: the state of step 5 is saved"], True),
        ("SIGINT", 0, (130,), ["Traceback (most recent call last):\nKeyboardInterrupt"], False),
        ("SIGTERM", 1, (5, 4, 5), [MISSING, EARLY, MISSING], True),
        ("SIGTERM", 1, (4, 4, 5), [MISSING, EARLY, MISSING], False),
        ("SIGTERM", 2, (5, 5, 4), [MISSING, MISSING, EARLY], False),
        ("SIGTERM", 1, (5, 4, 5), [MISSING, "preempted: the state of step 5 is saved", MISSING], False),
        ("network", 0, (5, 5, 5), [LOST, *["error: process 1 on vm did not reach process 0 in time"] * 2], True),
        ("kill", 1, (5, -9, 5), [LOST, "", OF_CPP + LOST], False),
        ("clock", 0, (0,), [""], True),
        ("clock", 0, (0,), ["warning: the clock"], False),
    ],
)
def test_an_end_is_right_by_its_code_and_one_message_that_names_the_cause(kind, rank, codes, said, right):
    run = "three" if len(codes) == 3 else "mlp"
    assert right == (not misnamed(Fault(0, kind, run, rank=rank), ended(*codes, said=said)))


@pytest.mark.parametrize(("rank", "right"), [(1, True), (2, False)])
def test_who_stood_still_for_too_long_may_show_what_jax_says_of_the_others(rank, right):
    stopped = Fault(0, "stop", "three", rank=1, sent=Sent(signal.SIGSTOP, 1.0, pause=30.0))
    said = [OF_CPP + LOST if rank == number else LOST for number in range(3)]
    said[1] = said[1].replace("is lost", "was stopped")
    assert right == (not misnamed(stopped, ended(5, 5, 5, said=said)))


@pytest.mark.parametrize(
    ("kind", "codes", "seconds", "right"),
    [
        ("kill", (0, -9, 0), 9.0, True),
        ("kill", (0, -9, 0), 4.0, False),
        ("kill", (0, -9, 5), 9.0, False),
        ("kill", (0, 0, 0), 9.0, True),
        ("stop", (0, 0, 0), 9.0, True),
        ("stop", (0, 0, 5), 9.0, False),
        ("full disk", (0, 0, 0), 9.0, False),
    ],
)
def test_what_happens_after_the_last_step_may_come_too_late_for_all_and_not_for_some(kind, codes, seconds, right):
    fault = Fault(0, kind, "three", rank=1, sent=Sent(signal.SIGSTOP, 1.0, pause=30.0) if kind == "stop" else None)
    trace = ((1.0, 0, 0.0), (5.0, 30, 0.0), (10.0, 40, 0.0))
    end = Ended(codes, ("",) * 3, "hit", 12.0, trace, seconds)
    assert right == (not misnamed(fault, end))


def test_time_in_which_several_programs_are_compiled_counts_once(monkeypatch):
    monkeypatch.setattr(kinds, "_compilations", [(3.0, 4.0), (0.0, 1.5), (0.5, 1.0), (1.0, 2.0)])
    assert kinds._compiling_seconds() == 3.0


def test_a_resume_may_speak_of_what_was_damaged_and_of_nothing_else():
    note = ended(0, said=["checkpoint /a/checkpoints/20 is damaged (no file): going on from step 10"])
    assert not misnamed_resume(note, "checkpoints/20")
    assert misnamed_resume(note, "checkpoints/10") and misnamed_resume(note)
    assert misnamed_resume(ended(2, said=["error: config.json is damaged"]))


def test_tensorboard_hides_what_a_later_file_does_again_and_reads_files_by_their_names(tmp_path):
    shown, files = [], []
    for loss, steps in ((1.0, (5, 10)), (2.0, (5, 10, 15))):
        with TensorBoardLog(tmp_path / str(loss)) as log:
            for step in steps:
                log.append({"step": step, "split": "train", "loss": loss})
        files += (tmp_path / str(loss)).iterdir()
        shown.append({"loss/train": tuple((step, loss) for step in steps)})
        assert shown_by_tensorboard(tmp_path / str(loss)) == shown[-1]
    both = tmp_path / "both"
    for names, last in ((("0.tfevents", "1.tfevents"), 1), (("1.tfevents", "0.tfevents"), 0)):
        both.mkdir()
        for file, name in zip(files, names, strict=True):
            shutil.copyfile(file, both / name)
        assert shown_by_tensorboard(both) == shown[last]
        shutil.rmtree(both)
    files[1].write_bytes(files[1].read_bytes()[:-3])
    assert shown_by_tensorboard(files[1].parent)["loss/train"][-1] == (10, 2.0)


ARRAYS = {"params.kernel": ("float32", (2,), 7)}
ROWS = ({"step": 10, "split": "validation", "loss": 1.0}, {"step": 20, "split": "validation", "loss": 2.0})
WHOLE = Outcome({"step": 20}, ROWS, {"loss/train": ((10, 1.0), (20, 2.0))}, {10: ARRAYS, 20: ARRAYS})


def test_what_a_fault_harmed_may_be_missing_and_never_wrong():
    reference = Reference(WHOLE, dict.fromkeys((10, 15, 20), ARRAYS))
    found = Outcome(WHOLE.result, WHOLE.rows, WHOLE.scalars, {10: None, 15: ARRAYS, 20: ARRAYS})
    assert differences(found, reference) == ["checkpoint 10 is damaged"]
    assert not differences(found, reference, "checkpoints/10")
    wrong = Outcome(WHOLE.result, WHOLE.rows, WHOLE.scalars, {10: {"params.kernel": ("float32", (2,), 8)}, 20: ARRAYS})
    assert "differs in 1 of 1 arrays" in differences(wrong, reference, "checkpoints/10")[0]


def test_a_record_is_gone_on_with_and_no_other_is_overwritten(tmp_path):
    spec = importlib.util.spec_from_file_location("faultstorm_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    output = tmp_path / "faults.json"

    def begun(*args):
        return script.begun(script.parse(["--runs", "mlp", "--output", str(output), *args]))

    empty = begun("--seed", "3")
    assert not empty["faults"]
    kept = empty | {"faults": {"0": {"kind": "kill"}}}
    output.write_text(json.dumps(kept))
    assert begun("--seed", "3") == kept
    assert begun("--seed", "3", "--again") == begun("--seed", "3", "--only", "7") == empty
    with pytest.raises(UserError, match="other settings: give another --output, or --again"):
        begun("--seed", "4")
    assert script.main(["--runs", "mlp", "--output", str(output)]) == 2 and json.loads(output.read_text()) == kept


def test_a_storm_of_a_few_faults_and_what_is_recorded_does_not_happen_again(tmp_path):
    output = tmp_path / "faults.json"
    kinds, records = "kill,SIGTERM,flipped-bit,torn-write,clock", []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, SCRIPT, "--runs", "mlp", "--kinds", kinds, "--faults", "5", "--output", output],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0 and "goodput" in done.stdout, done.stdout + done.stderr
        assert ("the reference of mlp" in done.stdout) == (not records)
        records.append(json.loads(output.read_text()))
    found = records[0]
    assert found["all"]["bitwise"] == found["all"]["named"] == found["all"]["tried"] >= 4
    assert all(found["controls"].values()) and len(found["controls"]) > 15
    assert records[1] | {"seconds": found["seconds"]} == found
