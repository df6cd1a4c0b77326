"""Read a compiled program's text: what it computes per step, kernel by kernel.

XLA prints the optimized program the same way for every backend. Of a chunk of steps one trip through the outermost loop
is one step; loops inside it have a known length. What runs outside that loop, once per chunk, is left out.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from accelnet.ops.flops import Product

# Bytes of an element; types of fewer than 8 bits are packed.
_ITEM_BYTES = {
    "pred": 1.0, "s2": 0.25, "u2": 0.25, "s4": 0.5, "u4": 0.5, "f4e2m1fn": 0.5, "s8": 1.0, "u8": 1.0, "s16": 2.0,
    "u16": 2.0, "f16": 2.0, "bf16": 2.0, "s32": 4.0, "u32": 4.0, "f32": 4.0, "s64": 8.0, "u64": 8.0, "f64": 8.0,
    "c64": 8.0, "c128": 16.0, "token": 0.0, "opaque": 0.0,
}  # fmt: skip
_DTYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16", "s8": "int8", "s32": "int32"}

# Move nothing and compute nothing, or are the second half of something that is counted at its start.
_FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "iota",
    "partition-id", "replica-id", "add-dependency", "domain", "get-dimension-size",
})  # fmt: skip
_COLLECTIVES = frozenset({
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
})  # fmt: skip
# A bookkeeping custom call of TPU programs: it names memory and touches none.
_FREE_CALLS = frozenset({"AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"})
_TRANSCENDENTAL = frozenset({
    "exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh", "sine", "cosine", "tan",
    "erf", "power", "sqrt", "rsqrt", "cbrt", "atan2",
})  # fmt: skip
_MOVES = frozenset({
    "bitcast", "broadcast", "reshape", "transpose", "copy", "slice", "dynamic-slice", "dynamic-update-slice",
    "concatenate", "pad", "iota", "parameter", "constant", "tuple", "get-tuple-element", "gather", "reverse",
    "convert",
})  # fmt: skip


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

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Kernel":
        """Read what `to_dict` gave."""
        products = tuple(Product(*product) for product in values["products"])
        return Kernel(**{**values, "products": products})


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
        >>> [product for kernel in HloModule(compiled.as_text()).kernels() for product in kernel.products]
        [Product(m=8, n=2, k=4, batch=1, dtype='float32')]

    Source: original; the format is XLA's `HloModule::ToString`.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        self._frames = _Frames(text)
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

    def kernels(self) -> list[Kernel]:
        """Return what one step starts: one trip through the outermost loop of unknown length, or all without one."""
        body = self._step_body()
        merged: dict[Kernel, int] = defaultdict(int)
        for kernel in self._walk(self.computations[body or self.entry], 1):
            merged[replace(kernel, count=0)] += kernel.count
        return [replace(kernel, count=count) for kernel, count in merged.items()]

    def _step_body(self) -> str | None:
        loops = [i for i in self.computations[self.entry].instructions.values() if i.opcode == "while"]
        bodies = [loop.attribute("body") for loop in loops if self._trip_count(loop) is None]
        return max(bodies, key=lambda name: self._weight(name or ""), default=None)

    def _weight(self, name: str) -> int:
        return len(self.computations[name].instructions) if name in self.computations else 0

    def _walk(self, computation: Computation, count: int) -> Iterator[Kernel]:
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if opcode in _FREE or opcode.endswith(("-done", "-update")):
                continue
            if opcode == "while":
                body = self.computations[instruction.attribute("body") or ""]
                trips = self._trip_count(instruction) or 1
                yield Kernel("other", "loops", count * trips, 0, opcode="while")
                yield from self._walk(body, count * trips)
            elif opcode == "conditional":
                yield from self._walk_branch(instruction, count)
            elif opcode in ("call", "async-start"):
                callee = self.computations.get(
                    instruction.attribute("to_apply") or instruction.attribute("calls") or ""
                )
                if callee is None:
                    continue
                threaded = opcode == "call" and "outer_dimension_partitions" in instruction.attributes
                if "xla_cpu_small_call" in instruction.attributes:
                    # One function of the CPU's: its parts are not started one by one.
                    for kernel in self._walk(callee, count):
                        yield replace(kernel, opcode=f"inlined:{kernel.opcode}")
                elif threaded:
                    yield self._kernel(computation, callee.root, count, instruction)
                else:
                    yield from self._walk(callee, count)
            elif opcode == "custom-call" and _target(instruction) in _FREE_CALLS:
                continue
            else:
                yield self._kernel(computation, instruction, count, instruction)

    def _walk_branch(self, instruction: Instruction, count: int) -> Iterator[Kernel]:
        names = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        if names:
            branches = [name.strip().lstrip("%") for name in names[1].split(",")]
        else:
            branches = [instruction.attribute(f"{which}_computation") or "" for which in ("true", "false")]
        ways = [list(self._walk(self.computations[name], count)) for name in branches if name in self.computations]
        # What explains a failure runs once, before the run ends; all other branches are taken to be the dear one.
        choose = min if "/failure/" in instruction.attributes else max
        yield from choose(ways, key=lambda kernels: sum(k.bytes * k.count for k in kernels), default=[])

    def _trip_count(self, loop: Instruction) -> int | None:
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

    def _kernel(self, computation: Computation, instruction: Instruction, count: int, shown: Instruction) -> Kernel:
        """Describe an instruction. `shown` is where it is called from, which knows the operands."""
        opcode = instruction.opcode.removesuffix("-start")
        if shown is not instruction:
            computation = self.computations[shown.attribute("to_apply") or ""]
        label = self._frames.label(shown.attributes) or self._frames.label(instruction.attributes)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        called = self.computations.get(instruction.attribute("calls") or "") if opcode == "fusion" else None
        if called is not None:
            inside = list(called.instructions.values())
            moved = self._fusion_bytes(computation, instruction, called)
            products = tuple(p for i in inside if (p := _product(called, i)) is not None)
            root_opcode = called.root.opcode
            if root_opcode == "bitcast" and called.root.operands:
                root_opcode = called.instructions[called.root.operands[0]].opcode
            label = label or next((name for i in inside if (name := self._frames.label(i.attributes))), "")
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
            if part.opcode in _FREE or part.opcode in _MOVES or part.opcode in _COLLECTIVES:
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
        partitions = re.search(r'"outer_dimension_partitions":\[([^\]]*)\]', shown.attributes)
        threads = math.prod(int(n) for n in re.findall(r"\d+", partitions[1])) if partitions else 1
        return Kernel(
            kind, label, count, moved, elements, transcendentals, products,
            int(cycles[1]) if cycles else None, opcode if called is None else f"fusion:{root_opcode}", group, threads,
        )  # fmt: skip

    def _fusion_bytes(self, computation: Computation, fusion: Instruction, called: Computation) -> int:
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

    def custom_calls(self) -> list[str]:
        """Return the names of what the program calls outside itself."""
        calls = {
            _target(instruction)
            for computation in self.computations.values()
            for instruction in computation.instructions.values()
            if instruction.opcode == "custom-call"
        }
        return sorted(calls - _FREE_CALLS - {""})

    def collectives(self) -> list[Kernel]:
        """Return the collectives of a step, with the bytes that a device contributes."""
        return [kernel for kernel in self.kernels() if kernel.kind == "collective"]


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


def _target(instruction: Instruction) -> str:
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
    if instruction.opcode == "dot" or _target(instruction).startswith(("__cublas$", "__onednn$matmul")):
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
    if instruction.opcode == "convolution" or _target(instruction).startswith("__cudnn$conv"):
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


# Frames of these functions say what a kernel is for; the innermost call of a module says which layer it is.
_PARTS = (
    (re.compile(r"^Objective\.totals$|^_?silence"), "loss"),
    (re.compile(r"^make_train_step\.<locals>\.step$"), "optimizer"),
    (re.compile(r"^(Device|Stream)Feed\.|^Order\.|^prepare$"), "input"),
    (re.compile(r"^make_gradient\.<locals>\.of_part\.<locals>\.of_microbatch$"), "gradient"),
    (re.compile(r"^make_(train|eval)_chunk"), "loop"),
    (re.compile(r"^random_(crop|flip)"), "augmentation"),
)
_LAYER = re.compile(r"^([A-Za-z]\w*)\.__call__$")


class _Frames:
    """The tables of stack frames at the head of a program's text."""

    def __init__(self, text: str) -> None:
        head = text[: text.find("\n%")] if "\n%" in text else text
        self._functions = {
            int(n): name for n, name in re.findall(r'^(\d+) "([^"]*)"$', _section(head, "FunctionNames"), re.MULTILINE)
        }
        self._locations = {
            int(n): int(function)
            for n, function in re.findall(
                r"^(\d+) \{[^}]*?function_name_id=(\d+)", _section(head, "FileLocations"), re.MULTILINE
            )
        }
        self._frames = {
            int(n): (int(location), int(parent))
            for n, location, parent in re.findall(
                r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)", _section(head, "StackFrames"), re.MULTILINE
            )
        }
        self._labels: dict[int, str] = {}

    def label(self, attributes: str) -> str:
        """Return the layer, or the part of the step, that an instruction comes from; "" if that is not known."""
        found = re.search(r"stack_frame_id=(\d+)", attributes)
        if found is None:
            return ""
        frame = int(found[1])
        if frame not in self._labels:
            self._labels[frame] = self._find(frame)
        return self._labels[frame]

    def _find(self, frame: int) -> str:
        names = []
        while frame in self._frames and len(names) < 64:
            location, parent = self._frames[frame]
            names.append(self._functions.get(self._locations.get(location, 0), ""))
            frame = parent - 1  # the text counts parents from 1, and 0 is none
        if any(name.endswith("make_loss.<locals>.loss.<locals>.forward") for name in names):
            return next((found[1] for name in names if (found := _LAYER.match(name))), "model")
        return next((part for name in names for pattern, part in _PARTS if pattern.match(name)), "")


def _section(text: str, title: str) -> str:
    start = text.find(f"\n{title}\n")
    if start < 0:
        return ""
    end = text.find("\n\n", start)
    return text[start : end if end > 0 else len(text)]
