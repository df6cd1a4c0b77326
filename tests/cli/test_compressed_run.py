import json
import shutil

import numpy as np
import pytest

import accelnet as an
from accelnet.models.compressed import Compressed, Compression
from tests.cli.conftest import Config, small

WIDTHS = {"hidden_features.0": 3}


def script(config: Config) -> an.Experiment:
    # A start that suits the whole model alone.
    return small(config).replace(name="a_script", initial=lambda params: params | {"lost": np.zeros(1)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a compressed run of the script and its work directory, as a search leaves them."""
    config, workdir = Config(width=8), tmp_path_factory.mktemp("runs") / "small"
    made = small(config).replace(name="a_script", config=vars(config))
    model = Compressed(made.model, Compression(WIDTHS))
    return an.fit(made.replace(model=model), workdir=workdir, progress=False), workdir


def test_verbs_take_up_a_compressed_run_with_its_compression(command, trained, tmp_path):
    run, kept = trained
    workdir = tmp_path / "small"
    shutil.copytree(kept, workdir)
    where = ["--workdir", str(workdir)]
    assert json.loads((workdir / "config.json").read_text())["description"]["compression"]["widths"] == WIDTHS

    evaluated = command(script, "evaluate", *where, "--json")
    assert evaluated.code == 0, evaluated.err
    assert json.loads(evaluated.out.splitlines()[-1])["metrics"]["test"] == run.metrics["test"]

    np.save(tmp_path / "rows.npy", np.ones((2, 3), np.float32))
    predicted = command(script, "predict", str(tmp_path / "rows.npy"), *where, "--out", str(tmp_path / "out.csv"))
    assert predicted.code == 0, predicted.err
    assert len(an.load(workdir / "model.accelnet").weights["params.head.kernel"]) == 3

    other = command(script, "train", *where)
    assert other.code == 2 and "already holds a run" in other.err

    resumed = command(script, "train", *where, "--resume", "--steps", "8", "--quiet")
    assert resumed.code == 0 and "8 steps" in resumed.out, resumed.err

    shutil.rmtree(workdir / "checkpoints")
    lost = command(script, "train", *where, "--resume")
    assert lost.code == 2 and "a compressed run without a checkpoint" in lost.err


def test_another_compression_is_another_run(trained):
    run, kept = trained
    other = run.experiment.replace(model=Compressed(run.experiment.model, Compression({"hidden_features.0": 2})))
    with pytest.raises(an.UserError, match=r"model is another, compression was \{'widths': \{'hidden_features.0': 3"):
        an.fit(other, workdir=kept, resume=True, progress=False)


def test_the_artifact_of_a_compressed_model_is_made_again(trained, tmp_path):
    run, _ = trained
    path = run.save(tmp_path / "small.accelnet")
    rows = np.ones((2, 3), np.float32)
    before = an.load(path)
    assert before.recipe["compression"]["widths"] == WIDTHS
    assert before.recipe["arguments"]["hidden_features"] == [8]
    assert an.refresh(path) == "accelnet's own model, made again"
    after = an.load(path)
    assert after.computed_by == before.computed_by
    assert len(after.weights["params.head.kernel"]) == 3
    np.testing.assert_array_equal(after.predict(rows).probabilities, before.predict(rows).probabilities)
