"""What a NaN is traced back to: operation, line, layer, rows of the data; and what is said where it does not return."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import accelnet as an
from accelnet.training.replay import replay

INPUTS = np.abs(np.random.default_rng(0).normal(size=(60, 4))).astype(np.float32) + 0.1
INPUTS[17] = 0


def data(inputs=INPUTS, **fields):
    splits = {"train": range(50), "validation": range(50, 60)}
    arrays = {"inputs": inputs, "targets": np.arange(60, dtype=np.int32) % 3}
    return an.data.Data("toy", arrays, splits, info={"num_classes": 3}, **fields)


class Logged(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.linear(jnp.log(x) * x)  # 0 * -inf


class Outer(nnx.Module):
    def __init__(self, *, rngs):
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs), Logged(rngs=rngs)])

    def __call__(self, x):
        return self.blocks[1](self.blocks[0](x) * 0 + x)


class Rooted(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(jnp.sqrt(x))  # whose derivative at 0 is infinite


class Theirs(linen.Module):
    @linen.compact
    def __call__(self, x):
        return Rooted()(linen.Dense(4, use_bias=False, kernel_init=linen.initializers.ones)(x))


def own_loss(outputs, batch):
    shares = nnx.softmax(outputs)[jnp.arange(len(outputs)), batch["targets"]]
    return -jnp.log(shares * (batch["inputs"][:, 0] > 0))


def poisoned_preparation(batch):
    return {**batch, "inputs": 1 / batch["inputs"]}


def experiment(**changes):
    settings = {
        "data": data(), "model": lambda rngs: nnx.Linear(4, 3, rngs=rngs), "optimizer": an.optim.sgd(0.01),
        "objective": an.objectives.softmax_cross_entropy(), "batch_size": 8, "steps": 14,
    }  # fmt: skip
    return an.Experiment(**(settings | changes))


def line(text):
    with open(__file__, encoding="utf-8") as file:  # noqa: PTH123
        return f"{__file__}:{next(n for n, one in enumerate(file, 1) if text in one)}"


OWN_LOSS = an.objectives.Objective(own_loss)


@pytest.mark.parametrize(
    ("changes", "kind", "operation", "where", "at"),
    [
        ({"model": Outer}, "loss", "log", "the layer blocks.1 (Logged)", line("jnp.log(x) * x)")),
        ({"model": Theirs()}, "gradient", "div", "the layer Rooted_0 (Rooted)", line("jnp.sqrt(x))")),
        ({"objective": OWN_LOSS, "microbatch_size": 3}, "loss", "log", "the loss", line("return -jnp.log(shares")),
        ({"data": data(prepare=poisoned_preparation)}, "loss", "div", "the preparation of the data", line("{**batch")),
    ],
)
def test_the_operation_the_line_the_layer_and_the_row_are_named(changes, kind, operation, where, at, tmp_path):
    with pytest.raises(an.DivergenceError) as caught:
        an.fit(experiment(**changes), workdir=tmp_path / "run", progress=False)
    found = json.loads((tmp_path / "run" / "replay.json").read_text())
    assert (found["kind"], found["operation"], found["where"]) == (kind, operation, where)
    assert found["line"].startswith(at) and found["rows"] == [17]
    for part in ("row 17 of the data (1 of 8 in the batch)", where, found["line"], f"{tmp_path}/run/replay.npz"):
        assert part in str(caught.value)
    with np.load(tmp_path / "run" / "replay.npz") as batch:
        row = list(batch["rows"]).index(17)
        np.testing.assert_array_equal(batch["inputs"][row], changes.get("data", data()).arrays["inputs"][17])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mlp", "cnn", "rnn"])
def test_accelnets_own_layers_are_named_by_their_paths(family):
    rng = np.random.default_rng(0)
    shape, model, head = {
        "mlp": ((4,), lambda rngs: an.models.MLP(4, (8,), 3, rngs=rngs), "head"),
        "cnn": ((8, 8, 1), lambda rngs: an.models.CNN((8, 8, 1), (4,), 3, rngs=rngs), "output"),
        "rnn": ((6, 2), lambda rngs: an.models.RNN(2, 8, 3, rngs=rngs), "output_layer"),
    }[family]
    inputs = rng.normal(size=(60, *shape)).astype(np.float32)

    def enlarged(params):
        return {**params, head: jax.tree.map(lambda a: a * 0 + 3e38, params[head])}

    one = experiment(data=data(inputs), model=model, initial=enlarged, frozen=[f"{head}.*"])
    with pytest.raises(an.DivergenceError, match=rf"It began here: \w+ of the layer {head} \(Linear\) gave -?inf"):
        an.fit(one, progress=False)


def test_a_replay_begins_at_the_last_checkpoint_and_says_where_nothing_goes_wrong(tmp_path):
    one = experiment(objective=OWN_LOSS, save_every=an.Every(steps=1))
    with pytest.raises(an.DivergenceError) as caught:
        an.fit(one, workdir=tmp_path / "run", progress=False)
    step = int(re.search(r"at step (\d+)", str(caught.value))[1])
    found = replay(one, tmp_path / "run", progress=False)
    assert (found.start, found.step, found.rows) == (step - 1, step, (17,))
    assert "row 17 of the data" in repr(found) and "return -jnp.log" in repr(found)
    healed = replay(one.replace(data=data(INPUTS + 1)), tmp_path / "run", progress=False)
    assert healed.kind is None and healed.step == 14
    assert "no operation gave a number that is not finite" in repr(healed)


def test_a_run_that_goes_on_with_another_rate_is_repeated_with_that_one(tmp_path):
    an.fit(experiment(steps=7), workdir=tmp_path / "run", progress=False)
    changed = experiment(optimizer=an.optim.sgd(1e25))
    with pytest.raises(an.DivergenceError, match=r"at step 8 .*It began here: .* gave -?inf"):
        an.fit(changed, workdir=tmp_path / "run", resume=True, allow_change=True, progress=False)


def test_a_replay_that_takes_long_is_left_to_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr("accelnet.training.replay._MOST_SECONDS", 0.0)
    one = experiment(objective=OWN_LOSS, script="toy.py")
    with pytest.raises(an.DivergenceError, match=r"finds the operation .*, as does `accelnet replay /.*run`$"):
        an.fit(one, workdir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "replay.json").exists()


SCRIPT = """
from dataclasses import dataclass
import jax.numpy as jnp
import numpy as np
import accelnet as an

@dataclass(frozen=True)
class Config:
    rate: float = 1e30

def experiment(config: Config) -> an.Experiment:
    data = an.data.Data("toy", {"inputs": np.ones((8, 2), np.float32), "targets": np.ones((8, 1), np.float32)},
                        {"train": range(8)})
    return an.Experiment(data=data, model=lambda rngs: an.models.MLP(2, (2,), 1, rngs=rngs), batch_size=4, steps=9,
                         optimizer=an.optim.sgd(config.rate), objective=an.objectives.squared_error())

if __name__ == "__main__":
    an.main(experiment)
"""


@pytest.mark.slow
def test_the_command_finds_the_script_of_a_run(tmp_path):
    (tmp_path / "toy.py").write_text(SCRIPT)

    def run(*command):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, told = run("toy.py", "train", "--workdir", "runs/a")
    assert code == 3 and "It began here" in told
    code, told = run("-m", "accelnet", "replay", "runs/a")
    assert code == 0 and "repeated from step 0" in told and "gave inf" in told
    code, told = run("-m", "accelnet", "replay", "runs/none")
    assert code == 2 and "holds no run" in told
