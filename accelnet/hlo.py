"""Read a compiled program's text: computations, their instructions, and how often loops run.

XLA prints the optimized program the same way for every backend.
"""

import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from accelnet.scopes import innermost

# The mark that XLA's CPU compiler puts on the call of what it makes one function.
SMALL_CALL = "xla_cpu_small_call"


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
        """Bytes without padding; types of fewer than 8 bits are packed."""
        bits = re.search(r"\d+", self.dtype)  # "f32", "u4", "f8e4m3fn"
        return math.ceil(self.size * int(bits[0]) / 8) if bits else self.size * (self.dtype == "pred")


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
        """Bytes of the results in main memory."""
        return sum(shape.bytes for shape in self.shapes if shape.space == 0)

    @property
    def target(self) -> str:
        """What a custom call calls, "" if it is none."""
        found = re.search(r'custom_call_target="([^"]+)"', self.attributes)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """What it was traced as, "" if that is not known."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def scope(self) -> str:
        """The layer or the part of the step that it belongs to, "" if that is not known."""
        return innermost(self.op_name)

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
        return self.instructions[name].shapes if name in self.instructions else ()


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

    @cached_property
    def step(self) -> tuple[str, bool]:
        """The computation that is one step, and whether it is part of one function, as small ones are on a CPU.

        That is one trip through the outermost loop of unknown length, or the whole program without one.
        """
        entry = self.computations[self.entry]
        calls = [i for i in entry.instructions.values() if i.opcode == "call" and SMALL_CALL in i.attributes]
        functions = [self.computations[call.attribute("to_apply") or ""] for call in calls]
        bodies = [
            (loop.attribute("body") or "", holder is not entry)
            for holder in (entry, *functions)
            for loop in holder.instructions.values()
            if loop.opcode == "while" and self.trip_count(loop) is None
        ]
        return max(bodies, key=lambda body: len(self.computations[body[0]].instructions), default=(self.entry, False))

    def op_name(self, instruction: Instruction) -> str:
        """Return what an instruction was traced as; of a fusion without a scope, its first part that has one."""
        fused = self.computations.get(instruction.attribute("calls") or "")
        parts = [instruction, *(fused.instructions.values() if fused and instruction.opcode == "fusion" else ())]
        return next((part.op_name for part in parts if part.scope), instruction.op_name)

    def trip_count(self, loop: Instruction) -> int | None:
        """Return how often a loop runs, None if that is not known."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if found:
            return int(found[1])
        condition = self.computations.get(loop.attribute("condition") or "")
        return None if condition is None else self._limit(condition)

    def _limit(self, condition: Computation) -> int | None:
        """Return n of a condition i < n; jax's loops of known length count up from 0 by 1."""
        root = condition.root
        constants = [condition.instructions[o] for o in root.operands if o in condition.instructions]
        called = self.computations.get(root.attribute("calls") or "") if root.opcode == "fusion" else None
        if called is not None:
            inner = self._limit(called)
            if inner is not None:
                return inner
            root = called.root
        if root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        values = [one.operands[0] for one in constants if one.opcode == "constant" and one.operands]
        return next((int(value) for value in values if re.fullmatch(r"-?\d+", value)), None)


def _bracket(text: str, start: int) -> tuple[list[str], int]:
    """Return what stands between the commas of the bracket that opens at `start`, and the position behind it."""
    parts, depth, begin = [], 0, start + 1
    for position in range(start, len(text)):
        depth += (text[position] in "({[") - (text[position] in ")}]")
        if depth == 0 or (depth == 1 and text[position] == ","):
            parts.append(text[begin:position])
            begin = position + 1
        if depth == 0:
            return parts, begin
    return parts, len(text)


_NAME = re.compile(r"(ROOT )?%?([\w.\-<>$]+) = ")
_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([\d,<=]*)\](\{[^{}]*\})?")


def _parse_instruction(line: str) -> Instruction | None:
    head = _NAME.match(line)
    if head is None:
        return None
    start = head.end()
    end = _bracket(line, start)[1] if line[start : start + 1] == "(" else line.find(" ", start)
    opcode_end = line.find("(", end)
    if end < 0 or opcode_end < 0:
        return None
    listed, operands_end = _bracket(line, opcode_end)
    listed = [re.sub(r"/\*.*?\*/", "", part).strip() for part in listed]
    # In some dumps an operand's type stands before its name.
    operands = tuple(part.split(" ")[-1].lstrip("%") for part in listed if part)
    return Instruction(
        head[2], line[end:opcode_end].strip(), _shapes(line[start:end]), operands, line[operands_end:], bool(head[1])
    )


def _shapes(text: str) -> tuple[Shape, ...]:
    found = []
    for match in _ARRAY.finditer(text):
        space = re.search(r"S\((\d+)\)", match[3] or "")
        dims = tuple(int(re.sub(r"\D", "", n)) for n in match[2].split(",") if n)
        found.append(Shape(match[1], dims, int(space[1]) if space else 0))
    return tuple(found)
