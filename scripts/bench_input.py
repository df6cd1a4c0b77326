"""How fast examples come in, and what of a training's time that takes, beside PyTorch's and Grain's loaders.

python scripts/bench_input.py [--rounds 5] [--examples 20000] [--only png]     about ten minutes on two cores

Fashion-MNIST in four forms: a memory map, a Parquet file, a folder of PNG files, and rows (dicts) of a data set that
reads one at a time. Every system shuffles, makes batches of 128 uint8 images and labels, and does nothing with them.
Systems take turns; medians of examples per second, and the smallest and largest of the turns. Then accelnet trains
experiments/fashion_cnn.py's network from each form, and says what share of the time it waited for data.
"""

import argparse
import functools
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

import accelnet as an
from accelnet.data.feed import make_feed
from experiments import fashion_cnn

BATCH = 128
Batches = Callable[[int], Iterator[tuple[Any, Any]]]


def write_forms(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write the data in each form."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    columns = {f"pixel{index}": column for index, column in enumerate(images.reshape(len(images), -1).T)}
    pq.write_table(pa.table({**columns, "label": labels}), folder / "images.parquet")
    for label in range(10):
        (folder / "png" / str(label)).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image[..., 0]).save(folder / "png" / str(label) / f"{index}.png")


class Rows:
    """A data set that gives one row at a time, as a dict."""

    def __init__(self, folder: Path) -> None:
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        self.labels = np.load(folder / "labels.npy")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": np.array(self.images[row]), "label": int(self.labels[row])}


class Pictures:
    """The PNG files, for the peers."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted((folder / "png").glob("*/*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> dict[str, Any]:
        from PIL import Image

        with Image.open(self.paths[row]) as image:
            return {"image": np.asarray(image)[..., None], "label": int(self.paths[row].parent.name)}


class Columns:
    """The Parquet file in memory, for the peers."""

    def __init__(self, folder: Path) -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(folder / "images.parquet")
        self.labels = table["label"].to_numpy()
        self.pixels = np.stack([table[name].to_numpy() for name in table.column_names[:-1]], axis=1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": self.pixels[row], "label": int(self.labels[row])}


FORMS: dict[str, Callable[[Path], Any]] = {"memory map": Rows, "rows": Rows, "parquet": Columns, "png": Pictures}


def accelnet_data(form: str, folder: Path, workers: int = 0) -> an.data.Data:
    """Load a form as a user of accelnet would."""
    held_out: dict[str, Any] = {"validation": 0, "test": 0}
    if form == "memory map":
        images, labels = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")
        return an.data.from_arrays(images, labels, num_classes=10, **held_out)
    if form == "rows":
        return an.data.from_source(
            Rows(folder), inputs="image", targets="label", num_classes=10, workers=workers, **held_out
        )
    if form == "parquet":
        return an.data.table(folder / "images.parquet", target="label", task="classes", **held_out)
    return an.data.image_folder(folder / "png", size=(28, 28), channels=1, workers=workers, **held_out)


def accelnet_batches(form: str, folder: Path, workers: int = 0) -> Batches:
    """Return the batches of accelnet's feed, as a run asks for them."""
    data = accelnet_data(form, folder, workers)
    experiment = an.Experiment(
        data=data,
        model=lambda rngs: an.models.MLP(784, (1,), 10, rngs=rngs),
        optimizer=an.optim.sgd(0.1),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=BATCH,
        steps=1,
    )
    take = jax.jit(lambda operand, index: jax.tree.map(lambda a: a[index], operand))

    def batches(num_steps: int) -> Iterator[tuple[Any, Any]]:
        feed = make_feed(data, experiment.order, eval_batch_size=BATCH, on_device=False)
        assert feed.max_steps is not None
        for first in range(0, num_steps, feed.max_steps):
            length = min(feed.max_steps, num_steps - first)
            operand = feed.train_operand(first, length)
            for index in range(length):
                batch = take(operand, index)
                yield batch["inputs"], batch["targets"]
        feed.close()

    return batches


def torch_batches(form: str, folder: Path, workers: int) -> Batches:
    """Return the batches of PyTorch's loader, which starts its processes once, before anything is measured."""
    from torch.utils.data import DataLoader

    source = FORMS[form](folder)
    loader = DataLoader(
        source, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    # One iterator to the end: a pass that is broken off costs PyTorch its processes.
    iterator = endless()

    def batches(num_steps: int) -> Iterator[tuple[Any, Any]]:
        for batch in itertools.islice(iterator, num_steps):
            yield batch["image"], batch["label"]

    return batches


def grain_batches(form: str, folder: Path, threads: int) -> Batches:
    """Return the batches of Grain."""
    import grain

    source = FORMS[form](folder)

    def batches(num_steps: int) -> Iterator[tuple[Any, Any]]:
        data = grain.MapDataset.source(source).shuffle(seed=0).repeat().batch(BATCH, drop_remainder=True)
        iterator = iter(data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8)))
        for _ in range(num_steps):
            batch = next(iterator)
            yield batch["image"], batch["label"]

    return batches


def rate(batches: Batches, num_steps: int) -> float:
    """Return examples per second."""
    start = time.perf_counter()
    for images, _ in batches(num_steps):
        jax.block_until_ready(images)
    return num_steps * BATCH / (time.perf_counter() - start)


def systems_of(form: str, folder: Path) -> dict[str, Callable[[], Batches]]:
    """Return the systems that are installed."""
    found: dict[str, Callable[[], Batches]] = {"accelnet": lambda: accelnet_batches(form, folder)}
    if form in ("rows", "png"):
        found["accelnet, 2 workers"] = lambda: accelnet_batches(form, folder, workers=2)
    for threads in (1, 2):
        found[f"Grain, {threads} threads"] = functools.partial(grain_batches, form, folder, threads)
    try:
        import torch  # noqa: F401
    except ImportError:
        print("PyTorch is not installed: pip install -e '.[bench]'")
        return found
    for workers in (0, 2):
        found[f"PyTorch, {workers} workers"] = functools.partial(torch_batches, form, folder, workers)
    return found


def train(form: str, folder: Path) -> tuple[float, float]:
    """Train the network of fashion_cnn.py; return the share of the time that it waited, and examples per second."""
    made = fashion_cnn.experiment(fashion_cnn.Config())
    data = accelnet_data(form, folder)
    if form == "parquet":
        made = made.replace(model=lambda rngs: an.models.MLP(784, (512, 512), 10, rngs=rngs))
    experiment = made.replace(data=data, steps=200, epochs=None, batch_size=BATCH, on_device=False, final_evaluation=())
    timing = an.fit(experiment, progress=False).result["timing"]
    waited, trained = timing["input_seconds"], timing["train_seconds"]
    return waited / (waited + trained), 200 * BATCH / (waited + trained)


def main() -> None:
    """Measure, and print a table for each form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=20_000, help="examples of Fashion-MNIST that are written")
    parser.add_argument("--steps", type=int, default=300, help="batches of a turn")
    parser.add_argument("--only", choices=FORMS)
    options = parser.parse_args()
    whole = an.data.fashion_mnist()
    images = np.asarray(whole.arrays["inputs"][: options.examples]).reshape(-1, 28, 28, 1)
    labels = np.asarray(whole.arrays["targets"][: options.examples])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_forms(folder, images, labels)
        for form in [options.only] if options.only else FORMS:
            systems = {name: make() for name, make in systems_of(form, folder).items()}
            shares = [train(form, folder) for _ in range(3)]
            for batches in systems.values():
                rate(batches, 20)
            rates: dict[str, list[float]] = {name: [] for name in systems}
            for _ in range(options.rounds):
                for name, batches in systems.items():
                    rates[name].append(rate(batches, options.steps))
            print(f"\n{form}: examples per second, median (smallest to largest) of {options.rounds} turns")
            for name, values in rates.items():
                print(f"  {name:20} {statistics.median(values):10,.0f} ({min(values):,.0f} to {max(values):,.0f})")
            share, speed = (statistics.median(values) for values in zip(*shares, strict=True))
            print(f"  training waits {100 * share:.1f} % of the time, at {speed:,.0f} examples per second")


if __name__ == "__main__":
    main()
