"""CIFAR-10 from its binary files."""

import os

import numpy as np

from accelnet import arguments
from accelnet.data.dataset import Data
from accelnet.data.files import read_bytes
from accelnet.data.memory import from_arrays
from accelnet.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TRAIN, _TEST = tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"
# A row is a label and the red, green and blue values of 32 x 32 pixels.
_ROW_BYTES = 1 + 3 * 32 * 32


def cifar10(directory: str | os.PathLike[str], seed: int = 0) -> Data:
    """Load CIFAR-10 from its binary version: 50,000 + 10,000 colour images of 32 x 32 pixels, 10 classes.

    A tenth of the training images, stratified and seeded, is for validation; the test images are those published as
    such.

    Args:
        directory: Folder of the files `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, such as
            `cifar-10-batches-bin` of `cifar-10-binary.tar.gz`. They may have any number of rows.
        seed: Seed of the validation rows, at least 0.

    Returns:
        Data with inputs uint8 [60000, 32, 32, 3] and targets uint8 [60000], in the order train, validation, test.

    Raises:
        UserError: if a file is missing, is cut short, or holds a label above 9.

    Example:
        >>> cifar10("/none")
        Traceback (most recent call last):
        accelnet.errors.UserError: file of CIFAR-10 /none/data_batch_1.bin cannot be read: No such file or directory

    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    folder = arguments.path("directory", directory)

    def read(*names: str) -> tuple[np.ndarray, np.ndarray]:
        parts = [np.frombuffer(read_bytes(folder / name, "file of CIFAR-10"), np.uint8) for name in names]
        for name, part in zip(names, parts, strict=True):
            if not part.size or part.size % _ROW_BYTES or part[::_ROW_BYTES].max() >= len(CLASSES):
                raise UserError(
                    f"{folder / name} is no file of CIFAR-10: its rows have {_ROW_BYTES:,} bytes, the first below 10; "
                    "get cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html again"
                )
        rows = np.concatenate(parts).reshape(-1, _ROW_BYTES)
        return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]

    return from_arrays(*read(*_TRAIN), name="cifar10", test=read(_TEST), seed=seed, class_names=CLASSES)
