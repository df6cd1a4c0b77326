"""Declare an update rule once: its operands become part of the state, and its name part of the list."""

import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
import optax

from accelnet.arguments import integer
from accelnet.errors import UserError
from accelnet.optim import schedules
from accelnet.optim.ranges import NOT_NEGATIVE, Range, check_number
from accelnet.optim.schedules import Schedule, is_of_progress
from accelnet.wording import shown

P = ParamSpec("P")

_MEANINGS = {
    "learning_rate": "peak of the rate.",
    "schedule": "function from the progress of the run, or from the step, to a factor of the rate.",
    "decay_mask": "parameters that weight decay applies to, as a pytree of bools or a function of the params.",
}
_EXAMPLE = """\
Example:
    >>> import jax.numpy as jnp
    >>> params = jnp.array([1.0])
    >>> optimizer = {name}(0.1)
    >>> updates, state = optimizer.update(jnp.array([2.0]), optimizer.init(params), params)
    >>> bool(updates[0] < 0.0)
    True

"""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScheduleState:
    """State of a schedule, and what is known of the operands beside it.

    Attributes:
        count: Updates done, int32 scalar.
        ranges: Ranges of the operands, by name.
    """

    count: jax.Array
    ranges: tuple[tuple[str, Range], ...] = field(metadata={"static": True})


# Progress of the update that is being traced: some of Optax's wrappers, as lookahead and sam, do not pass it on.
PROGRESS: ContextVar[Any] = ContextVar("progress", default=None)

# By name; a module that declares one adds it.
_declared: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {}
algorithms: Mapping[str, Callable[..., optax.GradientTransformationExtraArgs]] = MappingProxyType(_declared)


def algorithm(
    *, fixed: Mapping[str, str] = MappingProxyType({}), **operands: str
) -> Callable[[Callable[P, optax.GradientTransformation]], Callable[P, optax.GradientTransformationExtraArgs]]:
    """Make an algorithm of an update rule.

    The rule is a function of `learning_rate`, `schedule` and what else it needs, with defaults. The algorithm takes
    the same arguments, which its docstring explains. At each update the rule is called with the operands as float32
    scalars and with `schedule` as this update's factor, so that the rate is `learning_rate * schedule`. Operands are
    part of the state: they can be read and changed (`hyperparams`, `with_hyperparams`), and can differ between the
    members of a population. Moments and updates are float32 (or wider, where the parameters are): a bfloat16 second
    moment with b2 = 0.999 never changes. The algorithm is listed in `algorithms` under the rule's name.

    Args:
        fixed: ranges of arguments that are checked and stay plain Python numbers.
        **operands: ranges of operands, such as `momentum="[0, 1)"`. That of `learning_rate` is declared already.

    Returns:
        The decorator of the rule.

    Raises:
        UserError: a declared name is no argument of the rule, a range cannot be read, or another module has declared
            an algorithm of that name.

    Example:
        >>> @algorithm(gamma="[0, 2)")
        ... def scaled_sign(learning_rate, *, schedule=CONSTANT, gamma=1.0):
        ...     return optax.chain(optax.scale_by_sign(), optax.scale(-learning_rate * schedule * gamma))
        >>> optimizer, params = scaled_sign(0.1, gamma=0.5), jnp.array([1.0])
        >>> updates, _ = optimizer.update(jnp.array([2.0]), optimizer.init(params), params)
        >>> f"{updates[0]:.4f}"
        '-0.0500'
    """
    ranges = {"learning_rate": NOT_NEGATIVE} | {name: Range.parse(text) for name, text in operands.items()}
    checked = ranges | {name: Range.parse(text) for name, text in fixed.items()}

    def declare(rule: Callable[P, optax.GradientTransformation]) -> Callable[P, optax.GradientTransformationExtraArgs]:
        signature, name = inspect.signature(rule), rule.__name__
        if missing := [one for one in (*checked, "schedule") if one not in signature.parameters]:
            raise UserError(f"{name} has no argument {', '.join(missing)}, but one is declared: {name}{signature}")
        if name in _declared and _declared[name].__module__ != rule.__module__:
            raise UserError(f"an algorithm {name} is declared in {_declared[name].__module__}: choose another name")
        plain = [one for one in signature.parameters if one not in ranges and one != "schedule"]
        inject = optax.inject_hyperparams(rule, static_args=plain, hyperparam_dtype=jnp.float32)

        @functools.wraps(rule)
        def make(*args: P.args, **kwargs: P.kwargs) -> optax.GradientTransformationExtraArgs:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise UserError(f"{name}: {error}, expected {', '.join(signature.parameters)}") from None
            bound.apply_defaults()
            given = bound.arguments | {one: check_number(one, bound.arguments[one], ranges[one]) for one in ranges}
            for one in fixed:
                check_number(one, given[one], checked[one])
                if isinstance(signature.parameters[one].default, int):
                    integer(one, given[one])
            for one in given:
                if one.endswith("_mask"):
                    _check_mask(one, given[one])
            factor = _Factor(given["schedule"], tuple(ranges.items()))
            return factor.with_progress(in_float32(inject(**given | {"schedule": factor})))

        make.__doc__ = _documented(rule, ranges, checked)
        _declared[name] = make
        return make

    return declare


def _check_mask(name: str, mask: Any) -> None:
    leaves = [] if mask is None else jax.tree.leaves(mask)
    if not (callable(mask) or (leaves and all(isinstance(leaf, bool | np.bool_) for leaf in leaves))):
        raise UserError(f"{name} is {shown(mask)}, expected a function from the params to a pytree of bools, or that")


class _Factor:
    """A schedule as `optax.inject_hyperparams` wants it: of progress where it is one of progress, else of the step."""

    def __init__(self, schedule: Any, ranges: tuple[tuple[str, Range], ...]) -> None:
        self.schedule, self.ranges = schedule, ranges
        self.of_progress = callable(schedule) and is_of_progress(schedule)
        self.needs_progress = self._uses_its_argument() and self.of_progress

    def init(self) -> ScheduleState:
        return ScheduleState(jnp.zeros((), jnp.int32), self.ranges)

    def update(self, state: ScheduleState, **_: Any) -> ScheduleState:
        return replace(state, count=optax.safe_increment(state.count))

    def __call__(self, state: ScheduleState, **extra_args: Any) -> jax.Array:
        # Before the first update there is no progress.
        return self._at(jnp.asarray(extra_args.get("progress", 0.0), jnp.float32) if self.of_progress else state.count)

    def with_progress(self, inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
        """Find the progress of an update; refuse one without it, where the schedule needs it."""

        def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
            if "progress" not in extra_args and (outer := PROGRESS.get()) is not None:
                extra_args["progress"] = outer
            if self.needs_progress and "progress" not in extra_args:
                raise UserError(
                    "the schedule is a function of the progress of the run: call "
                    "optimizer.update(grads, opt_state, params, progress=step / num_steps)"
                )
            return inner.update(updates, state, params, **extra_args)

        return optax.GradientTransformationExtraArgs(inner.init, update)

    def _at(self, where: Any) -> jax.Array:
        factor = self.schedule(progress=where) if self.of_progress else self.schedule(where)
        return jnp.asarray(factor, jnp.float32)

    def _uses_its_argument(self) -> bool:
        if self.schedule is CONSTANT:
            return False
        if not callable(self.schedule):
            raise UserError(f"schedule is {shown(self.schedule)}, expected a function such as schedules.cosine()")
        if self.schedule in vars(schedules).values():
            raise UserError(f"schedule is schedules.{self.schedule.__name__} itself, expected what it returns: call it")
        given, dtype = ("progress", jnp.float32) if self.of_progress else ("step", jnp.int32)
        try:
            traced = jax.make_jaxpr(self._at)(jax.ShapeDtypeStruct((), dtype))
        except UserError:
            raise
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            raise UserError(
                f"schedule raised {type(error).__name__}: {first} (it gets the {given} as a traced {dtype.__name__} "
                "scalar: choose by jnp.where, not by if)"
            ) from error
        if (shape := traced.out_avals[0].shape) != ():
            raise UserError(f"schedule returned an array of shape {shape}, expected one number: a factor of the rate")
        return is_read(traced.jaxpr.invars[0], traced.jaxpr)


def is_read(variable: Any, jaxpr: Any) -> bool:
    """Say whether the result of a traced function can depend on one of its variables."""
    return any(variable is one for line in (jaxpr.outvars, *(step.invars for step in jaxpr.eqns)) for one in line)


def in_float32(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Give a transformation float32 parameters and gradients where they are narrower.

    Example:
        >>> optimizer = in_float32(optax.with_extra_args_support(optax.scale_by_adam()))
        >>> optimizer.init(jnp.zeros(3, jnp.bfloat16)).mu.dtype.name
        'float32'
    """

    def widen(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)

    def init(params: Any) -> Any:
        return inner.init(widen(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        return inner.update(widen(updates), state, widen(params), **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def _documented(rule: Callable[..., Any], ranges: Mapping[str, Range], checked: Mapping[str, Range]) -> str:
    """Return the rule's docstring with its arguments, their ranges, what it returns and raises, and an example."""
    lines = []
    for name in inspect.signature(rule).parameters:
        parts = [_MEANINGS[name]] if name in _MEANINGS else []
        parts += [f"Number {checked[name]}{'; an operand' if name in ranges else ''}."] if name in checked else []
        lines.append(f"    {name}: {' '.join(parts)}".rstrip())
    section = "\n".join(
        [
            "Args:",
            *lines,
            "\nReturns:\n    The transformation. It needs the params in update.",
            "\nRaises:\n    UserError: an argument is out of its range.\n\n",
        ]
    )
    text = inspect.cleandoc(rule.__doc__ or f"{rule.__name__}.")
    section += "" if "\nExample:" in text else _EXAMPLE.format(name=rule.__name__)
    where = min((at for title in ("Example:", "Source:") if (at := text.find(f"\n{title}")) >= 0), default=len(text))
    return f"{text[:where].rstrip()}\n\n{section}{text[where:].lstrip()}".rstrip() + "\n"


# A default argument: one function, made once, of the step, so that an update without progress is enough for it.
CONSTANT: Schedule = lambda step: jnp.float32(1.0)  # noqa: E731, ARG005
