"""Which parts of a user's rows or batches are inputs, targets and weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelnet.errors import UserError
from accelnet.wording import did_you_mean, listed, shown

# A name or a position; or several, which become a dict.
Field = str | int | Sequence[str] | Mapping[str, str | int]


def fields_of(example: Any, inputs: Any, targets: Any, weights: Any) -> dict[str, Field]:
    """Return the fields by name of the array, as given, or as the kind of a row suggests.

    Args:
        example: Row or batch: a dict, or a tuple or list.
        inputs: Field of the inputs. None: "inputs" of a dict, the first part of a tuple.
        targets: Field of the targets. None: "targets" of a dict, the second part of a tuple.
        weights: Field of the weights. None: there are none.

    Raises:
        UserError: if a field is of another kind.

    Example:
        >>> fields_of((1, 2), None, None, None), fields_of({}, ["a", "b"], "c", None)
        ({'inputs': 0, 'targets': 1}, {'inputs': ['a', 'b'], 'targets': 'c'})
    """
    named = hasattr(example, "keys")
    fields: dict[str, Field] = {}
    for what, given, default in (
        ("inputs", inputs, "inputs" if named else 0),
        ("targets", targets, "targets" if named else 1),
        ("weights", weights, None),
    ):
        field = default if given is None else given
        if field is not None:
            _check_field(what, field)
            fields[what] = field
    return fields


def pick(item: Any, field: Field, where: str, name: str) -> Any:
    """Take a field out of a row or a batch.

    Args:
        item: Row or batch: a dict, or a tuple or list.
        field: As of `fields_of`.
        where: Place of the row in messages.
        name: Name of the array in messages.

    Returns:
        The value; a dict of values where the field names several.

    Raises:
        UserError: if it is not there.

    Example:
        >>> pick({"image": 1, "label": 2}, {"x": "image"}, "row 0", "inputs")
        {'x': 1}
        >>> pick({"image": 1, "label": 2}, "labels", "row 0", "targets")
        Traceback (most recent call last):
        accelnet.errors.UserError: row 0 is a dict with 'image', 'label', and targets is to be its field 'labels'; did
        you mean 'label'?
    """
    if isinstance(field, Mapping):
        return {key: pick(item, one, where, f"{name}[{key!r}]") for key, one in field.items()}
    if not isinstance(field, str | int):
        return {key: pick(item, key, where, f"{name}[{key!r}]") for key in field}
    try:
        if isinstance(field, int) and not isinstance(item, list | tuple):
            raise KeyError
        return item[field]  # pyright: ignore[reportArgumentType, reportCallIssue], a list refuses names by an error
    except (KeyError, IndexError, TypeError, ValueError):
        hint = ""
        if not isinstance(item, list | tuple) and hasattr(item, "keys"):
            names = [str(key) for key in item.keys()]  # noqa: SIM118, a row of strangers iterates otherwise
            came, hint = f"a dict with {listed(names)}", did_you_mean(field, names)
        else:
            came = f"a {type(item).__name__} of {len(item)}" if isinstance(item, list | tuple) else shown(item)
    raise UserError(f"{where} is {came}, and {name} is to be its field {field!r}{hint}")


def _check_field(what: str, field: Any) -> None:
    several = (
        list(field.values()) if isinstance(field, Mapping) else field if isinstance(field, list | tuple) else [field]
    )
    names = list(field) if isinstance(field, Mapping) else several if isinstance(field, list | tuple) else []
    known = all(isinstance(part, str | int) and not isinstance(part, bool) for part in several)
    if not several or not known or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{what} is {shown(field)}, expected the name or the position of a field, a list of names, or a dict of "
            "argument: field"
        )
