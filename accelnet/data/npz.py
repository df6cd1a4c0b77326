"""Data from an `.npz` file of NumPy's."""

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accelnet import arguments
from accelnet.data.dataset import Data
from accelnet.data.memory import from_arrays
from accelnet.data.splits import TENTH
from accelnet.errors import UserError
from accelnet.wording import did_you_mean, listed, shown

# Settings that may name arrays of the file.
_BY_ROW = ("weights", "stratify", "groups", "time", "splits")


def npz(
    path: str | os.PathLike[str],
    *,
    inputs: str = "inputs",
    targets: str = "targets",
    validation: float | tuple[str, str] = TENTH,
    test: float | tuple[str, str] = TENTH,
    **settings: Any,
) -> Data:
    """Load a data set from an `.npz` file of numbers (pickled objects are refused).

    Args:
        path: The file.
        inputs: Name of the array of inputs in it.
        targets: Name of the array of targets.
        validation: Fraction of the rows, or names of an array of inputs and one of targets.
        test: The same; `npz(path, inputs="x_train", targets="y_train", test=("x_test", "y_test"))`.
        settings: Other arguments of `from_arrays`: `weights`, `stratify`, `groups`, `time`, `splits`, `seed`,
            `normalize`, `num_classes`, `class_names`, `fitted`. The first five are arrays, or names of arrays in the
            file (of `splits` a dict of such); `stratify="targets"` are the targets.

    Returns:
        Data as of `from_arrays`, named after the file.

    Raises:
        UserError: if the file is missing, damaged or lacks an array, or as of `from_arrays`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", inputs=np.zeros((10, 2)), targets=np.zeros(10))
        ...     npz(f"{folder}/a.npz").splits["train"]
        range(0, 8)
    """
    file = arguments.path("path", path)
    pairs: dict[str, tuple[str, ...]] = {
        "train": (arguments.word("inputs", inputs), arguments.word("targets", targets))
    }
    for split, held_out in (("validation", validation), ("test", test)):
        if isinstance(held_out, list | tuple):
            pairs[split] = arguments.names(split, held_out)
            if len(pairs[split]) != 2:
                raise UserError(f"{split} is {shown(held_out)}, expected a fraction or the names of two arrays")
    named = [key for pair in pairs.values() for key in pair] + [*_names_in(settings)]
    arrays = _read_npz(file, list(dict.fromkeys(named)))
    given = {split: tuple(arrays[key] for key in pair) for split, pair in pairs.items()}
    rows = given.pop("train")
    settings = {key: _looked_up(key, value, arrays) for key, value in settings.items()}
    return from_arrays(*rows, **{"name": file.stem, "validation": validation, "test": test, **given, **settings})


def _names_in(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of arrays among settings that take an array for each row, or several of rows."""
    for key, value in settings.items():
        values = value.values() if key == "splits" and isinstance(value, Mapping) else [value]
        named = [one for one in values if isinstance(one, str)]
        if key in _BY_ROW and (key, value) != ("stratify", "targets"):
            yield from named


def _looked_up(key: str, value: Any, arrays: Mapping[str, Any]) -> Any:
    if key == "splits" and isinstance(value, Mapping):
        return {split: arrays[one] if isinstance(one, str) else one for split, one in value.items()}
    named = isinstance(value, str) and key in _BY_ROW and (key, value) != ("stratify", "targets")
    return arrays[value] if named else value


def _read_npz(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    arrays = {}
    try:
        # Empty files, .npy files and pickles are no zip files.
        if path.is_file() and not zipfile.is_zipfile(path):
            raise UserError(f"{path} is not an .npz file or truncated: write it with numpy.savez")
        with np.load(path, allow_pickle=False) as file:
            for key in wanted:
                if key not in file.files:
                    raise UserError(
                        f"{path} has arrays {listed(file.files)}, expected one {shown(key)}"
                        f"{did_you_mean(key, file.files)}"
                    )
                _check_size(path, file.zip, key)
                arrays[key] = file[key]
    except UserError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a readable .npz file of numbers: {error}") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory: give parts of it as .npy files with numpy.memmap") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return arrays


def _check_size(path: Path, file: zipfile.ZipFile, key: str) -> None:
    """Raise UserError if an array's header says more than there is: NumPy would ask for that memory first."""
    member = next((one for one in (f"{key}.npy", key) if one in file.namelist()), key)
    with file.open(member) as stream:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        version = np.lib.format.read_magic(stream)
        if version not in read:
            return
        shape, _, dtype = read[version](stream)
    claimed, held = dtype.itemsize * int(np.prod([int(n) for n in shape], dtype=object)), file.getinfo(member).file_size
    if claimed > held and not dtype.hasobject:
        raise UserError(f"{path} is damaged: array {shown(key)} is to take {claimed} bytes of {held} that are there")
