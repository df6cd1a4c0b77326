"""Trainings on pictures in folders, as scripts: killed and resumed, and with pictures that cannot be read."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accelnet.ops.kernels import share
from accelnet.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
    import hashlib
    import sys
    from dataclasses import dataclass
    from pathlib import Path
    import jax
    import numpy as np
    import accelnet as an

    @dataclass(frozen=True)
    class Config:
        fault: str = ""
        workers: int = 0

    def damaged(config: Config) -> an.Experiment:
        made = experiment({{"workers": config.workers}})
        rows = made.data.arrays["inputs"].rows
        for name in {{rows.place(row) for row in range(8)}}:
            Path(name).unlink() if config.fault == "gone" else Path(name).write_bytes(Path(name).read_bytes()[:60])
        return made

    def experiment(options):
        data = an.data.image_folder({folder!r}, size=12, resize="pad", **options)
        return an.Experiment(
            data=data,
            model=lambda rngs: an.models.MLP(12 * 12 * 3, (8,), 2, rngs=rngs),
            optimizer=an.optim.adam(1e-2),
            objective=an.objectives.softmax_cross_entropy(),
            batch_size=8,
            steps=160,
            log_every=an.Every(steps=10),
            save_every=an.Every(steps=10),
            eval_every=an.Every(steps=80),
        )

    if __name__ == "__main__":
        if sys.argv[1] == "train":
            an.main(damaged)
        else:
            options = {{"kept": {{"cache": 10**6, "workers": 2}}, "plain": {{}}}}[sys.argv[1]]
            run = an.fit(experiment(options), workdir=sys.argv[2], resume=True, progress=False)
            state = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(run.state))
            print(len(state), hashlib.sha256(state).hexdigest(), run.metrics)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for number in range(60):
        height, width = rng.integers(10, 40, 2)
        values = rng.integers(0, 128, (height, width, 3)) + 100 * (number % 2)
        path = root / "ab"[number % 2] / f"{number}.{('png', 'jpg')[number % 3 == 0]}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(path)
    return root


def started(folder, tmp_path, *arguments):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(folder=str(folder)))
    tmp_path.chmod(0o700)
    cache = tmp_path / "cache"
    if not cache.exists():
        share(cache)  # the compiled kernels are for all
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    return subprocess.Popen(
        [sys.executable, script, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_run_on_pictures_that_is_killed_goes_on_to_the_same_bits_from_files_cache_and_processes(folder, tmp_path):
    kills, saved = 0, 0
    for wanted in (1, 5):
        process = started(folder, tmp_path, "kept", str(tmp_path / "run"))
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            saved = max(Checkpoints(tmp_path / "run").steps(), default=0)
            if saved >= 10 * wanted:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        process.communicate(timeout=60)
        kills += process.returncode == -signal.SIGKILL
    assert kills == 2 and 0 < saved < 160
    ended = []
    for kind, name in (("kept", "run"), ("plain", "whole")):
        process = started(folder, tmp_path, kind, str(tmp_path / name))
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0 and "Traceback" not in errors, errors
        ended.append(output)
    assert ended[0] == ended[1] and int(ended[0].split()[0]) > 3 * 4 * 12 * 12 * 3 * 8  # weights, and Adam's moments


@pytest.mark.parametrize(("fault", "workers"), [("damaged", 0), ("gone", 0), ("damaged", 2)])
def test_a_picture_that_cannot_be_read_in_a_training_ends_it_with_one_message(folder, tmp_path, fault, workers):
    copy = shutil.copytree(folder, tmp_path / "copy")
    options = ["--workdir", str(tmp_path / "run"), "--fault", fault, "--workers", str(workers), "--quiet"]
    process = started(copy, tmp_path, "train", *options)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert str(copy) in errors and "Traceback" not in errors
    assert {"damaged": "is no picture that can be read", "gone": "cannot be read: No such file"}[fault] in errors
    # Before it, a machine that is busy may have told how far the reading was.
    *others, last = errors.strip().splitlines()
    assert last.startswith("error: ") and all("reading rows" in line for line in others)
