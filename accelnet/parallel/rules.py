"""Sharding rules: which axis of the mesh cuts which axis of a parameter."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from accelnet.errors import UserError

Rule = tuple[str, PartitionSpec]
Tree = Any

# A parameter below this is not worth a collective of its own: 16 KiB of float32.
MIN_FSDP_SIZE = 4096


class ModelRule(NamedTuple):
    """A rule that a model brings along. A user's rule comes before it, and it passes over arrays of too few axes.

    Attributes:
        pattern: Regular expression for a parameter's whole path.
        spec: Mesh axes of the array's axes.
    """

    pattern: str
    spec: PartitionSpec


@dataclass(frozen=True)
class Placement:
    """Where an array lies.

    Attributes:
        spec: Mesh axis of each of its axes.
        reason: Reason, in a few words.
    """

    spec: PartitionSpec
    reason: str


def place(path: str, shape: tuple[int, ...], axes: Mapping[str, int], rules: Sequence[Rule] = ()) -> Placement:
    """Decide where one array lies.

    The first rule that matches names axes; those that the mesh lacks, or by which the array does not divide, are left
    out. On a mesh with "fsdp", arrays of at least 4,096 numbers are then cut along their largest axis that divides.

    Args:
        path: path of the array, joined by dots.
        shape: shape of the array.
        axes: sizes of the mesh's axes.
        rules: pairs of a regular expression for the whole path and a `PartitionSpec`.

    Returns:
        The `Placement`.

    Raises:
        UserError: if a rule has more axes than an array that it matches.

    Example:
        >>> rules = [ModelRule("layers.0.linear.kernel", PartitionSpec(None, "model"))]
        >>> tuple(place("layers.0.linear.kernel", (64, 32), {"data": 2, "model": 4}, rules).spec)
        (None, 'model')
        >>> place("head.bias", (10,), {"model": 4}).reason
        'no rule names it'
    """
    spec, reason = _by_rule(path, shape, axes, rules)
    size = axes.get("fsdp", 1)
    if size > 1 and "fsdp" not in spec:
        free = [i for i, length in enumerate(shape) if spec[i] is None and length % size == 0]
        if math.prod(shape) < MIN_FSDP_SIZE:
            reason = reason if any(spec) else f"{math.prod(shape):,} numbers, fsdp cuts from {MIN_FSDP_SIZE:,} on"
        elif not free:
            reason += f"; no free axis divides into {size} parts of fsdp"
        else:
            reason = f"{reason}; its largest free axis on fsdp" if any(spec) else "its largest axis on fsdp"
            spec[max(free, key=lambda i: shape[i])] = "fsdp"
    while spec and spec[-1] is None:
        spec.pop()
    return Placement(PartitionSpec(*spec), reason)


def _by_rule(
    path: str, shape: tuple[int, ...], axes: Mapping[str, int], rules: Sequence[Rule]
) -> tuple[list[Any], str]:
    nothing: list[Any] = [None] * len(shape)
    for given in rules:
        pattern, spec = given
        if re.fullmatch(pattern, path) is None:
            continue
        if len(spec) > len(shape):
            if isinstance(given, ModelRule):
                continue
            raise UserError(
                f"sharding rule {pattern!r} cuts {len(spec)} axes, and {path} has shape {list(shape)}: give it "
                f"at most {len(shape)}"
            )
        placed, reasons = list(nothing), []
        for i, names in enumerate(spec):
            kept = tuple(name for name in _names(names) if axes.get(name, 1) > 1)
            parts = math.prod(axes[name] for name in kept)
            if kept and shape[i] % parts:
                reasons.append(f"{shape[i]} does not divide into {parts} parts of {', '.join(kept)}")
            elif kept:
                placed[i] = kept[0] if len(kept) == 1 else kept
        if not any(_names(names) for names in spec):
            return placed, f"rule {pattern}"
        if any(placed) or reasons:
            rule = "the model's rule" if isinstance(given, ModelRule) else f"rule {pattern}"
            return placed, "; ".join([rule] * any(placed) + reasons)
        return placed, "its rule names no axis of this mesh"
    return nothing, "no rule names it"


def _names(axis: Any) -> tuple[str, ...]:
    return () if axis is None else axis if isinstance(axis, tuple) else (axis,)


def path_names(tree: Tree) -> list[tuple[str, Any]]:
    """List a tree's leaves with their paths, joined by dots.

    Example:
        >>> path_names({"head": {"bias": 1}})
        [('head.bias', 1)]
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def followers(tree: Tree, params: Tree, placed: Tree) -> Tree:
    """Place an optimizer's state: what belongs to a parameter lies where the parameter does.

    Args:
        tree: arrays or shapes. A leaf belongs to a parameter if its path ends with the parameter's and their
            shapes agree.
        params: the parameters, arrays or shapes.
        placed: their `Placement`s.

    Returns:
        A tree like `tree` of `Placement`s.

    Example:
        >>> shape = jax.ShapeDtypeStruct((8, 8), "float32")
        >>> placed = {"w": Placement(PartitionSpec("fsdp"), "")}
        >>> tuple(followers({"mu": {"w": shape}}, {"w": shape}, placed)["mu"]["w"].spec)
        ('fsdp',)
    """
    known = {
        path: (leaf.shape, where)
        for (path, leaf), where in zip(path_names(params), jax.tree.leaves(placed), strict=True)
    }

    def follow(path: str, leaf: Any) -> Placement:
        words = path.split(".")
        for start in range(len(words)):
            shape, where = known.get(".".join(words[start:]), (None, None))
            if where is not None and shape == leaf.shape:
                return where
        return Placement(PartitionSpec(), "belongs to no parameter of its shape")

    return jax.tree.unflatten(jax.tree.structure(tree), [follow(path, leaf) for path, leaf in path_names(tree)])


def check_rules(rules: Sequence[Rule], paths: Sequence[str], axes: Mapping[str, int], known: Sequence[str]) -> None:
    """Refuse a user's rule that matches none of the paths, and an axis that neither a rule names nor `known` holds."""
    for given in rules:
        if isinstance(given, ModelRule):
            continue
        pattern, _ = given
        try:
            matches = [path for path in paths if re.fullmatch(pattern, path)]
        except re.error as error:
            raise UserError(f"sharding rule {pattern!r} is no regular expression: {error}") from None
        if not matches:
            raise UserError(
                f"sharding rule {pattern!r} matches none of the {len(paths)} parameters: {', '.join(paths[:8])}"
                f"{', …' if len(paths) > 8 else ''}. A rule has to match a whole path"
            )
    used = {name for _, spec in rules for names in spec for name in _names(names)}
    if unknown := [name for name in axes if name not in used and name not in known]:
        raise UserError(
            f"the mesh has an axis {unknown[0]!r} that no sharding rule names: expected {', '.join(known)}, or one of "
            "Experiment(sharding_rules=...)"
        )
