"""Columns of Arrow's types, and of Python's and NumPy's values, which Arrow reads."""

import contextlib
import sys
from typing import Any

import numpy as np

from accelnet.data.arrays import native
from accelnet.data.cells import Cells, Mixture, as_names, named
from accelnet.data.scalars import of_scalars, whole_too_large
from accelnet.data.times import seconds_of
from accelnet.errors import UserError


def of_arrow(array: Any, where: str) -> Cells:
    """Make a column of an Arrow array.

    Args:
        array: Array or chunked array [N] of booleans, whole numbers, floats, decimals, times, text, or a dictionary
            of such, which makes names of all of them.
        where: Name of the column in messages.

    Raises:
        UserError: if it is of another type, or whole numbers are too large for float64.

    Example:
        >>> import pyarrow as pa
        >>> of_arrow(pa.array([1, None], pa.uint8()), "column 'a'").values
        array([ 1., nan])
    """
    import pyarrow as pa
    from pyarrow import compute, types

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        chunks = [chunk.storage for chunk in array.chunks] if isinstance(array, pa.ChunkedArray) else [array.storage]
        return of_arrow(pa.chunked_array(chunks, kind.storage_type), where)
    if types.is_run_end_encoded(kind):
        return of_arrow(compute.call_function("run_end_decode", [array]), where)
    if types.is_dictionary(kind):
        return _of_dictionary(array, where)
    if types.is_null(kind):
        return Cells("none", np.full(len(array), np.nan))
    if types.is_boolean(kind):
        return _filled("boolean", array.cast(pa.uint8()).cast(pa.float64()), ("False", "True"))
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        try:
            return _filled("number", array.cast(pa.float64()))
        except pa.ArrowInvalid:
            raise whole_too_large(where) from None
    if types.is_temporal(kind) and not types.is_interval(kind):
        values = seconds_of(array)
        return Cells("none" if np.isnan(values).all() else "time", values)
    if _is_text(kind):
        return _of_dictionary(array.cast(pa.large_string()).dictionary_encode(), where)
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        with contextlib.suppress(pa.ArrowInvalid):  # where it is no UTF-8
            return of_arrow(array.cast(pa.large_binary()).cast(pa.large_string()), where)
    raise UserError(f"{where} holds {kind}, expected numbers, booleans, text or times: leave it out of the features")


def of_values(values: Any, where: str, names: bool = False) -> Cells | Mixture:
    """Make a column of a list, an array, or a single value.

    Args:
        values: N numbers, booleans, texts or times; None and NaN are missing.
        where: Name of the column in messages.
        names: Whether numbers beside text are names.

    Returns:
        A column; where numbers stand beside text, as of a file without types.

    Raises:
        UserError: if there are values of several kinds, or more than one axis.

    Example:
        >>> of_values([1.5, "2"], "column 'size'").values
        array([1.5, 2. ])
    """
    arrow = sys.modules.get("pyarrow")  # who has not imported it has no array of its
    if arrow is not None and isinstance(values, arrow.Array | arrow.ChunkedArray):
        return of_arrow(values, where)
    if not isinstance(values, list | tuple | np.ma.MaskedArray):
        one = isinstance(values, str | bytes) or np.ndim(values) == 0
        values = [values] if one else native(values, where)
    if isinstance(values, np.ndarray) and (values.dtype.kind in "UT" or values.ndim > 1):
        values = values.tolist()
    found = of_scalars(values, where, names)
    return _of_others(values, where, names) if found is None else found


def _of_others(values: Any, where: str, names: bool) -> Cells | Mixture:
    import pyarrow as pa

    try:
        array = pa.array(values, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        if all(isinstance(one, str | int | float | np.number | None) for one in values):
            plain = [one.item() if isinstance(one, np.generic) else one for one in values]
            if (found := of_scalars(plain, where, names)) is not None:
                return found
        reason = str(error).partition("\n")[0]
        raise UserError(f"{where} is no column of numbers, booleans, text or times: {reason}") from None
    return of_arrow(array, where)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _filled(kind: str, array: Any, names: tuple[str, ...] = ()) -> Cells:
    values = array.to_numpy(zero_copy_only=False)  # missing ones as NaN
    return Cells("none", values) if np.isnan(values).all() else Cells(kind, values, names)


def _of_dictionary(array: Any, where: str) -> Cells:
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = array.unify_dictionaries().combine_chunks()
    codes = array.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    if _is_text(array.dictionary.type):
        return named(["" if text is None else text for text in array.dictionary.to_pylist()], codes)
    names = as_names(of_arrow(array.dictionary, where))
    if names.kind == "none":
        return Cells("none", np.full(len(array), np.nan))
    texts = ["" if code < 0 else names.names[code] for code in names.values.tolist()]
    return named(texts, codes)
