"""Read a compiled program's text: computations, their instructions, and how often loops run.

XLA prints the optimized program the same way for every backend.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from accelnet.planning.frames import Frames

# Bytes of an element; types of fewer than 8 bits are packed.
_ITEM_BYTES = {
    "pred": 1.0, "s2": 0.25, "u2": 0.25, "s4": 0.5, "u4": 0.5, "f4e2m1fn": 0.5, "s8": 1.0, "u8": 1.0, "s16": 2.0,
    "u16": 2.0, "f16": 2.0, "bf16": 2.0, "s32": 4.0, "u32": 4.0, "f32": 4.0, "s64": 8.0, "u64": 8.0, "f64": 8.0,
    "c64": 8.0, "c128": 16.0, "token": 0.0, "opaque": 0.0,
}  # fmt: skip


class Shape(NamedTuple):
    """An array's type, dimensions and memory space; space 0 is the device's main memory."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        width = _ITEM_BYTES.get(self.dtype, 1.0)  # what is left are 8-bit floats
        return math.ceil(self.size * width)


# By which XLA marks what its CPU compiler makes one function of.
SMALL_CALL = "xla_cpu_small_call"


@dataclass
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False

    @property
    def bytes(self) -> int:
        """Of the results, in main memory."""
        return sum(shape.bytes for shape in self.shapes if shape.space == 0)

    def attribute(self, name: str) -> str | None:
        """Return an attribute's value up to the next comma."""
        found = re.search(rf"\b{name}=%?([^,\s]+)", self.attributes)
        return found[1] if found else None

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return an attribute {1,2}."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(n) for n in found[1].split(",") if n) if found else ()


@dataclass
class Computation:
    """A list of instructions."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @cached_property
    def root(self) -> Instruction:
        """What it returns."""
        return next((i for i in self.instructions.values() if i.is_root), list(self.instructions.values())[-1])

    def shapes(self, name: str) -> tuple[Shape, ...]:
        """Return the shapes of an operand."""
        found = self.instructions.get(name)
        return found.shapes if found else ()


class HloModule:
    """A program's text, parsed.

    Args:
        text: what `jax.stages.Compiled.as_text` gives, or a dump of XLA's.

    Raises:
        ValueError: if it has no entry computation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> compiled = jax.jit(lambda x, w: x @ w).lower(jnp.ones((8, 4)), jnp.ones((4, 2))).compile()
        >>> HloModule(compiled.as_text()).entry.startswith("main")
        True

    Source: the format is XLA's `HloModule::ToString`.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        self.frames = Frames(text)
        current: Computation | None = None
        for line in text.splitlines():
            stripped = line.strip()
            if not line.startswith(" "):
                found = re.match(r"(ENTRY )?%?([\w.\-<>$]+) (\(.*\) -> .* )?\{$", stripped)
                if found and "=" not in stripped.split("(")[0]:
                    current = self.computations.setdefault(found[2], Computation(found[2]))
                    self.entry = found[2] if found[1] else self.entry
                elif stripped == "}":
                    current = None
                continue
            instruction = _parse_instruction(stripped)
            if instruction is not None and current is not None:
                current.instructions[instruction.name] = instruction
        if not self.entry:
            raise ValueError("the text has no ENTRY computation")

    def step_body(self) -> str | None:
        """Return the computation that is one step: the outermost loop of unknown length; None without one."""
        return max(self._bodies(inlined=False) + self._bodies(inlined=True), key=self._weight, default=None)

    @property
    def step_is_inlined(self) -> bool:
        """Whether the step is part of one function, which a CPU has instead of kernels to start."""
        return self.step_body() in self._bodies(inlined=True)

    def _bodies(self, *, inlined: bool) -> list[str]:
        """Return the bodies of the outermost loops of unknown length, of the program's own or of its functions'."""
        entry = self.computations[self.entry]
        calls = [i for i in entry.instructions.values() if i.opcode == "call" and SMALL_CALL in i.attributes]
        holders = [self.computations[call.attribute("to_apply") or ""] for call in calls] if inlined else [entry]
        loops = [i for holder in holders for i in holder.instructions.values() if i.opcode == "while"]
        return [loop.attribute("body") or "" for loop in loops if self.trip_count(loop) is None]

    def _weight(self, name: str) -> int:
        return len(self.computations[name].instructions) if name in self.computations else 0

    def trip_count(self, loop: Instruction) -> int | None:
        """Return how often a loop runs, None if that is not known."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if found:
            return int(found[1])
        condition = self.computations.get(loop.attribute("condition") or "")
        if condition is None:
            return None
        return self._limit(condition)

    def _limit(self, condition: Computation) -> int | None:
        """Return n of a condition i < n; jax's loops of known length count up from 0 by 1."""
        root = condition.root
        if root.opcode == "fusion":
            called = self.computations.get(root.attribute("calls") or "")
            inner = self._limit(called) if called else None
            if inner is not None:
                return inner
            constants = [condition.instructions[o] for o in root.operands if o in condition.instructions]
            root = called.root if called else root
        else:
            constants = [condition.instructions[o] for o in root.operands if o in condition.instructions]
        if root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        values = [_constant(instruction) for instruction in constants]
        return next((value for value in values if value is not None), None)


def _constant(instruction: Instruction) -> int | None:
    if instruction.opcode != "constant" or not instruction.operands:
        return None
    return int(instruction.operands[0]) if re.fullmatch(r"-?\d+", instruction.operands[0]) else None


def _closing(text: str, start: int) -> int:
    """Return the position behind the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        character = text[position]
        if character in "({[":
            depth += 1
        elif character in ")}]":
            depth -= 1
            if depth == 0:
                return position + 1
    return len(text)


_NAME = re.compile(r"(ROOT )?%?([\w.\-<>$]+) = ")
_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([\d,<=]*)\](\{[^{}]*\})?")


def _parse_instruction(line: str) -> Instruction | None:
    head = _NAME.match(line)
    if head is None:
        return None
    start = head.end()
    if line[start : start + 1] == "(":
        end = _closing(line, start)
    else:
        end = line.find(" ", start)
    opcode_end = line.find("(", end)
    if end < 0 or opcode_end < 0:
        return None
    operands_end = _closing(line, opcode_end)
    listed = re.sub(r"/\*.*?\*/", "", line[opcode_end + 1 : operands_end - 1])
    # In some dumps an operand's type stands before its name.
    operands = tuple(part.strip().split(" ")[-1].lstrip("%") for part in _split(listed) if part.strip())
    return Instruction(
        head[2], line[end:opcode_end].strip(), _shapes(line[start:end]), operands, line[operands_end:], bool(head[1])
    )


def _split(text: str) -> Iterator[str]:
    """Split at the commas that stand in no bracket."""
    depth, start = 0, 0
    for position, character in enumerate(text):
        if character in "({[":
            depth += 1
        elif character in ")}]":
            depth -= 1
        elif character == "," and depth == 0:
            yield text[start:position]
            start = position + 1
    yield text[start:]


def _shapes(text: str) -> tuple[Shape, ...]:
    found = []
    for match in _ARRAY.finditer(text):
        space = re.search(r"S\((\d+)\)", match[3] or "")
        dims = tuple(int(re.sub(r"\D", "", n)) for n in match[2].split(",") if n)
        found.append(Shape(match[1], dims, int(space[1]) if space else 0))
    return tuple(found)
