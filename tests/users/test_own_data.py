"""The guide to own data, and the README's, run as they stand, on small files."""

import ast
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import accelnet as an

ROOT = Path(__file__).parents[2]
GUIDE, README = ROOT / "docs/guide/data.md", ROOT / "README.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the guide names; it is the current one."""
    from PIL import Image

    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    lines = [f"{n % 7},{'red' if n % 3 else 'blue'},{'yes' if n % 7 > 3 else 'no'}" for n in range(300)]
    Path("churn.csv").write_text("\n".join(["age,colour,left", *lines]))
    for number in range(40):
        path = Path("photos") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (70, 80, 3), np.uint8)).save(path)
    rng.integers(0, 90, 4000).astype(np.uint16).tofile("corpus.bin")
    Path("book.txt").write_text("It was a dark night, and the rain fell. " * 100)
    import pyarrow as pa
    import pyarrow.parquet as pq

    sizes = [None if n % 9 == 0 else float(n) for n in range(80)]
    sellers = [f"s{n % 13}" for n in range(80)]
    pq.write_table(pa.table({"size": sizes, "seller": sellers, "price": np.arange(80.0)}), "prices.parquet")
    return tmp_path


def blocks(page=GUIDE):
    section = page.read_text(encoding="utf-8").split("## Your own data\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_a_csv_file_becomes_a_trained_network_in_twelve_lines(folder):
    code = blocks()[0]
    assert blocks(README)[0] == code
    assert len([line for line in code.splitlines() if line.strip()]) <= 13  # the import is one
    Path("own.py").write_text(code)
    names = runpy.run_path("own.py")
    assert names["run"].metrics["test"]["accuracy"] > 0.8


def test_every_kind_of_data_is_loaded_as_the_guide_says(folder):
    x, y = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 3
    names = {
        "an": an,
        "source": [{"image": np.full((4, 4), n, np.uint8), "label": n % 3} for n in range(60)],
        "file": {"x": x, "y": y},
        "make_iterator": lambda: ((x[:8], y[:8]) for _ in range(1000)),
        "x": x,
        "y": y,
    }
    calls = [ast.unparse(statement) for statement in ast.parse(blocks()[1]).body]
    Path("own.py").write_text(f"made = [{', '.join(calls)}]")
    made = runpy.run_path("own.py", names)["made"]
    assert len(made) == 7 and all(isinstance(data, an.data.Data) for data in made)
    for data in made:
        batch = data.take(np.arange(2))
        assert len(batch["inputs"]) == 2 and data.num_examples("train") > 1
