"""Image data sets: scikit-learn's digits, Fashion-MNIST from IDX files."""

import hashlib
import os
from pathlib import Path

import numpy as np

from accelnet import arguments
from accelnet.cache import open_private_directory
from accelnet.data.dataset import Data
from accelnet.data.files import package_path, read_bytes
from accelnet.data.memory import from_arrays
from accelnet.errors import UserError

DEBIAN_DIRECTORY = Path("/usr/share/datasets/fashion-mnist")
FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
# Of the compressed files as Zalando publishes them, from the table in their README.
FASHION_MD5 = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
# Of the decompressed content: Debian compressed the same content again.
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def digits(seed: int = 0) -> Data:
    """Load scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, 10 classes.

    About 70 / 10 / 20 % of the rows for training, validation and test, stratified.

    Args:
        seed: Seed of the splits, at least 0.

    Returns:
        Data with inputs uint8 [1797, 8, 8, 1], values 0 to 16, and targets uint8 [1797].

    Raises:
        UserError: if scikit-learn is not installed.

    Example:
        >>> data = digits()
        >>> {split: len(rows) for split, rows in data.splits.items()}
        {'train': 1258, 'validation': 180, 'test': 359}

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).
    """
    # Importing scikit-learn takes 2 s, reading its file 0.02 s.
    missing = "the digits are a file of scikit-learn, which is not installed: pip install scikit-learn"
    content = read_bytes(package_path("sklearn", "datasets/data/digits.csv.gz", missing))
    table = np.array([line.split(",") for line in content.decode("ascii").split()], np.float32).astype(np.uint8)
    images, labels = table[:, :64].reshape(-1, 8, 8, 1), table[:, 64]
    return from_arrays(images, labels, name="digits", validation=0.1, test=0.2, seed=seed, num_classes=10)


def fashion_mnist(directory: str | os.PathLike[str] | None = None, seed: int = 0) -> Data:
    """Load Fashion-MNIST: 60,000 + 10,000 grey images of 28 x 28 pixels, 10 classes of clothing.

    One in 12 of the training images (5,000), stratified and seeded, is for validation; the test images are
    those published as such.

    Args:
        directory: Folder of the four IDX files, plain or `.gz`. Any set in that format will do: the hashes are
            not checked. None for the Debian package's directory, else a copy downloaded once into the
            user's cache; the hashes of both are checked.
        seed: Seed of the validation rows.

    Returns:
        Data with inputs uint8 [70000, 28, 28, 1] and targets uint8 [70000], in the order train, validation,
        test.

    Raises:
        UserError: if the files are missing and cannot be downloaded, or are damaged or of another format.

    Example:
        >>> fashion_mnist("/not/there")
        Traceback (most recent call last):
        accelnet.errors.UserError: no directory /not/there: expected one with train-images-idx3-ubyte.gz

    Source: H. Xiao, K. Rasul and R. Vollgraf, 2017, arXiv:1708.07747.
    """
    checked = directory is None
    if directory is None:
        found = DEBIAN_DIRECTORY if DEBIAN_DIRECTORY.is_dir() else download_fashion_mnist()
    else:
        found = arguments.path("directory", directory)
    if not found.is_dir():
        raise UserError(f"no directory {found}: expected one with train-images-idx3-ubyte.gz")
    parts = {}
    for name, sha256 in FASHION_SHA256.items():
        path = next((p for p in (found / f"{name}.gz", found / name) if p.is_file()), None)
        if path is None:
            raise UserError(f"no file {found / name}.gz: give a directory that holds it, or none for the usual places")
        parts[name] = read_idx(path, sha256=sha256 if checked else None)
    rows = {}
    for part in ("train", "t10k"):
        images, labels = parts[f"{part}-images-idx3-ubyte"], parts[f"{part}-labels-idx1-ubyte"]
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise UserError(
                f"{found}: {part} images have shape {images.shape} and labels {labels.shape}, "
                f"expected [N, height, width] and [N]"
            )
        rows[part] = (images[..., None], labels)
    if rows["train"][0].shape[1:] != rows["t10k"][0].shape[1:]:
        raise UserError(f"{found}: train and t10k images differ in height or width")
    return from_arrays(
        *rows["train"],
        name="fashion_mnist",
        validation=1 / 12,
        test=rows["t10k"],
        seed=seed,
        class_names=FASHION_CLASSES,
    )


def download_fashion_mnist() -> Path:
    """Download the four files into the user's cache, unless they are there, and check their hashes.

    Returns:
        The directory, `$XDG_CACHE_HOME/accelnet/fashion-mnist` (or below `~/.cache`), with mode 0700.

    Raises:
        UserError: if that fails; it says how to get the data otherwise.
    """
    advice = "apt-get install dataset-fashion-mnist, or give the directory of the IDX files"
    try:
        import pooch
    except ImportError:
        raise UserError(f"Fashion-MNIST is not here, and pooch, which downloads it, is not either: {advice}") from None
    try:
        directory = open_private_directory("fashion-mnist")
        for name, md5 in FASHION_MD5.items():
            pooch.retrieve(f"{FASHION_URL}{name}.gz", known_hash=f"md5:{md5}", fname=f"{name}.gz", path=directory)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"Fashion-MNIST is not here and the download failed ({reason}): {advice}") from None
    return directory


def read_idx(path: str | os.PathLike[str], sha256: str | None = None) -> np.ndarray:
    """Read an IDX file of bytes.

    The file is 0, 0, 8 (bytes), the number of axes, each axis as a big-endian 32-bit number, then the values.

    Args:
        path: File, compressed where the name ends in `.gz`.
        sha256: Expected hash of the decompressed content, hexadecimal; None for any.

    Returns:
        uint8, as many axes as the file says.

    Raises:
        UserError: if the file is missing, empty, truncated, of another format or of another hash.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "labels"
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
        ...     read_idx(path)
        array([7, 9], dtype=uint8)

    Source: Y. LeCun, C. Cortes and C. Burges, The MNIST database, section "File formats".
    """
    content = read_bytes(arguments.path("path", path))
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 or len(content) < 4 + 4 * content[3]:
        raise UserError(
            f"{path} starts with the bytes {content[:4].hex(' ') or 'none'}, expected an IDX file: 00 00 08"
        )
    header = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:header], dtype=">u4").astype(int)
    expected = int(np.prod(shape))
    if len(content) - header != expected:
        raise UserError(f"{path} holds {len(content) - header} values, expected {expected} for {shape.tolist()}")
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} is not the published file (its SHA-256 differs): remove it and get it again")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
