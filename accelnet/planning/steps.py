"""What one step of a compiled program starts: its kernels and exchanges, each with how often.

Of a chunk of steps one trip through the outermost loop is one step. A loop inside it whose length is not known counts
as one trip. What runs outside that loop, once per chunk, is left out.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from accelnet.planning.hlo import SMALL_CALL, Computation, HloModule, Instruction
from accelnet.planning.kernels import FREE, FREE_CALLS, Kernel, describe_kernel, target_of


def kernels(module: HloModule) -> list[Kernel]:
    """Return what one step starts: one trip through the outermost loop of unknown length, or all without one."""
    body = module.step_body()
    merged: dict[Kernel, int] = defaultdict(int)
    walked = _walk(module, module.computations[body or module.entry], 1)
    for kernel in _inlined(walked) if module.step_is_inlined else walked:
        merged[replace(kernel, count=0)] += kernel.count
    return [replace(kernel, count=count) for kernel, count in merged.items()]


def _inlined(walked: Iterator[Kernel]) -> Iterator[Kernel]:
    """Mark the parts of one function, which are not started one by one."""
    return (replace(kernel, opcode=f"inlined:{kernel.opcode}") for kernel in walked)


def _walk(module: HloModule, computation: Computation, count: int) -> Iterator[Kernel]:
    for instruction in computation.instructions.values():
        opcode = instruction.opcode
        if opcode in FREE or opcode.endswith(("-done", "-update")):
            continue
        if opcode == "while":
            body = module.computations[instruction.attribute("body") or ""]
            trips = module.trip_count(instruction) or 1
            yield Kernel("other", "loops", count * trips, 0, opcode="while")
            yield from _walk(module, body, count * trips)
        elif opcode == "conditional":
            yield from _walk_branch(module, instruction, count)
        elif opcode in ("call", "async-start"):
            callee = module.computations.get(instruction.attribute("to_apply") or instruction.attribute("calls") or "")
            if callee is None:
                continue
            threaded = opcode == "call" and "outer_dimension_partitions" in instruction.attributes
            if SMALL_CALL in instruction.attributes:
                yield from _inlined(_walk(module, callee, count))
            elif threaded:
                yield describe_kernel(module, computation, callee.root, count, instruction)
            else:
                yield from _walk(module, callee, count)
        elif opcode == "custom-call" and target_of(instruction) in FREE_CALLS:
            continue
        else:
            yield describe_kernel(module, computation, instruction, count, instruction)


def _walk_branch(module: HloModule, instruction: Instruction, count: int) -> Iterator[Kernel]:
    names = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if names:
        branches = [name.strip().lstrip("%") for name in names[1].split(",")]
    else:
        branches = [instruction.attribute(f"{which}_computation") or "" for which in ("true", "false")]
    ways = [list(_walk(module, module.computations[name], count)) for name in branches if name in module.computations]
    # What explains a failure runs once, before the run ends; all other branches are taken to be the dear one.
    choose = min if "/failure/" in instruction.attributes else max
    yield from choose(ways, key=lambda kernels: sum(k.bytes * k.count for k in kernels), default=[])


def custom_calls(module: HloModule) -> list[str]:
    """Return the names of what the program calls outside itself."""
    calls = {
        target_of(instruction)
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "custom-call"
    }
    return sorted(calls - FREE_CALLS - {""})


def collectives(module: HloModule) -> list[Kernel]:
    """Return the collectives of a step, with the bytes that a device contributes."""
    return [kernel for kernel in kernels(module) if kernel.kind == "collective"]
