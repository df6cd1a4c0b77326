"""Slurm, Kubernetes and SkyPilot: the batch script with stand-ins for Slurm, the YAML files against their schemas."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.waits]

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
SHELL_SCRIPTS = [*sorted(SCRIPTS.glob("*.sh")), SCRIPTS / "slurm.sbatch"]

# Runs two tasks as srun does, with the variables by which jax knows Slurm, and gives the highest exit code.
SRUN = """
echo "$@" > srun.txt
while [[ $1 == --* ]]; do shift; done
code=0
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || { told=$?; [ "$told" -le "$code" ] || code=$told; }; done
exit "$code"
"""
SCONTROL = """
echo "$@" >> scontrol.txt
if [ "$1" = show ]; then echo "JobId=$4 JobName=x UserId=u JobState=$STATE Reason=None"; fi
"""
TASK = """
import json, os, pathlib, sys

names = {"devices": "JAX_LOCAL_DEVICE_IDS", "token": "ACCELNET_TOKEN"}
found = {"args": sys.argv[1:]} | {name: os.environ.get(variable) for name, variable in names.items()}
pathlib.Path(f"task-{os.environ['SLURM_PROCID']}.json").write_text(json.dumps(found))
sys.exit(int(os.environ["CODE"]))
"""

STRING, COUNT = {"type": "string"}, {"type": "integer", "minimum": 1}


def closed(required, **properties):
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


# The fields that scripts/jobset.yaml uses, a part of the JobSet v1alpha2 CRD, and of Kubernetes' Job and Pod. What a
# part of a pod may hold otherwise is left open.
RULE = closed(
    ["name", "action", "onJobFailureReasons"],
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons={"type": "array", "items": {"enum": ["PodFailurePolicy", "BackoffLimitExceeded"]}},
)
EXIT_CODES = closed(
    ["containerName", "operator", "values"],
    containerName=STRING,
    operator={"enum": ["In", "NotIn"]},
    values={"type": "array", "items": COUNT, "uniqueItems": True},
)
CONDITIONS = {"type": "array", "items": closed(["type", "status"], type=STRING, status={"enum": ["True", "False"]})}
POD_RULE = closed(
    ["action"],
    action={"enum": ["FailJob", "Ignore", "Count", "FailIndex"]},
    onExitCodes=EXIT_CODES,
    onPodConditions=CONDITIONS,
)
POD = closed(
    ["restartPolicy", "terminationGracePeriodSeconds", "containers", "volumes"],
    restartPolicy={"const": "Never"},  # a podFailurePolicy demands it
    terminationGracePeriodSeconds=COUNT,
    serviceAccountName=STRING,
    nodeSelector={"type": "object", "additionalProperties": STRING},
    containers={"type": "array"},
    volumes={"type": "array"},
)
JOB = closed(
    ["completionMode", "parallelism", "completions", "backoffLimit", "podFailurePolicy", "template"],
    completionMode={"const": "Indexed"},
    parallelism=COUNT,
    completions=COUNT,
    backoffLimit={"const": 0},  # the JobSet starts all again, never a Job one pod
    podFailurePolicy=closed(["rules"], rules={"type": "array", "items": POD_RULE}),
    template=closed(["spec"], metadata={"type": "object"}, spec=POD),
)
REPLICATED_JOB = closed(["name", "template"], name=STRING, replicas=COUNT, template=closed(["spec"], spec=JOB))
JOBSET = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=closed(["name", "labels"], name=STRING, labels={"type": "object"}, annotations={"type": "object"}),
    spec=closed(
        ["failurePolicy", "replicatedJobs"],
        coordinator=closed(
            ["replicatedJob", "jobIndex", "podIndex"],
            replicatedJob=STRING,
            jobIndex={"type": "integer"},
            podIndex={"type": "integer"},
        ),
        failurePolicy=closed(["maxRestarts", "rules"], maxRestarts=COUNT, rules={"type": "array", "items": RULE}),
        replicatedJobs={"type": "array", "items": REPLICATED_JOB},
    ),
)
# The fields that scripts/sky.yaml uses, a part of SkyPilot's task schema.
SKY = closed(
    ["name", "num_nodes", "workdir", "resources", "secrets", "file_mounts", "setup", "run"],
    name=STRING,
    num_nodes=COUNT,
    workdir=STRING,
    resources=closed(
        ["accelerators"],
        accelerators={"type": "object"},
        use_spot={"type": "boolean"},
        job_recovery=closed(
            ["recover_on_exit_codes"],
            max_restarts_on_errors=COUNT,
            recover_on_exit_codes={"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}},
        ),
    ),
    secrets=closed(["ACCELNET_TOKEN"], ACCELNET_TOKEN={"type": "null"}),  # given when it is launched
    file_mounts={
        "type": "object",
        "additionalProperties": closed(["name", "mode"], name=STRING, mode={"enum": ["MOUNT", "COPY"]}),
    },
    setup=STRING,
    run=STRING,
)


@pytest.mark.parametrize("path", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


class Slurm:
    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}")
            (folder / "bin" / name).chmod(0o755)
        (folder / "task.py").write_text(TASK)
        # Slurm runs a copy of the script.
        self.script = shutil.copyfile(SCRIPTS / "slurm.sbatch", folder / "slurm_script")

    def __call__(self, *args, code=0, state="RUNNING", **variables):
        env = os.environ | {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "VENV": sys.prefix}
        env |= {"SLURM_SUBMIT_DIR": str(self.folder), "SLURM_JOB_ID": "77", "CODE": str(code), "STATE": state}
        command = ["bash", str(self.script), *args]
        done = subprocess.run(command, env=env | variables, cwd=self.folder, capture_output=True, text=True, timeout=60)
        tasks = [json.loads(path.read_text()) for path in sorted(self.folder.glob("task-*.json"))]
        calls = self.folder / "scontrol.txt"
        return done, tasks, calls.read_text().splitlines() if calls.exists() else []


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path)


def test_every_task_of_a_slurm_job_gets_the_arguments_and_resume(slurm):
    args = ["train", "--workdir", "a b", "$HOME", "*", "two\nlines", ""]
    done, tasks, calls = slurm("task.py", *args)
    assert done.returncode == 0, done.stderr
    assert [task["args"] for task in tasks] == [[*args, "--resume"]] * 2 and calls == []
    said = (slurm.folder / "srun.txt").read_text()
    assert "--kill-on-bad-exit=0" in said
    # The same secret for all tasks, another for each start, and in nobody's arguments; the user's own stays.
    token, same = (task["token"] for task in tasks)
    assert token == same and re.fullmatch("[0-9a-f]{32}", token) and token not in said
    assert slurm("task.py", "train")[1][0]["token"] != token
    own = {"ACCELNET_TOKEN": "the user's"}
    assert [task["token"] for task in slurm("task.py", "train", **own)[1]] == [*own.values()] * 2


@pytest.mark.parametrize("args", [["train", "--resume", "--workdir", "a"], ["evaluate", "--workdir", "a"]])
def test_resume_is_given_once_and_to_train_alone(slurm, args):
    assert [task["args"] for task in slurm("task.py", *args)[1]] == [args] * 2


def test_a_job_that_was_told_to_save_is_queued_again_unless_it_was_cancelled(slurm):
    done, _, calls = slurm("task.py", "train", code=4)
    assert done.returncode == 4 and calls[-1] == "requeue 77" and "queueing job 77 again" in done.stdout
    (slurm.folder / "scontrol.txt").unlink()
    done, _, calls = slurm("task.py", "train", code=4, state="CANCELLED")
    assert done.returncode == 4 and not any("requeue" in call for call in calls)


@pytest.mark.parametrize("code", [2, 3, 5])
def test_another_failure_of_a_slurm_job_is_its_exit_code(slurm, code):
    done, _, calls = slurm("task.py", "train", code=code)
    assert (done.returncode, calls) == (code, [])


def test_a_task_per_node_takes_all_its_gpus_and_a_task_per_gpu_is_left_to_jax(slurm):
    assert slurm("task.py", "train", SLURM_NTASKS_PER_NODE="1", SLURM_GPUS_ON_NODE="4")[1][0]["devices"] == "0,1,2,3"
    assert slurm("task.py", "train", SLURM_NTASKS_PER_NODE="4", SLURM_GPUS_ON_NODE="4")[1][0]["devices"] is None
    assert slurm("task.py", "train", SLURM_NTASKS_PER_NODE="1")[1][0]["devices"] is None


@pytest.mark.parametrize(
    ("args", "variables", "words"),
    [
        (("task.py", "train"), {"SLURM_SUBMIT_DIR": ""}, "this is a batch script"),
        ((), {}, "no script was given"),
        (("task.py", "train"), {"VENV": "nowhere"}, "nowhere/bin/python is missing"),
    ],
)
def test_a_mistake_with_slurm_is_one_message_with_exit_code_two(slurm, args, variables, words):
    done, tasks, _ = slurm(*args, **variables)
    assert done.returncode == 2 and tasks == []
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.fixture
def jobsets():
    made = list(yaml.safe_load_all((SCRIPTS / "jobset.yaml").read_text()))
    return {jobset["metadata"]["labels"]["accelerator"]: jobset for jobset in made}


def test_the_jobsets_have_fields_that_kubernetes_knows(jobsets):
    assert sorted(jobsets) == ["gpu", "tpu"]
    for jobset in jobsets.values():
        jsonschema.validate(jobset, JOBSET)
        jobset["spec"]["failurePolicy"]["maxRestart"] = 1
        with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
            jsonschema.validate(jobset, JOBSET)


@pytest.mark.parametrize("accelerator", ["tpu", "gpu"])
def test_pods_that_saved_or_lost_another_start_again_and_a_mistake_ends_the_jobset(jobsets, accelerator):
    spec = jobsets[accelerator]["spec"]
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    disruption, exit_codes = job["podFailurePolicy"]["rules"]
    assert disruption["onPodConditions"][0]["type"] == "DisruptionTarget"
    values = exit_codes["onExitCodes"]["values"]
    assert values == sorted(values) and {4, 5} <= set(values) and not {0, 2, 3} & set(values)
    actions = {rule["onJobFailureReasons"][0]: rule["action"] for rule in spec["failurePolicy"]["rules"]}
    assert actions == {"PodFailurePolicy": "RestartJobSet", "BackoffLimitExceeded": "FailJobSet"}

    assert job["parallelism"] == job["completions"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert exit_codes["onExitCodes"]["containerName"] == container["name"]
    (token,) = [entry for entry in container["env"] if entry["name"] == "ACCELNET_TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "accelnet", "key": "token", "optional": True}}
    assert container["command"][-1] == "--resume" and (ROOT / container["command"][1]).exists()
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    assert container["command"][container["command"].index("--workdir") + 1].startswith(mounts["work"])


def test_the_pods_with_gpus_get_what_makes_them_one_cluster(jobsets):
    spec = jobsets["gpu"]["spec"]
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    env = {entry["name"]: entry for entry in job["template"]["spec"]["containers"][0]["env"]}
    assert spec["coordinator"] == {"replicatedJob": replicated["name"], "jobIndex": 0, "podIndex": 0}
    assert env["JAX_COORDINATOR_ADDRESS"]["value"].startswith("$(COORDINATOR):")
    # A variable can only name those before it.
    assert list(env).index("COORDINATOR") < list(env).index("JAX_COORDINATOR_ADDRESS")
    assert env["JAX_NUM_PROCESSES"]["value"] == str(replicated["replicas"] * job["completions"])
    assert "job-completion-index" in env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]


def test_the_skypilot_task_has_fields_that_skypilot_knows():
    task = yaml.safe_load((SCRIPTS / "sky.yaml").read_text())
    jsonschema.validate(task, SKY)
    assert len(task["resources"]["accelerators"]) > 1
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [4, 5]
    with pytest.raises(jsonschema.ValidationError, match="num_node"):
        jsonschema.validate(task | {"num_node": 1}, SKY)


def test_a_node_of_skypilot_joins_the_cluster(tmp_path):
    task = yaml.safe_load((SCRIPTS / "sky.yaml").read_text())
    python = tmp_path / "accelnet-venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nenv | grep ^JAX_ | sort\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8"}
    env |= {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}
    command = ["bash", "-c", task["run"]]
    lines = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[:3] == ["JAX_COORDINATOR_ADDRESS=10.0.0.7:12321", "JAX_NUM_PROCESSES=2", "JAX_PROCESS_ID=1"]
    assert (ROOT / lines[3]).exists() and lines[-1] == "--resume"
    assert lines[lines.index("--workdir") + 1].startswith(tuple(task["file_mounts"]))
