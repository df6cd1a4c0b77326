"""One column of a table, as numbers or as names."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from accelnet.data.times import parse_times
from accelnet.errors import UserError
from accelnet.wording import shown

# What stands for no number, in lower case. Among names, "NA" may be one: only empty text is missing there.
_NO_NUMBER = frozenset({"", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "?"})
_TRUTH = {"false": 0.0, "true": 1.0}


class Cells(NamedTuple):
    """Hold one column.

    Attributes:
        kind: "number", "boolean" (0 and 1), "time" (in seconds), "text", or "none" where everything is missing.
        values: float64 [N], NaN where missing; of text int32 [N], positions in `names`, -1 where missing.
        names: Names of a column of text in alphabetical order; of booleans, how False and True are written.
    """

    kind: str
    values: np.ndarray
    names: tuple[str, ...] = ()

    @property
    def missing(self) -> np.ndarray:
        """Rows without a value, bool [N]."""
        return self.values < 0 if self.kind == "text" else np.isnan(self.values)

    def take(self, rows: np.ndarray) -> "Cells":
        """Return some of the rows, int [B], in this order; of text only the names that they have.

        Example:
            >>> Cells("text", np.array([2, 0, -1]), ("blue", "green", "red")).take(np.array([2, 0]))
            Cells(kind='text', values=array([-1,  0], dtype=int32), names=('red',))
        """
        values = self.values[rows]
        if self.kind != "text":
            return self._replace(values=values)
        present = np.unique(values[values >= 0])
        codes = np.where(values < 0, -1, np.searchsorted(present, values)).astype(np.int32)
        return self._replace(values=codes, names=tuple(self.names[one] for one in present))


class Mixture(NamedTuple):
    """Hold where text was found among numbers: such a column is neither.

    Attributes:
        row: First row with such text.
        value: The text.
        as_names: Function that makes the column one of names.
    """

    row: int
    value: str
    as_names: Callable[[], Cells]


def to_number(value: Any) -> float | None:
    """Return the number that a value is or spells, NaN where it stands for no value, None for anything else.

    What only Python takes for a number (1_000, other scripts) is none.

    Example:
        >>> to_number(" 1e3"), to_number("NA"), to_number("1_000")
        (1000.0, nan, None)
    """
    if isinstance(value, str):
        if value.strip().lower() in _NO_NUMBER:
            return np.nan
        if "_" in value or not value.isascii():
            return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def number_name(value: float) -> str:
    """Return the one spelling of a number as a name.

    Example:
        >>> number_name(1.0), number_name(1.5)
        ('1', '1.5')
    """
    return str(int(value)) if value == int(value) else repr(value)


def named(texts: Sequence[str], codes: np.ndarray) -> Cells:
    """Make a column of names.

    Args:
        texts: Names, with or without blanks around them; the empty one is missing.
        codes: int [N], positions in `texts`, -1 where missing.

    Example:
        >>> named([" red", "blue", "red", ""], np.array([0, 1, 2, 3, -1]))
        Cells(kind='text', values=array([ 1,  0,  1, -1, -1], dtype=int32), names=('blue', 'red'))
    """
    texts = [text.strip() for text in texts]
    names = tuple(sorted(set(texts) - {""}))
    position = {"": -1} | {name: index for index, name in enumerate(names)}
    if not names:
        return Cells("none", np.full(len(codes), np.nan))
    return Cells("text", np.array([*(position[text] for text in texts), -1], np.int32)[codes], names)


def untyped(texts: Sequence[str], codes: np.ndarray) -> Cells | Mixture:
    """Make a column of text of a file that has no types.

    Args:
        texts: Different texts.
        codes: int [N], positions in `texts`, -1 where missing.

    Returns:
        Numbers, booleans (true and false) or times (as ISO 8601 writes them) where all texts are such, names where
        none is a number, else a `Mixture`.

    Example:
        >>> untyped(["1", "NA"], np.array([0, 1, -1])).values
        array([ 1., nan, nan])
        >>> found = untyped(["1", "one"], np.array([0, 0, 1]))
        >>> found.row, found.value, found.as_names().names
        (2, 'one', ('1', 'one'))
    """
    numbers = [to_number(text) for text in texts]
    if None not in numbers:
        values = np.array([*numbers, np.nan])[codes]
        return Cells("none" if np.isnan(values).all() else "number", values)
    if any(number is not None and not np.isnan(number) for number in numbers):
        bad = np.array([*(number is None for number in numbers), False])
        row = int(np.argmax(bad[codes]))
        return Mixture(row, texts[int(codes[row])], lambda: named(texts, codes))
    present = [text.strip() for text, number in zip(texts, numbers, strict=True) if number is None]
    if {text.lower() for text in present} <= set(_TRUTH):
        written = {text.lower(): text for text in present}
        values = [_TRUTH.get(text.strip().lower(), np.nan) for text in texts]
        return Cells("boolean", np.array([*values, np.nan])[codes], tuple(written.get(one, one) for one in _TRUTH))
    times = parse_times(present)
    if times is None:
        return named(texts, codes)
    values = np.full(len(texts) + 1, np.nan)
    values[:-1][[number is None for number in numbers]] = times
    return Cells("time", values[codes])


def as_names(cells: Cells) -> Cells:
    """Return a column of names: text as it is, numbers in one spelling, booleans as they are written.

    Example:
        >>> as_names(Cells("number", np.array([2.0, 1.5, np.nan])))
        Cells(kind='text', values=array([ 1,  0, -1], dtype=int32), names=('1.5', '2'))
    """
    if cells.kind in ("text", "none"):
        return cells
    values, codes = np.unique(cells.values, return_inverse=True)
    if cells.kind == "boolean":
        return named(["" if np.isnan(value) else cells.names[int(value)] for value in values.tolist()], codes)
    texts = [number_name(value) if np.isfinite(value) else str(value) for value in values.tolist()]
    return named(["" if text == "nan" else text for text in texts], codes)


def stacked(parts: Sequence[Cells]) -> Cells | Mixture:
    """Put columns of several tables one below the other.

    Returns:
        One column, or a `Mixture` where their kinds differ.

    Example:
        >>> stacked([Cells("none", np.array([np.nan])), Cells("number", np.array([2.0]))]).values
        array([nan,  2.])
    """
    found = [part for part in parts if part.kind != "none"]
    if len(parts) == 1 or not found:
        return Cells("none", np.concatenate([part.values for part in parts])) if len(parts) > 1 else parts[0]
    kind, start = found[0].kind, 0
    for part in parts:
        if part.kind not in (kind, "none"):
            row = int(np.argmin(part.missing))
            names = as_names(part)
            return Mixture(start + row, names.names[names.values[row]], lambda: stacked_names(parts))
        start += len(part.values)
    if kind != "text":
        return found[0]._replace(values=np.concatenate([part.values for part in parts]))
    return stacked_names(parts)


def stacked_names(parts: Sequence[Cells]) -> Cells:
    """Put columns one below the other as names."""
    found = [as_names(part) for part in parts]
    texts = sorted({name for part in found for name in part.names})
    position = {name: index for index, name in enumerate(texts)}
    codes = [
        np.array([*(position[name] for name in part.names), -1])[part.values]
        if part.kind == "text"
        else np.full(len(part.values), -1)
        for part in found
    ]
    return named(texts, np.concatenate(codes))


def shown_name(name: str) -> str:
    """Return a column's name for a message: as it is where it is plain, quoted where it is not.

    Example:
        >>> shown_name("size"), shown_name("a b")
        ('size', "'a b'")
    """
    return name if name.isidentifier() and name.isprintable() else shown(name)


def not_a_number(place: str, name: str, value: Any) -> UserError:
    """Return the error for a value that is no finite number, with what to do.

    Example:
        >>> str(not_a_number("a.csv, line 3", "size", "0,5"))
        "a.csv, line 3: size is '0,5', expected a finite number: write it with a decimal point and without commas..."
    """
    hint = written_otherwise(value) if isinstance(value, str) else ""
    if isinstance(value, str) and not hint:
        hint = "; columns of names must be given as categorical or ordinal"
    return UserError(f"{place}: {shown_name(name)} is {shown(value)}, expected a finite number{hint}")


def written_otherwise(text: str) -> str:
    """Return what to do about a number in a notation that is not read, "" for numbers that are and other text.

    Example:
        >>> written_otherwise("5%"), written_otherwise("red")
        (': write it without other signs', '')
    """
    text = text.strip()
    if to_number(text) is not None:
        return ""
    if to_number(text.replace(",", ".", 1)) is not None or to_number(text.replace(",", "")) is not None:
        return ": write it with a decimal point and without commas between thousands"
    return ": write it without other signs" if to_number(text.replace("_", "").strip("%$€£ ")) is not None else ""
