"""What a device runs in one step of a compiled program: operations, with their bytes, products and exchanges.

Of a chunk of steps, one trip through the outermost loop is one step. A loop inside it whose length is not known counts
as one trip. What runs outside that loop, once per chunk, is left out.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from accelnet.hlo import SMALL_CALL, Computation, HloModule, Instruction
from accelnet.ops import rows
from accelnet.ops.flops import Product
from accelnet.planning.compiled.calls import Call
from accelnet.planning.compiled.traffic import (
    DTYPES,
    collective_bytes,
    fusion_bytes,
    group_size,
    matrix_product,
    plain_bytes,
)
from accelnet.scopes import FAILURE, innermost

# Move nothing and compute nothing, or are the second half of something that is counted at its start.
_FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "iota",
    "partition-id", "replica-id", "add-dependency", "domain", "get-dimension-size",
})  # fmt: skip
# Bookkeeping of TPU programs: such a custom call names memory and touches none.
_FREE_CALLS = frozenset({"AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"})
_COLLECTIVES = frozenset({
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
})  # fmt: skip
_TRANSCENDENTAL = frozenset({
    "exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh", "sine", "cosine", "tan",
    "erf", "power", "sqrt", "rsqrt", "cbrt", "atan2",
})  # fmt: skip
_MOVES = frozenset({
    "broadcast", "reshape", "transpose", "copy", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate",
    "pad", "gather", "reverse", "convert",
})  # fmt: skip
_OTHERS = ("custom-call", "rng-bit-generator", "sort", "fft", "cholesky", "triangular-solve", "infeed")


@dataclass(frozen=True)
class DeviceOp:
    """What the device starts once, and how often it does so in a step.

    Attributes:
        kind: "product", "elementwise", "reduction", "move" (copies, slices), "gather", "collective" or "other".
        label: Layer or part of the step that it belongs to.
        count: Times per step.
        bytes: Bytes read from and written to main memory, each time.
        elements: Results computed, each time: of the arithmetic inside, not only of what is written.
        transcendentals: Those results that are exponentials, logarithms, roots and the like.
        cycles: Compiler's own estimate, where it gives one.
        group: Devices that take part in a collective.
        threads: Threads of the CPU that share it, where the compiler divided it; a matrix product divides itself.
        call: Custom call that it is; the program's text does not have its products.
        least_bytes: Bytes that no fusion saves, where `bytes` is an estimate from shapes. None: all of `bytes`.
    """

    kind: str
    label: str
    count: int
    bytes: int
    elements: int = 0
    transcendentals: int = 0
    products: tuple[Product, ...] = ()
    cycles: int | None = None
    opcode: str = ""
    group: int = 1
    threads: int = 1
    call: Call | None = None
    least_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "DeviceOp":
        """Read what `to_dict` gave."""
        products = tuple(Product(*product) for product in values["products"])
        call = None if values["call"] is None else Call.read(values["call"])
        return DeviceOp(**{**values, "products": products, "call": call})


def step_ops(module: HloModule) -> list[DeviceOp]:
    """Return the operations of one step, equal ones as one."""
    body, inlined = module.step
    walked = _walk(module, module.computations[body], 1)
    counts: Counter[DeviceOp] = Counter()
    for op in _inlined(walked) if inlined else walked:
        counts[replace(op, count=0)] += op.count
    return [replace(op, count=count) for op, count in counts.items()]


def collectives(module: HloModule) -> list[DeviceOp]:
    """Return the collectives of a step, with the bytes that a device contributes."""
    return [op for op in step_ops(module) if op.kind == "collective"]


def custom_calls(module: HloModule) -> list[str]:
    """Return the names of what the program calls outside itself."""
    instructions = (i for computation in module.computations.values() for i in computation.instructions.values())
    return sorted({i.target for i in instructions if i.opcode == "custom-call"} - _FREE_CALLS - {""})


def _inlined(ops: Iterator[DeviceOp]) -> Iterator[DeviceOp]:
    """Mark the parts of one function, which are not started one by one."""
    return (replace(op, opcode=f"inlined:{op.opcode}") for op in ops)


def _walk(module: HloModule, computation: Computation, count: int) -> Iterator[DeviceOp]:
    for instruction in computation.instructions.values():
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            continue
        if opcode == "while":
            trips = count * (module.trip_count(instruction) or 1)
            yield DeviceOp("other", "loops", trips, 0, opcode="while")
            yield from _walk(module, module.computations[instruction.attribute("body") or ""], trips)
        elif opcode == "conditional":
            yield from _walk_branch(module, instruction, count)
        elif opcode in ("call", "async-start"):
            callee = module.computations.get(instruction.attribute("to_apply") or instruction.attribute("calls") or "")
            if callee is None:
                continue
            if SMALL_CALL in instruction.attributes:
                yield from _inlined(_walk(module, callee, count))
            elif opcode == "call" and "outer_dimension_partitions" in instruction.attributes:
                yield _describe(module, callee, callee.root, count, instruction)
            else:
                yield from _walk(module, callee, count)
        elif not (opcode == "custom-call" and instruction.target in _FREE_CALLS):
            yield _describe(module, computation, instruction, count, instruction)


def _walk_branch(module: HloModule, instruction: Instruction, count: int) -> Iterator[DeviceOp]:
    names = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if names:
        branches = [name.strip().lstrip("%") for name in names[1].split(",")]
    else:
        branches = [instruction.attribute(f"{which}_computation") or "" for which in ("true", "false")]
    ways = [list(_walk(module, module.computations[name], count)) for name in branches if name in module.computations]
    # What explains a failure runs once, before the run ends. Of all other branches the costliest counts.
    choose = min if instruction.scope == FAILURE else max
    yield from choose(ways, key=lambda ops: sum(op.bytes * op.count for op in ops), default=[])


def _describe(
    module: HloModule, computation: Computation, instruction: Instruction, count: int, caller: Instruction
) -> DeviceOp:
    """Describe an instruction. `caller` is the instruction itself, or the call that divides it among threads."""
    if instruction.target == rows.TARGET:
        instruction = replace(instruction, opcode="gather")
    opcode = instruction.opcode.removesuffix("-start")
    label = caller.scope or innermost(module.op_name(instruction))
    called = module.computations.get(instruction.attribute("calls") or "") if opcode == "fusion" else None
    if called is None:
        source, inside, moved = computation, [instruction], plain_bytes(computation, instruction)
        result = opcode
    else:
        source, inside = called, list(called.instructions.values())
        moved = fusion_bytes(computation, instruction, called)
        root = called.root
        if root.opcode == "bitcast" and root.operands:
            root = called.instructions[root.operands[0]]
        result = f"fusion:{root.opcode}"
    products = tuple(product for part in inside if (product := matrix_product(source, part)) is not None)
    kind, elements, transcendentals = _arithmetic(source, inside)
    kind, group, call = "product" if products else kind, 1, None
    if opcode in _COLLECTIVES:
        kind, group = "collective", group_size(instruction.attributes)
        moved = collective_bytes(computation, instruction)
    elif opcode in _OTHERS:
        kind = "product" if products else "other"
    if opcode == "custom-call":
        call = call_of(computation, instruction)
    cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    partitions = re.search(r'"outer_dimension_partitions":\[([^\]]*)\]', caller.attributes)
    threads = math.prod(int(n) for n in re.findall(r"\d+", partitions[1])) if partitions else 1
    return DeviceOp(
        kind, label, count, moved, elements, transcendentals, products, int(cycles[1]) if cycles else None, result,
        group, threads, call,
    )  # fmt: skip


def _arithmetic(source: Computation, inside: list[Instruction]) -> tuple[str, int, int]:
    """Return the kind of instructions without products, their results, and the transcendental ones among these."""
    kind, elements, transcendentals = "move", 0, 0
    for part in inside:
        if part.opcode in ("reduce", "reduce-window", "select-and-scatter", "scatter"):
            kind = "reduction"
        if part.opcode in _FREE or part.opcode in _MOVES or part.opcode in _COLLECTIVES:
            continue
        results = max((s.size for s in part.shapes), default=0)
        if part.opcode in ("reduce", "reduce-window"):
            results = max([results, *(s.size for o in part.operands for s in source.shapes(o))])
        elements += results
        transcendentals += results if part.opcode in _TRANSCENDENTAL else 0
        kind = "elementwise" if kind == "move" else kind
    if kind == "move" and any(part.opcode == "gather" for part in inside):
        kind = "gather"
    return kind, elements, transcendentals


def call_of(computation: Computation, instruction: Instruction) -> Call:
    """Return what a custom call calls."""
    sides = [s for o in instruction.operands for s in computation.shapes(o)], instruction.shapes
    return Call(instruction.target, *(tuple((DTYPES.get(s.dtype, s.dtype), s.dims) for s in side) for side in sides))
