"""The user's cache: nothing in it is used that another user could have put there."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accelnet import cache, terminal
from accelnet.cache import check_place, close_to_others, open_private_directory, private_directory, write_private

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="plays other users, which root alone can")
STRANGER = 65534


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    terminal.say_once.cache_clear()
    return tmp_path / "accelnet"


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_directories_are_the_users_alone_under_any_umask(home, monkeypatch, umask):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "new" / "cache"))
    before = os.umask(umask)
    try:
        directory = open_private_directory("a")
        write_private(directory / "file", b"1")
    finally:
        os.umask(before)
    assert directory == home / "new" / "cache" / "accelnet" / "a"
    assert {mode(path) for path in (*directory.parents[:3], directory)} == {0o700}
    assert mode(directory / "file") == 0o600


def test_what_lay_in_a_directory_that_was_open_is_removed(home):
    directory = open_private_directory("a")
    write_private(directory / "ours", b"1")
    assert (open_private_directory("a") / "ours").exists()
    directory.chmod(0o777)
    assert list(open_private_directory("a").iterdir()) == []
    assert mode(directory) == 0o700


def test_files_that_others_can_have_written_are_removed_and_the_users_own_stay(home, tmp_path):
    directory = open_private_directory("a")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    for name in ("good", "writable"):
        write_private(directory / name, b"1")
    (directory / "writable").chmod(0o666)
    (directory / "link").symlink_to(elsewhere)
    (directory / "second name").hardlink_to(elsewhere)
    (directory / "folder").mkdir(mode=0o700)
    write_private(directory / "folder" / "good", b"1")
    os.mkfifo(directory / "pipe")
    if os.geteuid() == 0:
        for name in ("foreign", "folder/foreign"):
            (directory / name).write_text("planted")
            os.chown(directory / name, STRANGER, STRANGER)
        (directory / "foreign folder").mkdir()
        os.chown(directory / "foreign folder", STRANGER, STRANGER)
    open_private_directory("a")
    left = sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
    assert left == ["folder", "folder/good", "good"]
    assert elsewhere.read_text() == "kept"


def test_a_file_that_a_killed_process_left_unfinished_goes_after_an_hour(home):
    directory = open_private_directory("a")
    old, new = (directory / f"{cache.UNFINISHED}{name}" for name in "ab")
    for path, age in ((old, 7200), (new, 0)):
        write_private(path, b"1")
        os.utime(path, (time.time() - age,) * 2)
    open_private_directory("a")
    assert [path.name for path in directory.iterdir()] == [new.name]


def test_what_another_process_is_making_is_left_to_it(home):
    directory = open_private_directory("a")
    made = directory / f"{cache.UNFINISHED}c" / "part.o"
    made.parent.mkdir(mode=0o700)
    made.write_bytes(b"1")
    made.chmod(0o666)  # as a compiler writes it under an open umask
    open_private_directory("a")
    assert made.exists()


@needs_root
def test_a_place_that_another_user_could_replace_is_not_used_and_one_line_says_why(home, tmp_path, monkeypatch, capsys):
    def refused(place):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        terminal.say_once.cache_clear()
        assert private_directory("a") is None
        (line,) = capsys.readouterr().err.splitlines()
        assert private_directory("a") is None and not capsys.readouterr().err
        return line

    (tmp_path / "theirs" / "ours").mkdir(parents=True)
    os.chown(tmp_path / "theirs", STRANGER, STRANGER)
    assert f"{tmp_path / 'theirs'} belongs to user {STRANGER}, expected root or this user" in refused(
        tmp_path / "theirs" / "ours"
    )
    assert not list((tmp_path / "theirs" / "ours").iterdir()), "nothing was made there"
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert f"other users can write to {tmp_path / 'open'} (mode 777)" in refused(tmp_path / "open")
    (tmp_path / "group").mkdir()
    os.chown(tmp_path / "group", 0, STRANGER)
    (tmp_path / "group").chmod(0o775)
    assert "(mode 775)" in refused(tmp_path / "group")
    (tmp_path / "led").symlink_to(tmp_path / "theirs")
    assert f"{tmp_path / 'theirs'} belongs to user" in refused(tmp_path / "led")
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "accelnet").symlink_to(tmp_path)
    os.lchown(tmp_path / "planted" / "accelnet", STRANGER, STRANGER)
    assert f"accelnet belongs to user {STRANGER}, expected this user" in refused(tmp_path / "planted")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert "too many links" in refused(tmp_path / "round")
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'} is no directory" in refused(tmp_path / "file")


def test_a_sticky_directory_and_the_users_own_links_are_trusted(tmp_path, monkeypatch):
    (tmp_path / "sticky").mkdir()
    (tmp_path / "sticky").chmod(0o1777)
    (tmp_path / "link").symlink_to(Path("sticky") / "within")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "link"))
    write_private(open_private_directory("a") / "file", b"1")
    assert (tmp_path / "sticky" / "within" / "accelnet" / "a" / "file").read_bytes() == b"1"
    check_place(tmp_path / "sticky")


def test_a_relative_cache_home_is_ignored_as_its_specification_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert open_private_directory("a") == tmp_path / ".cache" / "accelnet" / "a"


def test_a_write_that_fails_leaves_what_was_there(home, monkeypatch):
    directory = open_private_directory("a")
    write_private(directory / "file", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_private(directory / "file", b"new")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {"file": b"old"}


def test_what_another_library_wrote_under_an_open_umask_is_closed_and_stays(home):
    directory = open_private_directory("a")
    (directory / "program").touch()
    (directory / "program").chmod(0o666)
    close_to_others(directory)
    assert list(open_private_directory("a").iterdir()) == [directory / "program"]


HOMELESS = """
import os, sys
from accelnet import cache, terminal
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
print(cache.private_directory("a"), cache.private_directory("b"))
"""


@needs_root
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "user 54321 has no home directory: HOME is not set"),
        ({"HOME": "/"}, "/.cache: Permission denied"),
        ({"HOME": "/no/such/home"}, "/no: Permission denied"),
        ({"HOME": "/usr"}, "/usr/.cache: Permission denied"),
    ],
)
def test_a_user_without_a_name_or_a_home_gets_one_line(variables, words):
    env = variables | {"PYTHONPATH": str(Path(cache.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", HOMELESS], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "None None\n", done.stderr
    (line,) = done.stderr.splitlines()
    assert words in line and "Set XDG_CACHE_HOME" in line


def test_who_stands_still_in_its_turn_holds_the_others_up_for_a_while_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "_PATIENCE_SECONDS", 0.3)
    with cache.in_turn(tmp_path, "one waits"):
        began = time.monotonic()
        with cache.in_turn(tmp_path, "another waits"):
            assert 0.3 <= time.monotonic() - began < 5
    assert capsys.readouterr().err == "another waits\n"
    with cache.in_turn(tmp_path, "nobody has it now"):
        pass
    assert capsys.readouterr().err == ""
