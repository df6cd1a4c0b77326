"""What one step of a compiled program starts: its kernels, with their bytes, products and exchanges.

Of a chunk of steps one trip through the outermost loop is one step; loops inside it have a known length. What runs
outside that loop, once per chunk, is left out.
"""

import math
import re
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import Any

from accelnet.ops.flops import Product
from accelnet.planning.calls import Call
from accelnet.planning.hlo import Computation, HloModule, Instruction

_DTYPES = {
    "f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16", "s8": "int8", "s32": "int32",
    "s64": "int64", "u8": "uint8", "u32": "uint32", "pred": "bool",
}  # fmt: skip

# Move nothing and compute nothing, or are the second half of something that is counted at its start.
FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "iota",
    "partition-id", "replica-id", "add-dependency", "domain", "get-dimension-size",
})  # fmt: skip
_COLLECTIVES = frozenset({
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
})  # fmt: skip
# A bookkeeping custom call of TPU programs: it names memory and touches none.
FREE_CALLS = frozenset({"AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"})
_TRANSCENDENTAL = frozenset({
    "exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh", "sine", "cosine", "tan",
    "erf", "power", "sqrt", "rsqrt", "cbrt", "atan2",
})  # fmt: skip
_MOVES = frozenset({
    "bitcast", "broadcast", "reshape", "transpose", "copy", "slice", "dynamic-slice", "dynamic-update-slice",
    "concatenate", "pad", "iota", "parameter", "constant", "tuple", "get-tuple-element", "gather", "reverse",
    "convert",
})  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """What the device starts once, and how often it does so in a step.

    Attributes:
        kind: "product", "elementwise", "reduction", "move" (copies, slices), "gather", "collective" or "other".
        label: the layer or the part of the step that it belongs to.
        count: times per step.
        bytes: read from and written to main memory, each time.
        elements: results computed, each time: of the arithmetic inside, not only of what is written.
        transcendentals: those of them that are exponentials, logarithms, roots and the like.
        products: matrix products inside.
        cycles: the compiler's own estimate, where it gives one.
        opcode: of the instruction; for a fusion, of its result.
        group: devices that take part in a collective.
        threads: of the CPU that share it, where the compiler divided it; a matrix product divides itself.
        call: of a custom call, what is called; its products are not in the program's text.
        least_bytes: that no fusion saves, where `bytes` is an estimate from shapes. None: all of `bytes`.
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

    @property
    def unavoidable_bytes(self) -> int:
        """Bytes that count for a bound."""
        return self.bytes if self.least_bytes is None else self.least_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Kernel":
        """Read what `to_dict` gave."""
        products = tuple(Product(*product) for product in values["products"])
        call = None if values["call"] is None else Call.read(values["call"])
        return Kernel(**{**values, "products": products, "call": call})


def describe_kernel(
    module: HloModule, computation: Computation, instruction: Instruction, count: int, shown: Instruction
) -> Kernel:
    """Describe an instruction. `shown` is where it is called from, which knows the operands."""
    if target_of(instruction) == "accelnet_take_rows":
        gather = replace(instruction, opcode="gather")
        instruction, shown = gather, gather if shown is instruction else shown
    opcode = instruction.opcode.removesuffix("-start")
    if shown is not instruction:
        computation = module.computations[shown.attribute("to_apply") or ""]
    label = module.frames.label(shown.attributes) or module.frames.label(instruction.attributes)
    cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    called = module.computations.get(instruction.attribute("calls") or "") if opcode == "fusion" else None
    if called is not None:
        inside = list(called.instructions.values())
        moved = _fusion_bytes(computation, instruction, called)
        products = tuple(p for i in inside if (p := _product(called, i)) is not None)
        root_opcode = called.root.opcode
        if root_opcode == "bitcast" and called.root.operands:
            root_opcode = called.instructions[called.root.operands[0]].opcode
        label = label or next((name for i in inside if (name := module.frames.label(i.attributes))), "")
    else:
        inside = [instruction]
        moved = _plain_bytes(computation, instruction)
        product = _product(computation, instruction)
        products, root_opcode = () if product is None else (product,), opcode
    elements = transcendentals = 0
    kind = "move"
    for part in inside:
        if part.opcode in ("reduce", "reduce-window", "select-and-scatter", "scatter") and kind != "product":
            kind = "reduction"
        if part.opcode in FREE or part.opcode in _MOVES or part.opcode in _COLLECTIVES:
            continue
        source = computation if called is None else called
        size = max([s.size for s in part.shapes] or [0])
        if part.opcode in ("reduce", "reduce-window"):
            size = max([size] + [s.size for o in part.operands for s in source.shapes(o)])
        elements += size
        transcendentals += size if part.opcode in _TRANSCENDENTAL else 0
        if kind == "move":
            kind = "elementwise"
    if kind == "move" and any(part.opcode == "gather" for part in inside):
        kind = "gather"
    if products:
        kind = "product"
    group = 1
    if opcode in _COLLECTIVES:
        kind, group = "collective", _group_size(instruction.attributes)
        moved = _collective_bytes(computation, instruction, opcode)
    elif opcode in ("custom-call", "rng-bit-generator", "sort", "fft", "cholesky", "triangular-solve", "infeed"):
        kind = "product" if products else "other"
    call = call_of(computation, instruction) if opcode == "custom-call" else None
    partitions = re.search(r'"outer_dimension_partitions":\[([^\]]*)\]', shown.attributes)
    threads = math.prod(int(n) for n in re.findall(r"\d+", partitions[1])) if partitions else 1
    return Kernel(
        kind, label, count, moved, elements, transcendentals, products,
        int(cycles[1]) if cycles else None, opcode if called is None else f"fusion:{root_opcode}", group, threads, call,
    )  # fmt: skip


def call_of(computation: Computation, instruction: Instruction) -> Call:
    """Return what a custom call calls."""
    sides = [s for o in instruction.operands for s in computation.shapes(o)], instruction.shapes
    return Call(
        target_of(instruction), *(tuple((_DTYPES.get(s.dtype, s.dtype), s.dims) for s in side) for side in sides)
    )


def _fusion_bytes(computation: Computation, fusion: Instruction, called: Computation) -> int:
    """Count what a fusion reads and writes: of an operand that it only slices, no more than the slices."""
    parameters = sorted((i for i in called.instructions.values() if i.opcode == "parameter"), key=_parameter_number)
    users: dict[str, list[Instruction]] = defaultdict(list)
    for instruction in called.instructions.values():
        for operand in instruction.operands:
            users[operand].append(instruction)
    updated: set[str] = set()
    written = 0
    roots = [called.root]
    if called.root.opcode == "tuple":
        roots = [called.instructions[o] for o in called.root.operands if o in called.instructions]
    for root, shape in zip(roots, fusion.shapes, strict=False):
        source = root
        while source.opcode in ("bitcast", "convert", "copy") and source.operands[0] in called.instructions:
            source = called.instructions[source.operands[0]]
        if source.opcode == "dynamic-update-slice" and len(source.operands) > 1:
            # In place: the array that is updated is neither read nor written as a whole.
            update = sum(s.bytes for s in called.shapes(source.operands[1]))
            written += min(update, shape.bytes) if shape.space == 0 else 0
            target = source.operands[0]
            while target in called.instructions and called.instructions[target].opcode in ("bitcast", "convert"):
                target = called.instructions[target].operands[0]
            updated.add(target)
        else:
            written += shape.bytes if shape.space == 0 else 0
    read = 0
    for parameter, operand in zip(parameters, fusion.operands, strict=False):
        shapes = computation.shapes(operand) or parameter.shapes
        whole = sum(shape.bytes for shape in shapes if shape.space == 0)
        if parameter.name in updated or not whole:
            continue
        uses = _uses(parameter.name, users)
        if uses and all(use.opcode in ("dynamic-slice", "gather", "slice") for use in uses):
            whole = min(whole, sum(shape.bytes for use in uses for shape in use.shapes))
        read += whole
    return read + written


def _uses(name: str, users: dict[str, list[Instruction]]) -> list[Instruction]:
    """Return who uses a value, through bitcasts."""
    found = []
    for user in users[name]:
        if user.opcode == "bitcast":
            found += _uses(user.name, users)
        elif user.opcode in ("dynamic-slice", "gather") and name not in user.operands[:1]:
            found.append(replace(user, opcode="index"))
        else:
            found.append(user)
    return found


def _plain_bytes(computation: Computation, instruction: Instruction) -> int:
    opcode = instruction.opcode
    if opcode.startswith(("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start")):
        # The results are the source and the destination, in that order, and something to wait for.
        return max(shape.bytes for shape in instruction.shapes[:2]) if instruction.shapes else 0
    if opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * instruction.bytes
    if opcode == "dynamic-update-slice":
        return 2 * sum(s.bytes for s in computation.shapes(instruction.operands[1]) if s.space == 0)
    if opcode in ("broadcast", "constant", "rng-bit-generator"):
        return instruction.bytes
    read = sum(s.bytes for o in dict.fromkeys(instruction.operands) for s in computation.shapes(o) if s.space == 0)
    return read + instruction.bytes


def _collective_bytes(computation: Computation, instruction: Instruction, opcode: str) -> int:
    """Return the bytes of the whole array that is reduced, gathered or sent, on one device."""
    read = sum(s.bytes for o in instruction.operands for s in computation.shapes(o))
    if opcode == "all-gather":
        return read * _group_size(instruction.attributes)
    return read


def _group_size(attributes: str) -> int:
    """Count the devices of the first group of a collective."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        names = re.findall(r"'([^']+)'", mesh[2])
        return math.prod(int(sizes[name]) for name in names) if names else 1
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    return 2 if "source_target_pairs" in attributes else 1


def target_of(instruction: Instruction) -> str:
    """Return what a custom call calls, "" if it is none."""
    found = re.search(r'custom_call_target="([^"]+)"', instruction.attributes)
    return found[1] if found else ""


def _product(computation: Computation, instruction: Instruction) -> Product | None:
    """Return the matrix product that an instruction is, a convolution as the product of its patches."""
    if len(instruction.operands) < 2 or not instruction.shapes:
        return None
    lhs, rhs = (next(iter(computation.shapes(o)), None) for o in instruction.operands[:2])
    if lhs is None or rhs is None:
        return None
    out = instruction.shapes[0]
    dtype = _DTYPES.get(lhs.dtype, lhs.dtype)
    if instruction.opcode == "dot" or target_of(instruction).startswith(("__cublas$", "__onednn$matmul")):
        contracting, batch = instruction.numbers("lhs_contracting_dims"), instruction.numbers("lhs_batch_dims")
        if not contracting:
            found = re.search(r'"lhs_contracting_dimensions":\["?(\d+)', instruction.attributes)
            contracting = (int(found[1]),) if found else (len(lhs.dims) - 1,)
            listed = re.search(r'"lhs_batch_dimensions":\[([^\]]*)\]', instruction.attributes)
            batch = tuple(int(n) for n in re.findall(r"\d+", listed[1])) if listed else ()
        k = math.prod(lhs.dims[axis] for axis in contracting)
        batches = math.prod(lhs.dims[axis] for axis in batch)
        m = lhs.size // max(1, k * batches)
        return Product(m, out.size // max(1, m * batches), k, batches, dtype)
    if instruction.opcode == "convolution" or target_of(instruction).startswith("__cudnn$conv"):
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
        if labels is None:
            return None
        kernel = out if "BackwardFilter" in instruction.attributes else rhs
        positions = rhs if "BackwardFilter" in instruction.attributes else out
        if "BackwardInput" in instruction.attributes:
            positions = lhs
        out_features = kernel.dims[labels[2].index("o")]
        groups = int(instruction.attribute("feature_group_count") or 1)
        taps = kernel.size // max(1, out_features)
        return Product(positions.size // max(1, out_features), out_features // groups, taps, groups, dtype)
    return None


def _parameter_number(instruction: Instruction) -> int:
    return int(instruction.operands[0]) if instruction.operands and instruction.operands[0].isdigit() else 0
