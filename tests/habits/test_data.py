"""Daily habits with data, each as docs/habits.md tells it."""

import csv
import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import accelnet as an
from tests.habits.conftest import DATA, X, small

PICTURES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)


def test_take_a_table_from_a_file():
    rows = [(20 + number % 9, "ABC"[number % 3], "ny"[number % 2]) for number in range(60)]
    with Path("churn.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("age", "city", "left"), *rows])
    data = an.data.table("churn.csv", target="left")
    assert data.info["class_names"] == ("n", "y") and data.info["input_names"] == ("age", "city=A", "city=B", "city=C")
    assert sum(map(data.num_examples, data.splits)) == 60


def test_take_a_folder_of_pictures(folder):
    for number, picture in enumerate(PICTURES):
        path = folder / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    data = an.data.image_folder("photos/", size=(8, 8))
    assert data.info["num_classes"] == 2 and data.take([0])["inputs"].shape == (1, 8, 8, 3)


class Source:
    def __len__(self):
        return 40

    def __getitem__(self, number):
        return {"image": PICTURES[number], "label": number % 2}


def test_take_anything_that_has_rows():
    source = Source()
    data = an.data.from_source(source, inputs="image", targets="label", num_classes=2)
    run = an.fit(small(data=data, model=lambda rngs: an.models.MLP(192, (), 2, rngs=rngs), epochs=1), progress=False)
    assert run.step == 4


def test_augment():
    augment = an.data.compose(an.data.random_flip(), an.data.random_crop(2))
    data = dataclasses.replace(an.data.from_arrays(PICTURES, np.arange(40) % 2, num_classes=2), augment=augment)
    batch = {"inputs": PICTURES[:8].astype(np.float32)}
    again = data.augment(jax.random.key(0), batch)["inputs"]
    assert again.shape == (8, 8, 8, 3) and not np.array_equal(again, batch["inputs"])


def test_keep_groups_together():
    patient = np.arange(120) // 4
    data = an.data.from_arrays(X, patient.astype(np.float32), groups=patient)  # the target tells the group
    seen = [set(data.take(np.asarray(rows))["targets"].ravel().tolist()) for rows in data.splits.values()]
    assert len(seen) == 3 and sum(map(len, seen)) == len(set().union(*seen)) == 30


def test_draw_rare_classes_more_often():
    rare = (np.arange(120) % 10 == 0).astype(int)
    data = an.data.from_arrays(X, rare, num_classes=2).sampled("balanced")
    rows, mask = small(data=data).order.block(range(120), seed=0)
    assert data.arrays["targets"][rows[mask]].mean() == pytest.approx(0.5, abs=0.02)


def test_cross_validate():
    experiment = small()
    found = an.cross_validate(experiment, DATA.folds(3, stratify="targets"), progress=False)
    assert found.values("accuracy").shape == (3,) and "95 %" in found.table()
