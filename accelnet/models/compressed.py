"""A model with smaller numbers and other layers: what compression makes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from flax import linen, nnx

from accelnet.errors import UserError, user_code
from accelnet.models.built import Construction, construction, numbers_in, other_numbers, with_numbers
from accelnet.models.pure import PureModel
from accelnet.models.quantized import quantized
from accelnet.models.replacing import Change, changed
from accelnet.models.rounded import rounded
from accelnet.models.split import split
from accelnet.models.split_recurrence import RECURRENT, split_recurrent


@dataclass(frozen=True)
class Compression:
    """Say what of a model is smaller.

    Attributes:
        widths: Numbers of the outermost constructor by their paths among its arguments: {"channels.0": 48}.
        ranks: Ranks of layers by their paths: {"layers.0.linear": 16}; of recurrent layers that of the input kernel,
            and that of the recurrent kernel by its own path: {"layers.0.forward.recurrent_kernel": 16}.
        bits: Bits of layers' weights by their paths: {"layers.0.linear": 8}.
        rounded: Bits that layers' weights, which are floats, are rounded to while they are trained, by their paths.

    Example:
        >>> one = Compression(widths={"channels.0": 48})
        >>> Compression.from_json(one.as_json()) == one, one | Compression(bits={"head": 8})
        (True, Compression(widths={'channels.0': 48}, ranks={}, bits={'head': 8}, rounded={}))
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    bits: Mapping[str, int] = field(default_factory=dict)
    rounded: Mapping[str, int] = field(default_factory=dict)

    def __or__(self, other: "Compression") -> "Compression":
        """Return both; where both name a thing, the other's number."""
        names = [one.name for one in fields(self)]
        return Compression(**{name: {**getattr(self, name), **getattr(other, name)} for name in names})

    def as_json(self) -> dict[str, dict[str, int]]:
        """Return it as JSON values."""
        return {one.name: dict(getattr(self, one.name)) for one in fields(self)}

    @classmethod
    def from_json(cls, values: Any) -> "Compression":
        """Make it of JSON values.

        Raises:
            UserError: if they are none of a compression.
        """
        names = {one.name for one in fields(cls)}
        whole = isinstance(values, Mapping) and set(values) <= names
        if not whole or not all(_is_numbers(part) for part in values.values()):
            raise UserError(f"a compression is {values!r}, expected {', '.join(sorted(names))}, each numbers by path")
        return cls(**{name: dict(part) for name, part in values.items()})


def _is_numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(type(n) is int and n >= 1 for n in value.values())


@dataclass(frozen=True, eq=False)
class Compressed:
    """Be a model like any other: another one, made with smaller numbers and then given other layers.

    Args:
        model: Callable `model(rngs=nnx.Rngs) -> nnx.Module`, a Linen module, or a compressed model.
        compression: What of it is smaller.

    Raises:
        UserError: if the model is an instance, which no constructor can make again; if no module of its own is seen to
            be constructed; or if it has no such number or layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from accelnet.models import MLP
        >>> small = Compressed(lambda rngs: MLP(4, (16,), 2, rngs=rngs), Compression({"hidden_features.0": 8}))
        >>> small(rngs=nnx.Rngs(0)).head.in_features
        8
    """

    model: Any
    compression: Compression

    def __post_init__(self) -> None:
        if isinstance(self.model, Compressed):
            inner = self.model
            object.__setattr__(self, "compression", inner.compression | self.compression)
            object.__setattr__(self, "model", inner.model)
            self.__dict__["made"] = inner.made  # a second look would see the same
        known = numbers_in(self.made.arguments)
        if unknown := sorted(set(self.compression.widths) - set(known)):
            raise UserError(
                f"the model has no number {', '.join(unknown)} to be made with: its constructor, "
                f"{self.made.kind.__name__}, has {', '.join(known) or 'none'}"
            )

    @cached_property
    def made(self) -> Construction:
        """The class and the arguments by which the original's outermost module is made."""
        return made_by(self.model)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Whole numbers that the outermost module is made with, by their paths among its constructor's arguments."""
        return numbers_in(self.made.arguments) | dict(self.compression.widths)

    @property
    def is_linen(self) -> bool:
        """Whether the model is a Linen module."""
        return isinstance(self.model, linen.Module)

    @property
    def changes(self) -> list[Change]:
        """The layers that take the places of others, in the order of making."""

        def low(make: Any, rank: int) -> Callable[[Any, nnx.Rngs], Any]:
            return lambda layer, rngs: make(layer, rank, rngs=rngs)

        def of(make: Any, bits: int) -> Callable[[Any, nnx.Rngs], Any]:
            return lambda layer, _: make(layer, bits)

        ranks, one = self.compression.ranks, self.compression
        # The layer whose input kernel is split takes over what its recurrent kernel is.
        found = [(path.removesuffix(RECURRENT), low(split_recurrent, ranks[path])) for path in ranks if _is_state(path)]
        found += [(path, low(split, rank)) for path, rank in ranks.items() if not _is_state(path)]
        found += [(path, of(rounded, bits)) for path, bits in one.rounded.items()]
        return found + [(path, of(quantized, bits)) for path, bits in one.bits.items()]

    def linen_module(self) -> linen.Module:
        """Return the Linen module with its numbers; `changes` are made as it is called."""
        return with_numbers(self.model, self.compression.widths)

    def __call__(self, *, rngs: nnx.Rngs) -> nnx.Module:
        """Make the module."""
        with user_code("the model's constructor"), other_numbers(self.made.turn, self.compression.widths):
            module = self.model(rngs=rngs)
        return changed(module, self.changes, rngs)


def made_by(model: Any) -> Construction:
    """Return how the outermost module of a model is made.

    Raises:
        UserError: if no constructor can make it again.

    Example:
        >>> made_by(lambda rngs: nnx.Linear(3, 2, rngs=rngs)).arguments["out_features"]
        2
    """
    if isinstance(model, linen.Module) and model.scope is None:
        return Construction(type(model), {name: getattr(model, name) for name in _fields(model)}, 0)
    if isinstance(model, nnx.Module | PureModel | linen.Module) or not callable(model):
        raise UserError(
            f"the model is an instance, of {type(model).__name__}, and only what makes a module can make a smaller "
            "one: give model=lambda rngs: MyModule(..., rngs=rngs), and the instance's weights as initial="
        )
    with user_code("the model's constructor"):
        found = construction(lambda: model(rngs=nnx.Rngs(0)))
    if found is None:
        raise UserError(
            "the model's function returns a module that it does not construct (it was made before, or within a "
            "transformation): construct it there, lambda rngs: MyModule(..., rngs=rngs)"
        )
    return found


def _is_state(path: str) -> bool:
    return path.endswith(RECURRENT)


def _fields(module: linen.Module) -> list[str]:
    return [one for one in module.__dataclass_fields__ if one not in ("parent", "name") and hasattr(module, one)]
