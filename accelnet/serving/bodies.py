"""From the body of a request to encoded rows: JSON, pictures, .npy files, and forms with files of these.

Nothing that a client sends is ever taken for the path of a file.
"""

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from accelnet.artifact.model import Model
from accelnet.artifact.raw_rows import picture_form, takes_text
from accelnet.artifact.schema import ArraySchema, encode, held_of
from accelnet.data.pictures import PictureForm, decode_picture
from accelnet.errors import UserError
from accelnet.serving.limits import Refused, refusing
from accelnet.serving.tables import TableRows
from accelnet.wording import listed, shown

_NPY = b"\x93NUMPY"
_JSON = b'[{"-0123456789tfn \n\r\t'  # one of these begins a value
_MOST_PIXELS = 1 << 26  # of a picture before it is scaled: 200 MB as it is decoded


class RequestRows(NamedTuple):
    """Hold the rows of a request.

    Attributes:
        inputs: Arrays [B, ...] as `schema.encode` makes them; of a table in JSON its `TableRows`.
        alone: Whether the request was one row, not a list of rows.
    """

    inputs: Any
    alone: bool


class Bodies:
    """Read bodies of requests as a model takes them.

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        self.schema = model.schema
        self._held = held_of(self.schema["inputs"])
        self._form = picture_form(self.schema)
        self._columns = [column["name"] for column in self.schema["fitted"].get("columns", ())]
        self._text = takes_text(self.schema)

    def read(self, body: bytes, content_type: str) -> RequestRows:
        """Read the rows of a body.

        Args:
            body: The body.
            content_type: What the client says that it is. A .npy file and a picture are known by themselves.

        Raises:
            Refused: with 400 if it cannot be read, and with 422 if it is not what the model takes.
        """
        with refusing():
            if content_type.startswith("multipart/form-data"):
                return self._of_files(parts_of(body, content_type))
            if body.startswith(_NPY):
                return self._of_array(read_npy(body))
            if content_type.startswith("image/") or (self._form is not None and body[:1] not in _JSON):
                return RequestRows(self._encoded([self._picture(body, "the picture")]), True)
            return self._of_json(parse(body))

    def _of_json(self, value: Any) -> RequestRows:
        if self._columns:
            rows, alone = _listed(value, dict if isinstance(_first(value), Mapping) else list)
            return RequestRows(TableRows([self._by_column(row, index) for index, row in enumerate(rows)]), alone)
        if isinstance(_first(value), str) and (self._form is not None or self._text):
            rows, alone = _listed(value, str)
            if self._text:
                return RequestRows(self._encoded(rows), alone)
            pictures = [self._picture(_decoded(row, index), f"picture {index}") for index, row in enumerate(rows)]
            return RequestRows(self._encoded(pictures), alone)
        if isinstance(self._held, Mapping):
            rows, alone = _listed(value, dict)
            return RequestRows(self._encoded(self._stacked(rows)), alone)
        return self._of_array(_array(value, "inputs"))

    def _of_array(self, array: np.ndarray) -> RequestRows:
        if not isinstance(self._held, ArraySchema):
            raise UserError(f"inputs are one array, expected {listed(self._held)}: send these by name, in a form")
        alone = array.ndim == self._held.ndim - 1
        return RequestRows(self._encoded(array[None] if alone else array), alone)

    def _of_files(self, parts: Sequence[tuple[str, bytes]]) -> RequestRows:
        if not parts:
            raise UserError("the form is empty, expected a picture or an .npy file")
        if all(content.startswith(_NPY) for _, content in parts):
            arrays = {name: read_npy(content) for name, content in parts}
            return self._of_array(*arrays.values()) if len(arrays) == 1 else RequestRows(self._encoded(arrays), False)
        pictures = [self._picture(content, f"picture {index}") for index, (_, content) in enumerate(parts)]
        return RequestRows(self._encoded(pictures), len(pictures) == 1)

    def _picture(self, content: bytes, where: str) -> np.ndarray:
        if self._form is None:
            raise UserError(f"{where} is no input of this model: /docs tells what it takes")
        form: PictureForm = self._form
        return decode_picture(content, form, where, most_pixels=_MOST_PIXELS)

    def _encoded(self, raw: Any) -> Any:
        if self._form is not None and isinstance(raw, list):
            raw = np.stack(raw)
        return encode(raw, self.schema)

    def _by_column(self, row: Any, index: int) -> Mapping[str, Any]:
        """Return a row by column; the values of a list are in the order of the columns."""
        if not isinstance(row, list):
            values = row
        elif len(row) == len(self._columns):
            values = dict(zip(self._columns, row, strict=True))
        else:
            names = listed(self._columns)
            raise UserError(f"row {index} has {len(row)} values, expected {len(self._columns)}: {names}")
        for name, value in values.items():
            if not isinstance(value, str | int | float | None):
                raise UserError(f"row {index}: column {shown(name)} is {shown(value)}, expected a number or text")
        return values

    def _stacked(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return rows as one dict of arrays; sequences are as long as the longest, their lengths as they were."""
        found = [{name: _array(one, name) for name, one in row.items()} for row in rows]
        names = list(self._held)
        if names != [*dict.fromkeys((*names, *found[0]))] or any(set(row) - set(names) for row in found):
            raise UserError(f"a row has {listed(found[0])}, expected {listed(names)}")
        if "lengths" in names:
            found = [_with_length(row, names) for row in found]
        for index, row in enumerate(found):
            if missing := [name for name in names if name not in row]:
                raise UserError(f"row {index} lacks {listed(missing)}")
        return {name: _joined([row[name] for row in found], name, "lengths" in names) for name in names}


def parse(body: bytes) -> Any:
    """Parse JSON.

    Raises:
        Refused: with 400 if it is none.
    """
    import orjson

    try:
        return orjson.loads(body)
    except ValueError as error:
        raise Refused(400, f"the body is no JSON: {error}") from None


def read_npy(content: bytes) -> np.ndarray:
    """Read the array of an .npy file, without asking for more memory than the file has.

    Raises:
        UserError: if it is damaged, cut short, or holds Python's objects.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if dtype.hasobject:
            raise ValueError("it holds Python's objects")
        array = np.frombuffer(content, dtype, offset=stream.tell())
        return array.reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # noqa: BLE001, whatever a damaged header makes NumPy, and Python's parser, do
        raise UserError(f"the .npy file cannot be read ({error}): write it again with numpy.save") from None


def parts_of(body: bytes, content_type: str) -> list[tuple[str, bytes]]:
    r"""Return the parts of a form, by name, in their order.

    Raises:
        Refused: with 400 if it is none.

    Example:
        >>> body = b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
        >>> parts_of(body, "multipart/form-data; boundary=x")
        [('a', b'1')]
    """
    boundary = _parameter(content_type, "boundary")
    first, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1"))
    if not boundary or not parts or first or not parts[-1].startswith(b"--"):
        raise Refused(400, "the form is damaged or cut short: its boundaries are not all there")
    found = []
    for part in parts[:-1]:
        head, gap, content = part.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        named = [line for line in lines if line.lower().startswith("content-disposition")]
        if not gap or not named:
            raise Refused(400, "the form is damaged: one of its parts has no name")
        found.append((_parameter(named[0], "name"), content))
    return found


def _parameter(text: str, name: str) -> str:
    """Return a parameter of a header, without its quotes."""
    pairs = (one.strip().partition("=") for one in text.split(";"))
    return next((value.strip('"') for key, _, value in pairs if key.lower() == name), "")


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _listed(value: Any, kind: type) -> tuple[list[Any], bool]:
    """Return rows of one kind as a list, and whether there was but one row, not a list of them."""
    words = {
        dict: "an object, or a list of objects",
        list: "a list of values, or a list of such",
        str: "text or a list",
    }
    alone = isinstance(value, kind) and not (kind is list and isinstance(_first(value), list))
    rows = [value] if alone else value
    if not isinstance(rows, list) or not rows:
        raise UserError(f"the body is {shown(value)}, expected {words[kind]}")
    for index, row in enumerate(rows):
        if not isinstance(row, kind):
            raise UserError(f"row {index} is {shown(row)}, expected {words[kind]}")
    return rows, alone


def _array(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError):
        raise UserError(f"{name} is no array (rows of unequal lengths?): send rows of one length") from None


def _decoded(text: str, index: int) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except binascii.Error:
        raise UserError(f"picture {index} is text that is no base64: send the bytes of a picture in base64") from None


def _with_length(row: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Add the length of a row that has none: all its steps count."""
    sizes = [row[name].shape[0] for name in names if name in row and row[name].ndim]
    return {"lengths": np.array(sizes[0]), **row} if sizes else row


def _joined(arrays: list[np.ndarray], name: str, pads: bool) -> np.ndarray:
    if pads and arrays[0].ndim and len({len(one) for one in arrays}) > 1:
        longest = max(map(len, arrays))
        arrays = [np.pad(one, [(0, longest - len(one)), *[(0, 0)] * (one.ndim - 1)]) for one in arrays if one.ndim]
    try:
        return np.stack(arrays)
    except ValueError:
        raise UserError(f"{name} has rows of unequal shapes, expected one") from None
