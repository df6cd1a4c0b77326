"""A function that is compiled once, ahead of time, for fixed shapes."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.core import ShapedArray
from jax.sharding import Mesh, PartitionSpec

from accelnet import runtime
from accelnet.parallel.layout import ONE_DEVICE, Layout
from accelnet.parallel.memory import check_program

Tree = Any

# A GPU adds what it scatters in any order, and is tuned anew in every process.
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}


class RecompilationError(RuntimeError):
    """Report that a program got operands it was not compiled for."""


@dataclass(eq=False)
class Program:
    """A function compiled once, ahead of time, for fixed shapes. A call with any others is an error.

    Args:
        name: Name in messages.
        function: Function to compile.
        operands: Its abstract arguments (`jax.ShapeDtypeStruct`s).
        donate: Positions of arguments whose buffers the program may reuse.
        out_shardings: Places of the results, as of `jax.jit`; None leaves them to the compiler.
        runs_once: Whether compiling it quickly counts for more than how fast it runs.
        deterministic: Whether it must give the same bits in every run on a GPU; other devices' programs do anyway.

    Example:
        >>> double = Program("double", lambda x: 2 * x, (jax.ShapeDtypeStruct((2,), np.float32),))
        >>> double(np.ones(2, np.float32)).tolist()
        [2.0, 2.0]
        >>> double(np.ones(3, np.float32))
        Traceback (most recent call last):
        accelnet.training.compiled.RecompilationError: program 'double' would have to be compiled again:
          argument 0: float32[3], compiled for float32[2]
    """

    name: str
    function: Callable[..., Any]
    operands: tuple[Any, ...]
    donate: tuple[int, ...] = ()
    out_shardings: Any = None
    runs_once: bool = False
    deterministic: bool = False
    compiles: int = field(default=0, init=False)
    compile_seconds: float = field(default=0.0, init=False)
    _begun: Future[Any] | None = field(default=None, init=False)

    @cached_property
    def traced(self) -> Any:
        """The program as its operations (`jax.stages.Traced`); what cannot be traced shows here."""
        jitted = jax.jit(self.function, donate_argnums=self.donate, out_shardings=self.out_shardings)
        return jitted.trace(*self.operands)

    @cached_property
    def lowered(self) -> Any:
        """The program before compilation (`jax.stages.Lowered`)."""
        return self.traced.lower()

    def begin_compiling(self) -> None:
        """Lower the program, and let a thread compile it, for which `compiled` waits.

        XLA compiles without Python's lock, and mostly on one core: meanwhile another program is traced, or compiled.
        """
        is_off = jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
        if self.compiles or self._begun is not None or is_off:
            return
        runtime.prepare()
        thread = ThreadPoolExecutor(1, f"compile-{self.name}")
        self._begun = thread.submit(self._compile, self.lowered)
        thread.shutdown(wait=False)

    def _compile(self, lowered: Any) -> Any:
        platform, options = devices_of(self.operands)[0].platform, {}
        if self.runs_once and platform == "cpu":
            # What costs the time of a compilation is LLVM's third level, which changes no bit of a start's arrays.
            options["xla_backend_optimization_level"] = 1
        if self.deterministic and platform == "gpu":
            options |= DETERMINISTIC
        return lowered.compile(options or None)

    @cached_property
    def compiled(self) -> Any:
        """The compiled program (`jax.stages.Compiled`)."""
        runtime.prepare()
        start = time.perf_counter()
        compiled = self._compile(self.lowered) if self._begun is None else self._begun.result()
        runtime.return_freed_memory()
        self.compile_seconds += time.perf_counter() - start
        self.compiles += 1
        return compiled

    @property
    def num_bytes(self) -> int:
        """Memory of a device that a call takes, by the compiled program's own count."""
        memory = self.compiled.memory_analysis()
        needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        return needed + memory.output_size_in_bytes - memory.alias_size_in_bytes

    @cached_property
    def _callable(self) -> Any:
        """The compiled program, when it is known that memory has room for a call."""
        check_program(self.name, self.compiled.memory_analysis(), devices_of(self.operands))
        return self.compiled

    @cached_property
    def _expected(self) -> tuple[Any, list[tuple[tuple[int, ...], Any]]]:
        leaves, structure = jax.tree.flatten(self.operands)
        return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]

    def __call__(self, *operands: Any) -> Any:
        if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
            return self.function(*operands)
        compiled = self._callable
        leaves, structure = jax.tree.flatten(operands)
        if (structure, [(leaf.shape, leaf.dtype) for leaf in leaves]) != self._expected:
            raise RecompilationError(
                f"program {self.name!r} would have to be compiled again:\n  "
                + "\n  ".join(_differences(self.operands, operands))
            )
        try:
            return self._run(compiled, operands)
        except FloatingPointError as error:  # of jax_debug_nans
            raise FloatingPointError(
                f"program {self.name!r} made a NaN. With JAX_DISABLE_JIT=1 beside JAX_DEBUG_NANS=1 it runs operation "
                "by operation, slowly, and the traceback names the one that made it"
            ) from error
        except ValueError as error:  # a sharding or layout that is not the compiled one
            raise RecompilationError(f"program {self.name!r} would have to be compiled again:\n  {error}") from error

    def _run(self, compiled: Any, operands: tuple[Any, ...]) -> Any:
        results = compiled(*operands)
        # What it starts is read at once, and that waits for ever where there was no memory for it: see `fetched`.
        return jax.block_until_ready(results) if self.runs_once else results


@dataclass(eq=False)
class PmapProgram(Program):
    """A `Program` that `jax.pmap` replicates over the mesh's axis "data"; arguments and results are ordinary arrays.

    Args:
        layout: Layout with the mesh.
        cuts: How the mesh cuts an argument, by position; all others are the same on every device.
    """

    layout: Layout = ONE_DEVICE
    cuts: dict[int, PartitionSpec] = field(default_factory=dict)

    @cached_property
    def _parts(self) -> jax.Array:
        """What pmap maps over: it wants one argument with a leading axis of devices."""
        numbers = np.arange(self.layout.num_devices, dtype=np.int32)
        sharding = self.layout.sharding(PartitionSpec("data"))
        assert sharding is not None
        return jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])

    @cached_property
    def _to_front(self) -> dict[int, Callable[[Tree], Tree]]:
        """Put the devices' parts of an argument behind a leading axis of devices."""
        mesh, front = self.layout.mesh, PartitionSpec("data")
        return {
            position: jax.jit(
                jax.shard_map(
                    lambda tree: jax.tree.map(lambda a: a[None], tree), mesh=mesh, in_specs=cut, out_specs=front
                )
            )
            for position, cut in self.cuts.items()
        }

    @cached_property
    def lowered(self) -> Any:
        assert isinstance(self.layout.mesh, Mesh)
        mapped = [0 if position in self.cuts else None for position in range(len(self.operands))]
        replicated = jax.pmap(
            lambda _, *operands: self.function(*operands),
            axis_name="data",
            in_axes=(0, *mapped),
            out_axes=None,
            donate_argnums=tuple(position + 1 for position in self.donate),
            devices=list(self.layout.mesh.devices.flat),
        )
        operands = [
            jax.eval_shape(self._to_front[position], operand) if position in self.cuts else operand
            for position, operand in enumerate(self.operands)
        ]
        # With several processes pmap takes shapes for those of one process, abstract values for those of all.
        parts, *operands = jax.tree.map(lambda leaf: ShapedArray(leaf.shape, leaf.dtype), (self._parts, *operands))
        return replicated.lower(parts, *operands)

    def _run(self, compiled: Any, operands: tuple[Any, ...]) -> Any:
        fronted = [
            self._to_front[position](operand) if position in self.cuts else operand
            for position, operand in enumerate(operands)
        ]
        return compiled(self._parts, *fronted)


def devices_of(shapes: Tree) -> list[Any]:
    """Return the devices of this process on which arrays of these shapes lie."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(shapes))
    found = next((one for one in shardings if one is not None), None)
    return jax.local_devices()[:1] if found is None else list(found.addressable_devices)


def _differences(expected: tuple[Any, ...], given: tuple[Any, ...]) -> list[str]:
    def described(tree: Any) -> dict[str, str]:
        return {
            f"argument {path[0].idx}{jax.tree_util.keystr(path[1:])}": f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }

    old, new = described(expected), described(given)
    return [
        f"{path}: {new.get(path, 'nothing')}, compiled for {old.get(path, 'nothing')}"
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    ]
