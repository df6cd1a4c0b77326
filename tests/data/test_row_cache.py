import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from accelnet import terminal
from accelnet.data import folders, image_folder, row_cache
from accelnet.data.row_cache import CachedRows, open_cache
from accelnet.data.rows import Rows
from accelnet.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class Counted(Rows):
    """Rows of several types, which remember what was read of them."""

    def __init__(self, count=50, plus=0):
        self.shapes = {
            "flag": jax.ShapeDtypeStruct((), np.dtype(bool)),
            "picture": {"x": jax.ShapeDtypeStruct((3, 2), np.dtype(np.uint8))},
            "value": jax.ShapeDtypeStruct((2,), np.dtype(np.float64)),
        }
        self.count, self.plus, self.seen = count, plus, []

    def __len__(self):
        return self.count

    def read(self, rows):
        self.seen += rows.tolist()
        rows = rows + self.plus
        return {
            "flag": rows % 2 == 0,
            "picture": {"x": (rows[:, None, None] + np.arange(6).reshape(3, 2)).astype(np.uint8)},
            "value": np.stack([rows, rows / 3], axis=1),
        }


def assert_same(first, second):
    chex.assert_trees_all_equal(first, second)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), first) == jax.tree.map(lambda a: (a.shape, a.dtype), second)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the private directory of rows, in a cache of the test's own."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "accelnet" / "rows"


def test_a_row_is_read_once_and_then_comes_from_the_file(tmp_path):
    rows = Counted()
    cached = CachedRows(rows, tmp_path / "a.rows", 10**6)
    for asked in ([3, 1, 4, 1], [3, 2], [2, 3], [], range(50)):
        asked = np.array(list(asked), np.int64)
        assert_same(cached.read(asked), Counted().read(asked))
    assert sorted(set(rows.seen)) == list(range(50)) and len(rows.seen) <= 51  # row 1 stood in one read twice
    again = Counted()
    assert_same(CachedRows(again, tmp_path / "a.rows", 10**6).read(np.arange(50)), rows.read(np.arange(50)))
    assert again.seen == []
    assert (len(cached), cached.identity(), cached.place(3)) == (50, b"", "row 3")


@pytest.mark.parametrize("where", ["head", "values", "cut"])
def test_a_row_that_was_written_in_part_is_read_anew(tmp_path, where):
    path = tmp_path / "a.rows"
    cached = CachedRows(Counted(), path, 10**6)
    cached.read(np.arange(50))
    size = path.stat().st_size // 50
    with path.open("r+b") as file:
        if where == "cut":
            file.truncate(20 * size - 3)
        else:
            file.seek(7 * size + (1 if where == "head" else size - 9))
            file.write(b"\xa5")
    rows = Counted()
    assert_same(CachedRows(rows, path, 10**6).read(np.arange(50)), Counted().read(np.arange(50)))
    assert rows.seen == (list(range(19, 50)) if where == "cut" else [7])


def test_what_is_too_much_is_not_kept(tmp_path):
    rows, path = Counted(), tmp_path / "a.rows"
    limit = 10 * (8 + rows.row_bytes) + 5
    for _ in range(3):
        assert_same(CachedRows(rows, path, limit).read(np.arange(50)), Counted().read(np.arange(50)))
    assert path.stat().st_size <= limit
    assert len(rows.seen) == 50 + 2 * 40


def test_a_row_whose_stamp_changed_is_read_anew(tmp_path):
    path, stamps = tmp_path / "a.rows", np.arange(50, dtype=np.uint32)
    CachedRows(Counted(), path, 10**6, stamps).read(np.arange(50))
    stamps[20] += 1
    rows = Counted(plus=1)
    assert CachedRows(rows, path, 10**6, stamps).read(np.arange(19, 22))["value"][:, 0].tolist() == [19, 21, 21]
    assert rows.seen == [20]


def test_a_full_disk_is_said_once_and_the_rows_are_read(tmp_path, capsys, monkeypatch):
    terminal.say_once.cache_clear()
    rows, path = Counted(), tmp_path / "a.rows"
    cached = CachedRows(rows, path, 10**6)
    cached.read(np.arange(5))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))  # a file cannot grow, as on a full disk
    try:
        for _ in range(2):
            assert_same(cached.read(np.arange(50)), Counted().read(np.arange(50)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err.count("the cache of rows takes no more rows: File too large") == 1
    assert len(rows.seen) == 5 + 45 + 45


def test_the_file_is_private_and_others_make_room_for_it_the_longest_unused_first(cache):
    need = 50 * (8 + Counted().row_bytes)
    for number, key in enumerate((b"old", b"older", b"new")):
        open_cache(Counted(), 10 * need, key=key).read(np.arange(50))
        path = max(cache.iterdir(), key=lambda path: path.stat().st_mtime)
        os.utime(path, (100 - number if key != b"new" else 200,) * 2)
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.iterdir()} == {0o600}
    held = sum(path.stat().st_blocks * 512 for path in cache.iterdir())
    open_cache(Counted(), held + 100, key=b"another")
    kept = []
    for key in (b"old", b"older", b"new"):
        rows = Counted()
        open_cache(rows, 10 * held, key=key).read(np.arange(50))
        kept.append(not rows.seen)
    assert kept == [True, False, True]


def test_a_file_in_use_is_not_removed(cache, capsys):
    terminal.say_once.cache_clear()
    rows = Counted()
    used = open_cache(rows, 10**6, key=b"used")
    used.read(np.arange(50))
    other = open_cache(Counted(), 4096 + 100, key=b"other")
    assert "the cache of rows holds 100 B of" in capsys.readouterr().err
    assert_same(other.read(np.arange(50)), used.read(np.arange(50)))
    assert len(rows.seen) == 50 and len(list(cache.iterdir())) == 2


def test_a_cache_that_cannot_be_had_is_a_mistake(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    with pytest.raises(UserError, match=r"cache=True: rows cannot be kept: .*null"):
        open_cache(Counted(), True, key=b"a")
    for wrong in (0, -1, 1.5, "1 GB", None):
        with pytest.raises(UserError, match="cache is"):
            open_cache(Counted(), wrong, key=b"a")


def test_the_default_leaves_most_of_the_disk_free(cache, monkeypatch, capsys):
    terminal.say_once.cache_clear()
    usage = row_cache.shutil.disk_usage("/")
    monkeypatch.setattr(row_cache.shutil, "disk_usage", lambda path: usage._replace(free=4000))
    rows = Counted()
    open_cache(rows, True, key=b"a").read(np.arange(50))
    assert "the cache of rows holds 1000 B of" in capsys.readouterr().err
    assert next(cache.iterdir()).stat().st_size <= 1000


KILLED = """
    import sys, numpy as np
    sys.path.insert(0, {folder!r})
    from test_row_cache import Counted
    from accelnet.data.row_cache import CachedRows
    from pathlib import Path
    cached, rng = CachedRows(Counted(200), Path({path!r}), 10**6), np.random.default_rng()
    print("ready", flush=True)
    while True:
        cached.read(rng.integers(0, 200, 16))
        cached._stamps = cached._stamps + np.uint32(1)  # so that every row is written again and again
"""


@pytest.mark.slow
def test_processes_that_write_at_once_and_are_killed_leave_no_torn_row(tmp_path):
    path = tmp_path / "a.rows"
    script = textwrap.dedent(KILLED).format(folder=str(Path(__file__).parent), path=str(path))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE) for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    ours, end = CachedRows(Counted(200), path, 10**6), time.monotonic() + 2
    expected = Counted(200).read(np.arange(200))
    while time.monotonic() < end:
        assert_same(ours.read(np.arange(200)), expected)
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    assert_same(CachedRows(Counted(200), path, 10**6).read(np.arange(200)), expected)


def test_a_folder_of_pictures_is_decoded_once_and_a_changed_picture_again(tmp_path, cache, monkeypatch):
    root = tmp_path / "photos"
    for number in range(10):
        path = root / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (number, 0, 0)).save(path)
    seen, read = [], folders.read_picture
    monkeypatch.setattr(folders, "read_picture", lambda path, *args, **kw: seen.append(path) or read(path, *args, **kw))

    def pictures(**options):
        seen.clear()
        data = image_folder(root, validation=0, test=0, **options)
        return data.take(np.arange(10))["inputs"]

    plain = pictures()
    assert np.array_equal(pictures(cache=True), plain) and len(seen) == 10
    assert np.array_equal(pictures(cache=True), plain) and seen == []
    assert pictures(cache=True, size=3).shape == (10, 3, 3, 3) and len(seen) == 10
    Image.new("RGB", (6, 6), (200, 0, 0)).save(root / "a" / "0.bmp")  # as many bytes as before
    assert pictures(cache=True).max() == 200 and seen == [str(root / "a" / "0.bmp")]
