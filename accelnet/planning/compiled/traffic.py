"""What an instruction of a compiled program moves and multiplies, by its shapes."""

import math
import re
from collections import defaultdict
from dataclasses import replace

from accelnet.hlo import Computation, Instruction
from accelnet.ops.flops import Product

DTYPES = {
    "f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16", "s8": "int8", "s32": "int32",
    "s64": "int64", "u8": "uint8", "u32": "uint32", "pred": "bool",
}  # fmt: skip
_SLICES = ("dynamic-slice", "gather", "slice")


def fusion_bytes(computation: Computation, fusion: Instruction, called: Computation) -> int:
    """Count the bytes that a fusion reads and writes: of an operand that it only slices, those of the slices."""
    inside = called.instructions
    roots = [called.root]
    if called.root.opcode == "tuple":
        roots = [inside[o] for o in called.root.operands if o in inside]
    updated: set[str] = set()
    moved = 0
    for root, shape in zip(roots, fusion.shapes, strict=False):
        source = root
        while source.opcode in ("bitcast", "convert", "copy") and source.operands[0] in inside:
            source = inside[source.operands[0]]
        written = shape.bytes
        if source.opcode == "dynamic-update-slice" and len(source.operands) > 1:
            # In place: the array that is updated is neither read nor written as a whole.
            written = min(sum(s.bytes for s in called.shapes(source.operands[1])), shape.bytes)
            target = source.operands[0]
            while target in inside and inside[target].opcode in ("bitcast", "convert"):
                target = inside[target].operands[0]
            updated.add(target)
        moved += written if shape.space == 0 else 0
    users: dict[str, list[Instruction]] = defaultdict(list)
    for instruction in inside.values():
        for operand in instruction.operands:
            users[operand].append(instruction)
    parameters = sorted((i for i in inside.values() if i.opcode == "parameter"), key=_parameter_number)
    for parameter, operand in zip(parameters, fusion.operands, strict=False):
        shapes = computation.shapes(operand) or parameter.shapes
        read = sum(shape.bytes for shape in shapes if shape.space == 0)
        if parameter.name in updated or not read:
            continue
        uses = _uses(parameter.name, users)
        if uses and all(use.opcode in _SLICES for use in uses):
            read = min(read, sum(shape.bytes for use in uses for shape in use.shapes))
        moved += read
    return moved


def _parameter_number(instruction: Instruction) -> int:
    return int(instruction.operands[0]) if instruction.operands and instruction.operands[0].isdigit() else 0


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


def plain_bytes(computation: Computation, instruction: Instruction) -> int:
    """Count the bytes that an instruction which is no fusion reads and writes."""
    opcode = instruction.opcode
    if opcode.startswith(("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start")):
        # The results are the source and the destination, in that order, and something to wait for.
        return max((shape.bytes for shape in instruction.shapes[:2]), default=0)
    if opcode in _SLICES:
        return 2 * instruction.bytes
    if opcode == "dynamic-update-slice":
        return 2 * sum(s.bytes for s in computation.shapes(instruction.operands[1]) if s.space == 0)
    if opcode in ("broadcast", "constant", "rng-bit-generator"):
        return instruction.bytes
    read = sum(s.bytes for o in dict.fromkeys(instruction.operands) for s in computation.shapes(o) if s.space == 0)
    return read + instruction.bytes


def collective_bytes(computation: Computation, instruction: Instruction) -> int:
    """Return the bytes of the whole array that is reduced, gathered or sent, on one device."""
    read = sum(s.bytes for o in instruction.operands for s in computation.shapes(o))
    gathers = instruction.opcode.removesuffix("-start") == "all-gather"
    return read * group_size(instruction.attributes) if gathers else read


def group_size(attributes: str) -> int:
    """Count the devices of the first group of a collective."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([^']+)'", mesh[2]))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    return 2 if "source_target_pairs" in attributes else 1


def matrix_product(computation: Computation, instruction: Instruction) -> Product | None:
    """Return the matrix product that an instruction is, a convolution as the product of its patches; None if none."""
    if len(instruction.operands) < 2 or not instruction.shapes:
        return None
    lhs, rhs = (next(iter(computation.shapes(o)), None) for o in instruction.operands[:2])
    if lhs is None or rhs is None:
        return None
    out, target, attributes = instruction.shapes[0], instruction.target, instruction.attributes
    dtype = DTYPES.get(lhs.dtype, lhs.dtype)
    if instruction.opcode == "dot" or target.startswith(("__cublas$", "__onednn$matmul")):
        contracting, batch = instruction.numbers("lhs_contracting_dims"), instruction.numbers("lhs_batch_dims")
        if not contracting:
            found = re.search(r'"lhs_contracting_dimensions":\["?(\d+)', attributes)
            contracting = (int(found[1]),) if found else (len(lhs.dims) - 1,)
            listed = re.search(r'"lhs_batch_dimensions":\[([^\]]*)\]', attributes)
            batch = tuple(int(n) for n in re.findall(r"\d+", listed[1])) if listed else ()
        k = math.prod(lhs.dims[axis] for axis in contracting)
        batches = math.prod(lhs.dims[axis] for axis in batch)
        m = lhs.size // max(1, k * batches)
        return Product(m, out.size // max(1, m * batches), k, batches, dtype)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    if labels is None or not (instruction.opcode == "convolution" or target.startswith("__cudnn$conv")):
        return None
    weights, positions = rhs, out
    if "BackwardFilter" in attributes:
        weights, positions = out, rhs
    elif "BackwardInput" in attributes:
        positions = lhs
    out_features = weights.dims[labels[2].index("o")]
    groups = int(instruction.attribute("feature_group_count") or 1)
    taps = weights.size // max(1, out_features)
    return Product(positions.size // max(1, out_features), out_features // groups, taps, groups, dtype)
