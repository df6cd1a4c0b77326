"""Pictures in folders: read when they are asked for, by class, by split."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from accelnet import arguments
from accelnet.data.dataset import Data
from accelnet.data.fitted import checked
from accelnet.data.normalize import fit, standardize, with_cast_targets
from accelnet.data.picture_files import PictureFiles, find_labelled, find_pictures
from accelnet.data.pictures import RESIZES, PictureForm, look_at, read_picture
from accelnet.data.row_cache import open_cache
from accelnet.data.row_views import ReorderedRows, first_rows
from accelnet.data.rows import LazyArray, Rows
from accelnet.data.splits import divide
from accelnet.data.workers import InProcesses
from accelnet.errors import UserError
from accelnet.wording import listed, shown

# Pictures that are looked at, to know whether the data set is in colour.
_LOOKED_AT = 16
# Of which mean and deviation are computed: their error is then about 1 % of the deviation.
_FITTED = 8192


def image_folder(
    directory: str | os.PathLike[str],
    *,
    size: int | Sequence[int] | None = None,
    resize: str = "crop",
    channels: int | None = None,
    labels: str | os.PathLike[str] | Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    normalize: bool = True,
    workers: int = 0,
    cache: bool | int = False,
    name: str | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> Data:
    """Make a data set of pictures in folders; they are read when they are asked for, and take no memory before.

    JPEG, PNG, GIF (the first picture of an animation), BMP, WebP, TIFF, PPM, AVIF and JPEG 2000 files are read, turned
    upright as their camera says, and what is transparent becomes white. JPEG files are decoded at the smallest scale of
    1, 1/2, 1/4 and 1/8 that has twice `size`, for speed.

    Args:
        directory: Folder with a sub-folder of pictures for each class; or with folders `train` and `validation` (or
            `val`) or `test`, or both, that have these. Folders of a class may hold further ones.
        size: (height, width) in pixels that all pictures get, or one number for both. None: they all have that of the
            first.
        resize: How they get it: "crop" scales a picture until it covers the size and takes its middle, "squash" changes
            its proportions, "pad" scales it until it fits and puts black around it.
        channels: 3 for red, green and blue, 1 for grey. None: 1 if 16 pictures are grey, and then one in colour is an
            error; else 3.
        labels: CSV file in the folder that names pictures and their classes in two columns, or a dict of these, where
            there are no sub-folders of classes.
        class_names: Names of the classes 0, 1, ..., in this order. None: in alphabetical order, and numbers by size.
        validation: Fraction of the training pictures to hold out, stratified, where there is no folder of them.
        test: The same.
        seed: Seed of the pictures held out, at least 0.
        normalize: Standardize each channel with mean and deviation of the training pictures (of at most 8,192,
            evenly spaced, and 256 MiB). False: the model gets uint8.
        workers: Processes that read, 0 for the two threads of this one. They pay where cores are free and decoding is
            what training waits for; see `accelnet.data.workers.InProcesses`.
        cache: Keep decoded pictures in a private file, so that another epoch reads them from there, as does another
            run: True for at most 20 GB and a quarter of the free disk, or a number of bytes.
        name: Name of the data in results. None: that of the folder.
        fitted: `data.fitted` of an earlier run, to take over its names of classes, means and deviations.

    Returns:
        Data with inputs uint8 [N, height, width, channels], read from the files, and targets int32 [N] in memory.
        `data.encode` takes paths, images of Pillow and arrays, and makes of each what `size` and `resize` say.

    Raises:
        UserError: if there are no pictures or one class, a class is empty, or an argument is out of its range; and when
            pictures are read, if one is damaged, gone, or of another size where none is given.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for number in range(20):
        ...     path = folder / ("cat" if number % 2 else "dog") / f"{number}.png"
        ...     path.parent.mkdir(exist_ok=True)
        ...     Image.new("RGB", (40, 30), (number, 0, 0)).save(path)
        >>> data = image_folder(folder, size=16)
        >>> data.arrays["inputs"], data.info["class_names"], data.decode([0])
        (LazyArray(uint8[20, 16, 16, 3]), ('cat', 'dog'), array(['cat'], dtype='<U3'))
    """
    arguments.flag("normalize", normalize)
    root = arguments.path("directory", directory)
    if not root.is_dir():
        raise UserError(f"no directory {root}: expected a folder with a sub-folder of pictures for each class")
    name = root.resolve().name or "pictures" if name is None else arguments.word("name", name)
    known = {} if fitted is None else checked(fitted)
    files = find_pictures(root) if labels is None else find_labelled(root, labels)
    class_names = _class_names(name, files, class_names, known.get("class_names"))
    number = {one: index for index, one in enumerate(class_names)}
    targets = np.array([number[one] for one in files.classes], np.int32)[np.array(files.labels, np.int32)]
    order, splits = _divide(files, targets, seed, {"validation": validation, "test": test})

    form, refuse_colour = _form(files, order, size, resize, channels, known.get("picture", {}))
    rows: Rows = PictureRows(files, form, refuse_colour)
    if arguments.integer("workers", workers, low=0):
        rows = InProcesses(rows, workers)
    if cache is not False:
        import PIL

        key = b"\0".join((os.fsencode(root.resolve()), rows.identity(), PIL.__version__.encode()))
        rows = open_cache(rows, cache, key=key, stamps=files.stamps())
    view = ReorderedRows(rows, order)

    own: dict[str, Any] = {"class_names": class_names, "picture": form.values()}
    if normalize and {"mean", "std"} <= set(known):
        own |= {"mean": known["mean"], "std": known["std"]}
    elif normalize:
        own |= _fit(view, len(splits["train"]))
    arrays = {"inputs": LazyArray(view, ("inputs",)), "targets": targets[order]}
    prepare = standardize if normalize else with_cast_targets
    data = Data(name, arrays, splits, prepare, info={"num_classes": len(class_names)}, fitted=own)
    return data if fitted is None else data.refitted(fitted)


class PictureRows(Rows):
    """Pictures in files, each decoded when it is read.

    Args:
        files: The files.
        form: What the pictures become.
        refuse_colour: Whether one in colour is an error where `form` is grey.
    """

    def __init__(self, files: PictureFiles, form: PictureForm, refuse_colour: bool = False) -> None:
        self._files, self._form, self._refuse_colour = files, form, refuse_colour
        self.shapes = {"inputs": jax.ShapeDtypeStruct(form.shape, np.dtype(np.uint8))}

    def __len__(self) -> int:
        return len(self._files)

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        pictures = np.empty((len(rows), *self._form.shape), np.uint8)
        for index, row in enumerate(rows.tolist()):
            pictures[index] = read_picture(self._files.path(row), self._form, refuse_colour=self._refuse_colour)
        return {"inputs": pictures}

    def place(self, row: int) -> str:
        return self._files.path(row)

    def identity(self) -> bytes:
        return self._identity

    @cached_property
    def _identity(self) -> bytes:
        return self._files.identity() + repr(self._form).encode()


def _fit(rows: Rows, num_train: int) -> dict[str, np.ndarray]:
    some = np.linspace(0, num_train - 1, min(num_train, _FITTED)).astype(np.int64)
    return fit(first_rows(LazyArray(ReorderedRows(rows, some), ("inputs",)), len(some)))


def _class_names(
    name: str, files: PictureFiles, given: Sequence[str] | None, known: Sequence[str] | None
) -> tuple[str, ...]:
    given = None if given is None else arguments.names("class_names", given)
    for names, where in ((given, "class_names do"), (known, "the values to take over do")):
        if names is not None and (unknown := [one for one in files.classes if one not in set(names)]):
            raise UserError(f"{name}: pictures are of the classes {listed(unknown)}, which {where} not have")
    if given or known:
        return given or tuple(known or ())
    plain = all(one.isascii() and one.isdigit() for one in files.classes)
    return tuple(sorted(files.classes, key=(lambda one: (int(one), one)) if plain else None))  # type: ignore[arg-type]


def _divide(
    files: PictureFiles, targets: np.ndarray, seed: int, fractions: Mapping[str, float]
) -> tuple[np.ndarray, dict[str, range]]:
    """Hold rows out where no folder does, and put all in order; pictures of a folder keep theirs."""
    shares = {split: 0.0 if split in files.counts else share for split, share in fractions.items()}
    for split, share in fractions.items():
        arguments.fraction(split, share)
    num_train = files.counts["train"]
    order, splits = divide(num_train, seed, labels=targets[:num_train], **shares)
    start = num_train
    for split in ("validation", "test"):
        if split in files.counts:
            splits[split] = range(start, start + files.counts[split])
            start += files.counts[split]
    return np.concatenate([order, np.arange(num_train, start)]), splits


def _form(
    files: PictureFiles, order: np.ndarray, size: Any, resize: str, channels: int | None, known: Mapping[str, Any]
) -> tuple[PictureForm, bool]:
    """Return what pictures become, and whether one in colour is an error since the others are grey."""
    arguments.word("resize", resize, RESIZES)
    if channels not in (None, 1, 3) or isinstance(channels, bool):
        raise UserError(f"channels is {shown(channels)}, expected 1 for grey, 3 for colour, or None")
    first = look_at(files.path(int(order[0])))
    if size is None:
        height, width, resize = first[0], first[1], "none"
    else:
        pair = (size, size) if not isinstance(size, Sequence) or isinstance(size, str) else tuple(size)
        if len(pair) != 2:
            raise UserError(f"size is {shown(size)}, expected (height, width), or one number for both")
        height, width = (arguments.integer("a side of size", side, 1, 65_535) for side in pair)
    channels = channels or known.get("channels")
    if channels:
        return PictureForm(height, width, channels, resize), False
    some = order[np.unique(np.linspace(0, files.counts["train"] - 1, _LOOKED_AT).astype(int))].tolist()
    is_grey = all(look_at(files.path(row))[2] for row in some)
    return PictureForm(height, width, 1 if is_grey else 3, resize), is_grey
