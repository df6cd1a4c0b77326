"""Stand in for gcloud: record every call, and play TPU VMs with folders as homes and local processes as workers.

The folder $FAKE_CLOUD holds calls.jsonl, things.json (queued resources and nodes, by kind and name) and homes/.
A queued resource waits once before it is active. `tpu-vm ssh` runs the command in a shell of each worker, with the
variables that make the workers of all nodes one cluster.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ.get("FAKE_CLOUD", "."))
WORKERS = 2  # of a node of a type that ends with -16; others have one


@contextlib.contextmanager
def things():
    """Give what exists, and keep what was changed."""
    with (CLOUD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = CLOUD / "things.json"
        found = json.loads(path.read_text()) if path.exists() else {"queued-resources": {}, "tpu-vm": {}}
        yield found
        path.write_text(json.dumps(found))


def read(flags, name, default=None):
    return next((flag.split("=", 1)[1] for flag in flags if flag.startswith(f"--{name}=")), default)


def home(node, worker):
    return CLOUD / "homes" / f"{node}-w{worker}"


def make_nodes(found, names, flags, state):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    workers = WORKERS if read(flags, "accelerator-type").endswith("-16") else 1
    for index, name in enumerate(names):
        found["tpu-vm"][name] = {
            "state": state,
            "workers": workers,
            "first": index * workers,
            "processes": len(names) * workers,
            "address": address,
        }
        for worker in range(workers):
            home(name, worker).mkdir(parents=True)


def create(kind, name, flags):
    with things() as found:
        if name in found[kind]:
            sys.exit(f"ERROR: ALREADY_EXISTS: {name}")
        if kind == "tpu-vm":
            make_nodes(found, [name], flags, "READY")
            return
        count = int(read(flags, "node-count", "0"))
        nodes = [f"{name}-{index}" for index in range(count)] if count else [read(flags, "node-id")]
        found[kind][name] = {"state.state": "WAITING_FOR_RESOURCES", "tpu.nodeSpec[].nodeId": ";".join(nodes)}
        make_nodes(found, nodes, flags, "CREATING")


def describe(kind, name, flags):
    field = read(flags, "format").removeprefix("value(").removesuffix(")")
    with things() as found:
        if name not in found[kind]:
            sys.exit(f"ERROR: (gcloud.compute.tpus.{kind}.describe) NOT_FOUND: Resource '{name}' was not found")
        thing = found[kind][name]
        print(thing[field])
        if field == "state.state" and thing[field] == "WAITING_FOR_RESOURCES":
            thing[field] = "ACTIVE"
            for node in thing["tpu.nodeSpec[].nodeId"].split(";"):
                found["tpu-vm"][node]["state"] = "READY"


def end_processes(node, workers):
    for worker in range(workers):
        pid = home(node, worker) / "accelnet-run" / "pid"
        if pid.exists() and not (pid.parent / "exit").exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)


def take_away(node, state="PREEMPTED"):
    """Do what a preemption does: all processes of a node end at once, and its disks are lost."""
    with things() as found:
        found["tpu-vm"][node]["state"] = state
        for resource in found["queued-resources"].values():
            if node in resource["tpu.nodeSpec[].nodeId"].split(";"):
                resource["state.state"] = "SUSPENDED"
        end_processes(node, found["tpu-vm"][node]["workers"])
        for worker in range(found["tpu-vm"][node]["workers"]):
            shutil.rmtree(home(node, worker))


def delete(kind, name, flags):
    with things() as found:
        nodes = [name] if kind == "tpu-vm" else found[kind][name]["tpu.nodeSpec[].nodeId"].split(";")
        if kind == "queued-resources" and "--force" not in flags:
            sys.exit(f"ERROR: {name} has nodes")
        for node in nodes:
            workers = found["tpu-vm"].pop(node)["workers"]
            end_processes(node, workers)
            for worker in range(workers):
                shutil.rmtree(home(node, worker), ignore_errors=True)
        found[kind].pop(name, None)


def chosen(node, flags):
    with things() as found:
        if node not in found["tpu-vm"] or found["tpu-vm"][node]["state"] != "READY":
            sys.exit(f"ERROR: {node} is not READY")
        machine = found["tpu-vm"][node]
    worker = read(flags, "worker", "0")
    return machine, range(machine["workers"]) if worker == "all" else [int(worker)]


def ssh(_, node, flags):
    machine, workers = chosen(node, flags)
    processes = []
    for worker in workers:
        # Little else: what a login gives, and what makes local processes a cluster.
        env = {
            "HOME": str(home(node, worker)),
            "PATH": os.environ["FAKE_PATH"],
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": machine["address"],
            "JAX_COORDINATOR_BIND_ADDRESS": machine["address"],
            "JAX_NUM_PROCESSES": str(machine["processes"]),
            "JAX_PROCESS_ID": str(machine["first"] + worker),
        }
        command = ["bash", "-c", read(flags, "command")]
        processes.append(subprocess.Popen(command, env=env, cwd=env["HOME"], stdin=subprocess.DEVNULL))
    sys.exit(next((code for code in [process.wait() for process in processes] if code), 0))


def scp(_, source, flags):
    target, *flags = flags
    node, path = target.split(":")
    for worker in chosen(node, flags)[1]:
        shutil.copyfile(source, home(node, worker) / path)


def main(args):
    with (CLOUD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(args) + "\n")
    assert args[:2] == ["compute", "tpus"], args
    kind, verb, name, *flags = args[2:]
    flags.remove("--quiet")
    verbs = {"create": create, "describe": describe, "delete": delete, "ssh": ssh, "scp": scp}
    verbs[verb](kind, name, flags)


if __name__ == "__main__":
    main(sys.argv[1:])
