"""JSON values with one part damaged, in every way that a reader must bear."""

import copy

from accelnet.errors import UserError

DAMAGES = (None, 5, -1, True, "x", [], {}, [[1]], {"a": {"b": 1}}, 1e308, 2**70, "\x1b]0;owned\x07")
_GONE = object()


def read_or_message(read):
    """Return what a reader gives and no message, or nothing and its one line."""
    try:
        return read(), None
    except UserError as error:
        message = str(error)
    assert message.isprintable() and message
    return None, message


def damaged(value):
    """Yield a JSON value with each of its parts, the whole included, replaced by each damage or taken away."""
    for place in _places(value):
        for damage in (*DAMAGES, _GONE) if place else DAMAGES:
            yield _replaced(value, place, damage)


def _places(value, place=()):
    yield place
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value[:2]):
            yield from _places(item, (*place, index))


def _replaced(value, place, damage):
    if not place:
        return damage
    value = copy.deepcopy(value)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    if damage is _GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = damage
    return value
