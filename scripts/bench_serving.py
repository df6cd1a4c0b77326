"""How many requests a server answers, how fast, and whether it loses any, with bad clients among the good ones.

python scripts/bench_serving.py [--case lstm] [--seconds 10] [--clients 16] [--bad 0.05] [--model m.accelnet]

`accelnet serve` runs in a process of its own and serves the network of experiments/fashion_rnn.py (an LSTM of 128 over
28 rows of 28 bytes), or an MLP of a table with nine columns, with random weights; or the model that is given, of
arrays. Clients keep their connections, send
one row at a time, and wait for the answer. They are in processes of their own, which parse no more of an answer than
they compare. Bad requests are among theirs: JSON cut short, rows of another shape, a body that is too large, and
clients that leave in the middle of a request or before their answer.

A request is lost if a good one has no answer, another status than 200, or another label than `Model.predict` gives; or
if a bad one has another status than it deserves. Of a table the last lines tell what it takes to encode as many rows as
came together, one by one and in one pass. `--seconds 600` is the long run. The exit code is 1 if one was lost.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from scripts.served_models import Requests, encoding_us, make, requests

_MOST_SECONDS = 30  # that a client waits for an answer


def main() -> None:
    """Start a server, load it, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="time that is measured")
    parser.add_argument("--clients", type=int, default=16, help="clients at once")
    parser.add_argument("--processes", type=int, default=2, help="processes that the clients share")
    parser.add_argument("--bad", type=float, default=0.05, help="share of bad requests")
    parser.add_argument("--case", choices=("lstm", "table"), default="lstm", help="model that is made")
    parser.add_argument("--body", choices=("json", "npy"), default="json", help="form of a row of arrays")
    parser.add_argument("--model", type=Path, help="artifact, or the work directory of a run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or make(options.case, Path(folder) / "model.accelnet")
        sent = requests(model, options.body)
        server, port = _started(model)
        try:
            before = _cpu_seconds(server.pid)
            share = [options.clients // options.processes] * options.processes
            share[0] += options.clients - sum(share)
            with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
                jobs = [
                    pool.submit(load, port, sent, count, options.seconds, options.bad, seed)
                    for seed, count in enumerate(share)
                ]
                found = [job.result() for job in jobs]
            cpu = _cpu_seconds(server.pid) - before
            together = _rows_of_a_batch(port)
        finally:
            server.terminate()
            code = server.wait(60)
        values = {"rows_of_a_batch": together}
        if sent.raw:
            encoding = encoding_us(model, sent.raw[: max(1, round(together))])
            values |= {f"encoding_{name}_us": one for name, one in encoding.items()}
            values["encoding_ratio"] = encoding["alone"] / encoding["together"]
    _tell(found, options, code, cpu, values)


def load(port: int, sent: Requests, clients: int, seconds: float, bad: float, seed: int) -> dict[str, Any]:
    """Be several clients: send requests, bad ones among them, and compare the answers.

    Args:
        port: Port of the server.
        sent: Requests.
        clients: Number of clients.
        seconds: Time.
        bad: Share of bad requests.
        seed: Seed of which come when.

    Returns:
        "latencies" of good requests in seconds, "lost" with reasons and numbers, "bad" requests, and the "time".
    """
    import selectors

    selector, rng = selectors.DefaultSelector(), random.Random(seed)  # noqa: S311, which request comes when
    latencies: list[float] = []
    lost: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(clients):
        _Client(port, selector)
    waiting = 0
    for key in list(selector.get_map().values()):
        key.data.send(*_next(sent, bad, rng))
        waiting += 1
    while waiting:
        now = time.perf_counter()
        late = now - began > seconds
        for key, _ in selector.select(1.0):
            client = key.data
            result = client.receive()
            if result is None:
                continue
            if client.expected[0] == 200:
                latencies.append(time.perf_counter() - client.sent)
            else:
                counts[client.name] += 1
            if result != client.expected:
                lost[f"{client.name}: {result[0]} {result[1][:60]!r}, expected {client.expected}"] += 1
            if late:
                waiting -= 1
                client.close()
            else:
                client.send(*_next(sent, bad, rng))
        for key in list(selector.get_map().values()):
            if now - key.data.sent > _MOST_SECONDS:
                lost[f"{key.data.name}: no answer"] += 1
                waiting -= 1
                key.data.close()
    clock, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"latencies": latencies, "lost": dict(lost), "bad": dict(counts), "time": clock, "cpu": cpu}


class _Client:
    """One connection at a time, and the request that it waits for."""

    def __init__(self, port: int, selector: Any) -> None:
        self._port, self._selector = port, selector
        self._open()

    def _open(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._selector.register(self._socket, 1, self)  # 1: it can be read

    def close(self) -> None:
        self._selector.unregister(self._socket)
        self._socket.close()

    def send(self, name: str, request: bytes, expected: tuple[int, str], leaves: bool) -> None:
        """Send a request; where a client is to leave, close its connection, open another one, and send the next."""
        if leaves:
            self._socket.sendall(request)
            self.close()
            self._open()
            name, request, expected = "after one that left", _request("GET /health", b""), (200, "")
        self.name, self.expected, self.sent = name, expected, time.perf_counter()
        self._socket.sendall(request)

    def receive(self) -> tuple[int, str] | None:
        """Return status and label of the answer, once it is whole."""
        try:
            content = self._socket.recv(1 << 16)
        except OSError as error:
            content = b""
            self._buffer = str(error).encode()
        if not content:
            told = self._buffer.decode("latin-1")
            self.close()
            self._open()
            return 0, f"closed: {told}"
        self._buffer += content
        head, gap, body = self._buffer.partition(b"\r\n\r\n")
        if not gap or len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return None
        self._buffer = b""
        if head[9:12] == b"413":  # the rest of the body was not sent, so that nothing can follow on this connection
            self.close()
            self._open()
        label = body[10:].partition(b'"')[0].decode() if body.startswith(b'{"label":"') else ""
        return int(head[9:12]), label


def _next(sent: Requests, bad: float, rng: random.Random) -> tuple[Any, ...]:
    """Return name, request, expected answer, and whether the client leaves at once."""
    index = rng.randrange(len(sent.good))
    good = _request("POST /predict", sent.good[index], sent.kind)
    if rng.random() >= bad:
        return "good", good, (200, sent.labels[index]), False
    return rng.choice([
        ("cut short", _request("POST /predict", b"[[1, 2], [3"), (400, ""), False),
        ("of wrong rows", _request("POST /predict", rng.choice(sent.wrong)), (422, ""), False),
        ("not there", _request("GET /not/there", b""), (404, ""), False),
        ("too large", b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n", (413, ""), False),
        ("left in the middle", good[:-10], (0, ""), True),
        ("left before the answer", good, (0, ""), True),
    ])  # fmt: skip


def _request(line: str, body: bytes, kind: str = "application/json") -> bytes:
    head = f"{line} HTTP/1.1\r\nhost: bench\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _started(model: Path) -> tuple[subprocess.Popen[str], int]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "accelnet", "serve", str(model), "--port", "0", "--quiet"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"is served at http://[^:]+:(\d+)", line):
            return server, int(found[1])
        sys.stderr.write(line)
    raise SystemExit(f"the server did not start: exit code {server.wait()}")


def _cpu_seconds(process: int) -> float:
    """Return the processor time that a process has used, which tells more than the clock where others compute too."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rows_of_a_batch(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    total, batches = (float(text.partition(f"\naccelnet_batch_rows_{one} ")[2].split()[0]) for one in ("sum", "count"))
    return total / batches


def _tell(
    found: list[dict[str, Any]], options: argparse.Namespace, code: int, cpu: float, more: dict[str, float]
) -> None:
    latencies = 1e3 * np.concatenate([one["latencies"] for one in found])
    bad, lost = (sum((Counter(one[name]) for one in found), Counter()) for name in ("bad", "lost"))
    p50, p99, most = np.percentile(latencies, [50, 99, 100])
    count = sum(len(one["latencies"]) + sum(one["bad"].values()) for one in found)
    values = {
        "clients": options.clients,
        "seconds": max(one["time"] for one in found),
        "requests_per_second": count / max(one["time"] for one in found),
        "good": len(latencies), "bad": bad.total(), "lost": lost.total(), "exit_code": code,
        "p50_ms": float(p50), "p99_ms": float(p99), "most_ms": float(most),
        "server_cpu_us": 1e6 * cpu / count, "client_cpu_us": 1e6 * sum(one["cpu"] for one in found) / count,
        **more,
    }  # fmt: skip
    for reason, count in lost.most_common(10):
        print(f"lost {count}: {reason}", file=sys.stderr)
    if options.json:
        print(json.dumps(values))
    else:
        for name, value in values.items():
            print(f"{name:20} {value:,.2f}" if isinstance(value, float) else f"{name:20} {value:,}")
    sys.exit(int(bool(lost) or code != 0))


if __name__ == "__main__":
    main()
