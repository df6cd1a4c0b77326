"""Which pictures lie in a folder, of which class and split each is, without opening one."""

import csv
import hashlib
import os
import stat
import unicodedata
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from accelnet.data.files import read_text
from accelnet.data.pictures import EXTENSIONS
from accelnet.errors import UserError
from accelnet.terminal import say_once
from accelnet.wording import did_you_mean, listed, shown

_SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip


class PictureFiles:
    """Hold the names of many files in little memory, and which class and split each is of.

    Args:
        root: Folder that the names begin at.

    Attributes:
        labels: Number of each file's class, or of its name, in the order in which classes were met.
        classes: Names of the classes.
        counts: Files of each split, which lie in the order train, validation, test.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._start = root, os.path.join(root, "")  # noqa: PTH118, as it stands in front of the names
        self.labels, self.classes, self.counts = array("i"), [], {}
        self._names, self._ends = bytearray(), array("q", [0])
        self._sizes, self._times = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, name: str, split: str, label: int, status: os.stat_result) -> None:
        """Add a file, or raise UserError if it is none, such as a pipe, whose reading might never end."""
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"picture {self.root / name} is no file: remove it, or leave it out")
        self._names += os.fsencode(name)
        self._ends.append(len(self._names))
        self._sizes.append(status.st_size)
        self._times.append(status.st_mtime_ns)
        self.labels.append(label)
        self.counts[split] = self.counts.get(split, 0) + 1

    def path(self, row: int) -> str:
        """Return the path of a file."""
        name = os.fsdecode(bytes(self._names[self._ends[row] : self._ends[row + 1]]))
        return name if name.startswith(os.sep) else self._start + name

    def identity(self) -> bytes:
        """Return a hash of names and sizes; a copy of the folder has the same."""
        return hashlib.blake2b(bytes(self._names) + self._ends.tobytes() + self._sizes.tobytes()).digest()

    def stamps(self) -> np.ndarray:
        """Return uint32 [N] that changes for a file whose size or time of change does."""
        mixed = np.array(self._sizes, np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.array(self._times, np.uint64)
        return (mixed ^ (mixed >> np.uint64(32))).astype(np.uint32)


def find_pictures(root: Path) -> PictureFiles:
    """Find the pictures in sub-folders that are classes, or in those of the folders train, validation and test.

    Args:
        root: Folder. Sub-folders of classes may hold further ones, and links to folders.

    Returns:
        The files, by class and name. One line on standard error counts the files that are no pictures.

    Raises:
        UserError: if a folder cannot be read, a class is empty or named twice, there is only one, or splits and classes
            are mixed.
    """
    files, walk = PictureFiles(root), _Walk()
    splits = _split_folders(root, walk)
    for split in ("train", "validation", "test"):
        if split not in splits:
            continue
        folders, loose = walk.entries(splits[split])
        _check_classes(splits[split], [entry.name for entry in folders], len(loose))
        walk.skip([entry.path for entry in loose])
        for folder in folders:
            if folder.name not in files.classes:
                if split != "train":
                    where = splits[split] / folder.name
                    raise UserError(f"{where} is a class that {splits['train']} does not have: the model would not")
                files.classes.append(folder.name)
            before = len(files)
            walk.add_all(files, Path(folder.path), split, files.classes.index(folder.name))
            if len(files) == before:
                raise UserError(f"{folder.path} holds no picture: remove it, or put pictures of that class there")
    walk.say_skipped(root)
    return files


def find_labelled(root: Path, labels: str | os.PathLike[str] | Mapping[str, str]) -> PictureFiles:
    """Find the pictures that a file or a dict names, with their classes.

    Args:
        root: Folder that the names begin at.
        labels: CSV file (in the folder, or a path) with two columns, the name of a picture and its class, with a header
            or without; or a dict of these.

    Returns:
        The files in the order in which they are named.

    Raises:
        UserError: if the file is no such file, or a picture is not there or named twice.
    """
    files, walk = PictureFiles(root), _Walk()
    named = labels.items() if isinstance(labels, Mapping) else _read_labels(root, Path(os.fspath(labels)))
    where = "labels" if isinstance(labels, Mapping) else os.fspath(labels)
    numbers: dict[str, int] = {}
    seen: set[str] = set()
    for name, label in named:
        if not isinstance(name, str) or not isinstance(label, str) or not label:
            raise UserError(f"{where}: picture {shown(name)} has the class {shown(label)}, expected a name")
        if name in seen:
            raise UserError(f"{where} names the picture {shown(name)} more than once: leave out all but one")
        seen.add(name)
        try:
            status = (root / name).stat()
        except (OSError, ValueError) as error:
            near = [entry.name for entry in walk.entries(root)[1]]
            hint = did_you_mean(name, near)
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{where} names the picture {shown(name)}, but {root / name}: {reason}{hint}") from None
        files.add(name, "train", numbers.setdefault(label, len(numbers)), status)
    files.classes += numbers
    if len(numbers) < 2:
        raise UserError(f"{where} names {listed(numbers)} as classes, expected two or more")
    if len(numbers) == len(files):
        raise UserError(f"{where} gives each of {len(files)} pictures a class of its own: are these classes?")
    return files


class _Walk:
    """Walks through folders in the order of names, and counts what it leaves out."""

    def __init__(self) -> None:
        self._skipped, self._example = 0, ""

    def entries(self, folder: Path) -> tuple[list["os.DirEntry[str]"], list["os.DirEntry[str]"]]:
        """Return the folders and the files in a folder; hidden ones are left out."""
        folders, files = [], []
        try:
            with os.scandir(folder) as found:
                for entry in sorted(found, key=lambda entry: os.fsencode(entry.name)):
                    if entry.name.startswith((".", "__MACOSX")):
                        self.skip([entry.path])
                    else:
                        (folders if entry.is_dir() else files).append(entry)
        except OSError as error:
            raise UserError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from None
        return folders, files

    def add_all(
        self, files: PictureFiles, folder: Path, split: str, label: int, above: frozenset[tuple[int, int]] = frozenset()
    ) -> None:
        """Add the pictures in a folder and in those below it."""
        status = folder.stat()
        own = status.st_dev, status.st_ino
        if own in above:
            raise UserError(f"{folder} is a link to a folder that it lies in: remove it")
        folders, found = self.entries(folder)
        start = len(os.path.join(files.root, ""))  # noqa: PTH118, as it stands in front of the paths
        for entry in found:
            if Path(entry.name).suffix.lower() not in EXTENSIONS:
                self.skip([entry.path])
                continue
            try:
                files.add(entry.path[start:], split, label, entry.stat())
            except OSError as error:
                raise UserError(f"picture {entry.path} cannot be read: {error.strerror or error}") from None
        for one in folders:
            self.add_all(files, Path(one.path), split, label, above | {own})

    def skip(self, paths: Sequence[str]) -> None:
        """Count files that are left out."""
        self._skipped += len(paths)
        self._example = self._example or (paths[0] if paths else "")

    def say_skipped(self, root: Path) -> None:
        """Say how many files were left out."""
        if self._skipped:
            files = "1 file that is no picture" if self._skipped == 1 else f"{self._skipped} files that are no pictures"
            say_once(f"{root}: {files} in a folder of a class left out, such as {self._example}")


def _split_folders(root: Path, walk: _Walk) -> dict[str, Path]:
    """Return the folder of each split; the folder itself where there are classes in it."""
    looking = _Walk()  # which counts nothing that is counted again
    folders, loose = looking.entries(root)
    meant: dict[str, Path] = {}
    for entry in folders:
        split = _SPLITS.get(entry.name.lower())
        if split is None:
            continue
        if split in meant:
            raise UserError(f"{root} has the folders {meant[split].name!r} and {entry.name!r}, expected one of them")
        meant[split] = Path(entry.path)
    if "train" in meant and len(meant) == len(folders):
        walk.skip([entry.path for entry in loose])
        return meant
    # A class may be named "train"; then pictures lie in it.
    doubtful = [path for path in meant.values() if not looking.entries(path)[1]]
    if doubtful:
        others = [entry.name for entry in folders if _SPLITS.get(entry.name.lower()) is None]
        came = f"and {listed(others)} beside them" if others else "and none named 'train'"
        raise UserError(
            f"{root} has folders named as splits are, {listed(path.name for path in meant.values())}, {came}: "
            f"expected either folders of classes, or train and validation or test with folders of classes in them"
        )
    return {"train": root}


def _check_classes(folder: Path, names: Sequence[str], num_files: int) -> None:
    if not names:
        held = f"{num_files} files" if num_files else "nothing"
        raise UserError(
            f"{folder} holds {held} and no folder: expected a folder of pictures for each class, or "
            f"labels='labels.csv', a file that names the class of each"
        )
    if len(names) < 2:
        raise UserError(f"{folder} has the folder {shown(names[0])} alone, expected those of two or more classes")
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(unicodedata.normalize("NFC", name.casefold()), name)
        if other is not name:
            raise UserError(
                f"{folder} has the classes {shown(other)} and {shown(name)}: are they one? Join or rename them"
            )


def _read_labels(root: Path, path: Path) -> Iterable[tuple[str, str]]:
    inside = root / path
    path = inside if inside.exists() else path
    text = read_text(path, "file of labels")
    head = text.partition("\n")[0]
    delimiter = next((mark for mark in (",", "\t", ";") if mark in head), ",")
    try:
        lines = [
            (number, row) for number, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1) if row
        ]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV file: {error}") from None
    if not lines:
        raise UserError(f"{path} is empty, expected the name of a picture and its class in each line")
    for number, row in lines:
        if len(row) != 2:
            raise UserError(f"{path} line {number} has {len(row)} columns, expected two: name of a picture, class")
    first = lines[0][1][0].strip()
    if Path(first).suffix.lower() not in EXTENSIONS and not (root / first).exists():
        lines = lines[1:]  # the header
    return [(row[0].strip(), row[1].strip()) for _, row in lines]
