"""The kernels' library as a file: where it lies, and that no other than the one compiled here is ever loaded."""

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from accelnet import cache, terminal
from accelnet.ops import kernels
from accelnet.ops.kernels import library

pytestmark = pytest.mark.cpu

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="plays other users, which root alone can")


@pytest.fixture(scope="module")
def content():
    if not kernels.load():
        pytest.skip("no C++ compiler here, so there are no kernels")
    # The newest: those of other versions of the sources stay.
    path = max(cache.private_directory("kernels").glob("*-*.so"), key=lambda path: path.stat().st_mtime)
    return path.read_bytes()


@pytest.fixture
def compiler(tmp_path, monkeypatch, content):
    """A compiler that takes no time: it makes the library that this machine's own made, and counts those it links."""
    (tmp_path / "made").write_bytes(content)
    script = tmp_path / "compiler"
    made, calls = shlex.quote(str(tmp_path / "made")), shlex.quote(str(tmp_path / "calls"))
    counted = f'[ "$1" = --version ] && exit\n[ "$1" = -shared ] && echo >> {calls}\n'
    script.write_text(f'{counted}for last; do :; done\ncp {made} "$last"\n')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    terminal.say_once.cache_clear()

    class Compiler:
        command = ("sh", str(script))

        def load(self):
            return library._loaded_or_compiled(self.command)

        @property
        def calls(self):
            return len((tmp_path / "calls").read_text()) if (tmp_path / "calls").exists() else 0

        def make(self, code):
            (tmp_path / "code.c").write_text(code)
            command = [shutil.which("cc"), "-shared", "-fPIC", "-o", tmp_path / "made", tmp_path / "code.c"]
            subprocess.run(command, check=True)
            return (tmp_path / "made").read_bytes()

    return Compiler()


@pytest.fixture
def place(tmp_path, compiler):
    """Return the library's file after the first start."""
    compiler.load()
    (path,) = (tmp_path / "accelnet" / "kernels").iterdir()
    return path


def test_the_library_is_compiled_once_into_a_place_that_is_the_users_alone(compiler, place):
    assert isinstance(compiler.load(), ctypes.CDLL)
    assert compiler.calls == 1
    assert place.stat().st_mode & 0o777 == 0o600
    assert all(directory.stat().st_mode & 0o777 == 0o700 for directory in place.parents[:2])


def test_of_two_that_want_it_at_once_one_compiles_and_the_other_waits(compiler, tmp_path, capsys):
    # A lock is of an open directory, so two threads stand for two processes. The link takes two seconds.
    script = tmp_path / "compiler"
    script.write_text(script.read_text().replace("for last", '[ "$1" = -shared ] && sleep 2\nfor last'))
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda _: compiler.load(), range(2))
    assert first._name == second._name
    assert compiler.calls == 1
    assert capsys.readouterr().err.count("waiting for another process") == 1


@pytest.mark.parametrize("damage", ["truncated", "empty", "a flipped bit", "text"])
def test_a_damaged_library_is_made_again_and_never_loaded(compiler, place, capsys, damage):
    good = place.read_bytes()
    flipped = good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]
    bad = {"truncated": good[: len(good) // 2], "empty": b"", "a flipped bit": flipped, "text": b"#!/bin/sh\n"}
    place.unlink()  # what this process has loaded stays as it is
    place.write_bytes(bad[damage])
    assert compiler.load().accelnet_most_bytes() >= 0
    assert compiler.calls == 2
    assert f"{place} is damaged and is made again" in capsys.readouterr().err
    assert place.read_bytes() == good


# Written at the place that a file names, by whoever loads the library.
PLANTED = '__attribute__((constructor)) static void run(void) {{ fclose(fopen("{0}", "w")); }}'


def test_a_library_without_the_kernels_is_made_again(compiler, place, tmp_path, content):
    other = compiler.make("int accelnet_convolve;")
    (tmp_path / "made").write_bytes(content)
    place.unlink()
    key = place.stem.partition("-")[0]
    (place.parent / f"{key}-{library._hash(other)}.so").write_bytes(other)
    assert not library._lacking(compiler.load())
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_a_compiler_that_makes_another_library_leaves_none_and_is_named(compiler, tmp_path):
    compiler.make("int accelnet_convolve;")
    with pytest.raises(OSError, match=r"made lacks accelnet_kernel_gradient, accelnet_prepare.*accelnet_most_bytes"):
        compiler.load()
    assert list((tmp_path / "accelnet" / "kernels").iterdir()) == []


@needs_root
def test_a_library_of_another_user_is_never_executed(compiler, place, tmp_path):
    mark = tmp_path / "executed"
    content = (tmp_path / "made").read_bytes()
    planted = compiler.make("#include <stdio.h>\n" + PLANTED.format(mark))
    ctypes.CDLL(str(tmp_path / "made"))
    assert mark.exists(), "the library that is planted can tell"
    mark.unlink()
    (tmp_path / "made").write_bytes(content)
    good, key = place.name, place.stem.partition("-")[0]
    for owner, access in ((65534, 0o755), (0, 0o777)):  # theirs; ours, which they wrote to
        # The directory was open to all before, and another process may have closed it since.
        path = place.with_name(f"{key}-{library._hash(planted)}.so")
        path.write_bytes(planted)
        path.chmod(access)
        os.chown(path, owner, owner)
        compiler.load()
        assert [path.name for path in place.parent.iterdir()] == [good]
    link = place.with_name(f"{key}-{library._hash(planted)}.so")
    (tmp_path / "planted.so").write_bytes(planted)
    link.symlink_to(tmp_path / "planted.so")
    compiler.load()
    assert not mark.exists()


@needs_root
def test_where_the_cache_belongs_to_another_user_each_process_compiles_for_itself(compiler, tmp_path, capsys):
    (tmp_path / "accelnet" / "kernels").mkdir(parents=True, mode=0o700)
    os.chown(tmp_path / "accelnet", 65534, 65534)
    assert not library._lacking(compiler.load())
    said = capsys.readouterr().err
    assert f"nothing is kept between processes, so each compiles anew: {tmp_path / 'accelnet'} belongs to" in said
    assert compiler.calls == 1 and not list((tmp_path / "accelnet" / "kernels").iterdir())


def test_where_no_place_is_private_there_are_no_kernels_and_one_line(compiler, tmp_path, monkeypatch, capsys):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(open_to_all))
    monkeypatch.setattr(library.tempfile, "tempdir", str(open_to_all))
    monkeypatch.setattr(library, "find_compiler", lambda: compiler.command)
    assert library._library.__wrapped__() is None
    assert f"other users can write to {open_to_all} (mode 777)" in capsys.readouterr().err
    assert compiler.calls == 0


def test_the_library_of_this_process_lies_where_only_the_user_can_go(content):
    directory = cache.private_directory("kernels")
    assert directory is not None and directory.stat().st_mode & 0o077 == 0
    others = [path.name for path in directory.iterdir() if path.suffix != ".so"]
    assert not [name for name in others if not name.startswith(cache.UNFINISHED)]  # of a process that compiles now


START = """
import sys
from accelnet.ops import kernels
print(kernels.load())
"""


def test_a_start_with_a_truncated_library_works(compiler, place, content):
    place.unlink()
    place.write_bytes(content[:4096])
    env = os.environ | {"CXX": shlex.join(compiler.command)}
    done = subprocess.run([sys.executable, "-c", START], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
