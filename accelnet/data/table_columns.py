"""Which columns of a table are predicted from, and as what."""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from accelnet import arguments
from accelnet.characters import visible
from accelnet.data.columns import NAMED, Column
from accelnet.data.tables import ReadableTable
from accelnet.errors import UserError
from accelnet.wording import listed, shown

# What is predicted from may tell the class of a row or its time, too.
_ALSO_FEATURES = ("stratify", "time")


class Roles(NamedTuple):
    """Say what each column is for.

    Attributes:
        target: Column to predict.
        features: Columns to predict it from, in their order.
        categorical: Those of them that hold names.
        ordinal: Those of them that hold names with an order, and these.
        others: Columns of weights, and those that divide the rows, by what they are for.
        known: Descriptions of the features as an earlier run had them; None without one.
    """

    target: str
    features: tuple[str, ...]
    categorical: tuple[str, ...]
    ordinal: Mapping[str, tuple[str, ...]]
    others: Mapping[str, str]
    known: Sequence[Column] | None

    def names_in(self, task: str | None) -> set[str]:
        """Return the columns that hold names whatever they look like."""
        found = {*self.categorical, *self.ordinal} | ({self.target} if task == "classes" else set())
        found |= {column["name"] for column in self.known or () if column["kind"] in NAMED}
        return found | ({self.others["split"]} if "split" in self.others else set())


def choose_columns(
    source: ReadableTable,
    target: str,
    features: Sequence[str] | None,
    categorical: Sequence[str],
    ordinal: Mapping[str, Sequence[str]] | None,
    others: Mapping[str, str | None],
    known: Sequence[Column] | None,
) -> Roles:
    """Check the columns that a user names, and choose those that they do not.

    Args:
        source: The table.
        target: Column to predict.
        features: Columns to predict it from; None for all that are for nothing else, without an index.
        categorical: Those of them that hold names.
        ordinal: Those of them that hold names with an order, and these.
        others: Columns for something else, by what they are for; None for none.
        known: Descriptions of the features as an earlier run had them; None without one.

    Raises:
        UserError: if a column is not there, or is named for two things.

    Example:
        >>> from accelnet.data.table_source import open_source
        >>> source = open_source({"size": [1], "colour": ["red"], "price": [2]}, "source")
        >>> choose_columns(source, "price", None, [], None, {}, None).features
        ('size', 'colour')
    """
    target = arguments.word("target", target)
    used = {role: arguments.word(role, name) for role, name in others.items() if name is not None}
    ordinal = {} if ordinal is None else ordinal
    if not isinstance(ordinal, Mapping):
        raise UserError(f"ordinal is {shown(ordinal)}, expected a dict of columns and their names in order")
    orders = {}
    for column, names in ordinal.items():
        where = f"ordinal[{column!r}]"
        orders[column] = arguments.names(where, [one.strip() for one in arguments.names(where, names)])
    categories = arguments.names("categorical", categorical)
    if features is not None:
        chosen = arguments.names("features", features)
    elif known:
        chosen = tuple(column["name"] for column in known)
    else:
        chosen = _default_features(source, {target, *(used[role] for role in used if role != "stratify")})
    source.check((target, *chosen, *categories, *orders, *used.values()))
    for column in (*categories, *orders):
        if column not in chosen:
            raise UserError(
                f"column {shown(column)} is named categorical or ordinal, but is not among the features "
                f"{listed(chosen)}"
            )
        if column in categories and column in orders:
            raise UserError(f"column {shown(column)} is named categorical and ordinal: choose one")
    apart = {"target": target, **{role: column for role, column in used.items() if role not in _ALSO_FEATURES}}
    for role, column in apart.items():
        if column in chosen:
            raise UserError(f"the {role} {shown(column)} is also among the features: leave it out of them")
        if list(apart.values()).count(column) > 1:
            raise UserError(f"column {shown(column)} is named for two of {listed(apart)}: choose one")
    if not chosen:
        raise UserError(f"{source.label}: there is no column to predict {shown(target)} from, expected one at least")
    if known is not None:
        _check_known(chosen, categories, orders, known)
    return Roles(target, chosen, categories, orders, used, known)


def _default_features(source: ReadableTable, used: set[str]) -> tuple[str, ...]:
    others = [column for column in source.names if column not in used]
    index = [column for column in others if column in source.nameless]
    if index:
        warnings.warn(
            visible(
                f"{source.label}: {listed(index)} left out: columns without a name, or the index of a frame of "
                "pandas; to predict from them, name them in features"
            ),
            stacklevel=4,  # the caller of table
        )
    return tuple(column for column in others if column not in index)


def _check_known(
    chosen: Sequence[str], categories: Sequence[str], orders: Mapping[str, tuple[str, ...]], known: Sequence[Column]
) -> None:
    """Raise UserError if what is asked for contradicts the columns of an earlier run."""
    kinds = {column["name"]: column["kind"] for column in known}
    wanted = dict.fromkeys(categories, "categories") | dict.fromkeys(orders, "positions")
    if list(chosen) != list(kinds) or any(kinds[column] != kind for column, kind in wanted.items()):
        raise UserError(
            f"features, categorical or ordinal differ from the columns of the values to take over, {listed(kinds)}: "
            f"leave these arguments out"
        )
    for column in known:
        if column["name"] in orders and tuple(column["names"]) != orders[column["name"]]:
            raise UserError(
                f"ordinal[{column['name']!r}] differs from the names to take over, "
                f"{listed(column['names'])}: leave it out"
            )
