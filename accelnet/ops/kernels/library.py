"""The kernels' library: of the wheel, or compiled on this machine, once, into the user's cache; XLA knows it then."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jax

from accelnet.cache import UNFINISHED, check_place, in_turn, private_directory, write_private
from accelnet.ops.kernels.compiler import FLAGS, PARTS, SOURCES, compile_library, find_compiler, output_of
from accelnet.ops.kernels.shipped import DIRECTORY, shipped_kinds
from accelnet.terminal import say

TARGETS = (
    "accelnet_convolve",
    "accelnet_kernel_gradient",
    "accelnet_prepare",
    "accelnet_chain",
    "accelnet_max_pool",
    "accelnet_max_pool_backward",
    "accelnet_multiply",
    "accelnet_take_rows",
    "accelnet_recur",
    "accelnet_recur_backward",
    "accelnet_multiply_rounded",
    "accelnet_convolve_rounded",
    "accelnet_recur_rounded",
)
_FUNCTIONS = (
    "accelnet_most_bytes",
    "accelnet_has_bfloat16",
    "accelnet_prepared_size",
    "accelnet_chain_make",
    "accelnet_chain_call",
    "accelnet_chain_free",
)


def load() -> bool:
    """Load the kernels, compiling them if this machine has not done so yet, and register them with XLA's CPU client.

    The first call of a process counts. A wheel that carries kernels for this processor needs no compiler. Else it is
    $CXX, c++, g++, clang++ or that of the package ziglang; it runs for 6 to 25 seconds on two cores, once per version
    of accelnet, of jaxlib and of the compiler and per kind of processor.

    Returns:
        False where ACCELNET_KERNELS is "xla", and, said once on standard error, where there is no compiler or it fails:
        programs then consist of XLA's own operations.

    Example:
        >>> load() == (_library() is not None)
        True
    """
    return _library() is not None


def origin() -> str:
    """Describe where the kernels come from.

    Example:
        >>> "kernels" in origin()
        True
    """
    library = _library()
    if library is None:
        return "no kernels: XLA's operations take longer"
    path = Path(library._name)
    return f"the wheel's kernels for {path.stem}" if path.parent == DIRECTORY else f"kernels compiled here ({path})"


def most_bytes() -> int:
    """Return the most bytes that the kernels have had in this process, beside their operands and results.

    Each thread of XLA's pool counts with what one of them had, whether it took part or not.

    Example:
        >>> most_bytes() >= 0
        True
    """
    library = _library()
    return library.accelnet_most_bytes() if library is not None else 0


def multiplies_bfloat16() -> bool:
    """Say whether the kernels multiply numbers of bfloat16: they can, and this processor does so faster than float32.

    AMD's multiply twice as many numbers of bfloat16 as of float32 in a cycle. Intel's multiply as many of either, and
    float32 needs no rounding before.

    Example:
        >>> multiplies_bfloat16() <= can_multiply_bfloat16()
        True
    """
    return can_multiply_bfloat16() and "GenuineIntel" not in _processor()


def can_multiply_bfloat16() -> bool:
    """Say whether there are kernels that multiply numbers of bfloat16: this processor has AVX512-BF16.

    Example:
        >>> can_multiply_bfloat16() in (False, True)
        True
    """
    library = _library()
    return library is not None and library.accelnet_has_bfloat16()


def prepared_size(numbers: Sequence[int]) -> int:
    """Return how many numbers the weights of a member have once they are prepared, 0 if nothing is won by that.

    Args:
        numbers: Settings of "accelnet_prepare", see kernels.cc.

    Raises:
        RuntimeError: where there are no kernels.

    Example:
        >>> prepared_size((0, 0, 3, 64)) >= 3 * 64 if load() else True
        True
    """
    return loaded().accelnet_prepared_size((ctypes.c_int64 * len(numbers))(*numbers), len(numbers))


def loaded() -> ctypes.CDLL:
    """Return the library, whose functions are called without XLA.

    Raises:
        RuntimeError: where there are no kernels.

    Example:
        >>> loaded().accelnet_most_bytes() >= 0 if load() else True
        True
    """
    library = _library()
    if library is None:
        raise RuntimeError("there are no kernels")
    return library


@functools.cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get("ACCELNET_KERNELS") == "xla":
        return None
    return _shipped() or _own()


def _shipped() -> ctypes.CDLL | None:
    """Load the best library of the wheel that this processor can run."""
    for kind in shipped_kinds():
        try:
            return _registered(ctypes.CDLL(str(DIRECTORY / f"{kind}.so")))
        except (OSError, AttributeError, jax.errors.JaxRuntimeError) as error:
            say(f"accelnet: the wheel's CPU kernels for {kind} do not load: {str(error).splitlines()[0]}")
    return None


def _own() -> ctypes.CDLL | None:
    """Load the library that is compiled on this machine."""
    compiler = find_compiler()
    if compiler is None:
        _say("found no C++ compiler ($CXX, c++, g++, clang++, or pip install ziglang)")
        return None
    try:
        return _registered(_loaded_or_compiled(compiler))
    except (OSError, subprocess.SubprocessError) as error:
        _say(f"the CPU kernels could not be compiled or loaded: {error}")
        return None


def _registered(library: ctypes.CDLL) -> ctypes.CDLL:
    """Register the library's kernels with XLA."""
    for target in TARGETS:
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    library.accelnet_most_bytes.restype = ctypes.c_int64
    library.accelnet_has_bfloat16.restype = ctypes.c_bool
    library.accelnet_prepared_size.restype = ctypes.c_int64
    library.accelnet_prepared_size.argtypes = (ctypes.POINTER(ctypes.c_int64), ctypes.c_size_t)
    numbers, count = ctypes.POINTER(ctypes.c_int64), ctypes.c_size_t
    pointers = ctypes.POINTER(ctypes.c_void_p)
    library.accelnet_chain_make.restype = ctypes.c_void_p
    library.accelnet_chain_make.argtypes = (
        numbers, count, numbers, pointers, count, count, ctypes.c_int64, numbers, ctypes.c_int64,
    )  # fmt: skip
    library.accelnet_chain_call.restype = None
    library.accelnet_chain_call.argtypes = (ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 6)
    library.accelnet_chain_free.restype = None
    library.accelnet_chain_free.argtypes = (ctypes.c_void_p,)
    return library


def share(cache: str | os.PathLike[str]) -> None:
    """Put this process's kernels, compiled if need be, into another cache directory: one to measure or test with.

    Args:
        cache: Directory that $XDG_CACHE_HOME will name; nothing of accelnet's is there yet.

    Example:
        >>> share(tempfile.mkdtemp())
    """
    directory = private_directory("kernels")
    if load() and directory is not None:
        (Path(cache) / "accelnet").mkdir(mode=0o700, parents=True)
        (Path(cache) / "accelnet" / "kernels").symlink_to(directory)


def _say(what: str) -> None:
    say(
        f"accelnet: {what}; convolutions and recurrence on the CPU consist of XLA's operations and take longer. "
        "ACCELNET_KERNELS=xla chooses them without this line."
    )


def _loaded_or_compiled(compiler: tuple[str, ...]) -> ctypes.CDLL:
    """Load the library from the cache, or from a directory of this process alone where there is no cache."""
    version = output_of([*compiler, "--version"])
    sources = sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cc")])
    facts = (
        version,
        FLAGS,
        PARTS,
        metadata.version("jaxlib"),
        _processor(),
        *(source.read_text() for source in sources),
    )
    key = _hash(repr(facts).encode())
    directory = private_directory("kernels")
    if directory is not None:
        if library := _kept(directory, key):
            return library
        with in_turn(directory, "accelnet: waiting for another process, which compiles the CPU kernels"):
            return _kept(directory, key) or _made(directory, key, compiler)
    check_place(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix="accelnet-kernels-") as own:  # what is loaded stays without its file
        return _made(Path(own), key, compiler)


def _kept(directory: Path, key: str) -> ctypes.CDLL | None:
    """Load the library of a key, if it is whole: its name holds the hash of its content."""
    for path in directory.glob(f"{key}-*.so"):
        if path.stem == f"{key}-{_hash(path.read_bytes())}" and not _lacking(library := ctypes.CDLL(str(path))):
            return library
        say(f"accelnet: {path} is damaged and is made again")
        path.unlink(missing_ok=True)
    return None


def _made(directory: Path, key: str, compiler: tuple[str, ...]) -> ctypes.CDLL:
    """Compile the library into a private directory, and load it."""
    say("accelnet: compiling the CPU kernels, once (6 to 25 seconds)")
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=directory) as unfinished:
        output = Path(unfinished) / "kernels.so"
        compile_library(compiler, jax.ffi.include_dir(), "native", output)
        content = output.read_bytes()
    path = directory / f"{key}-{_hash(content)}.so"
    write_private(path, content)
    library = ctypes.CDLL(str(path))
    if lacking := _lacking(library):
        path.unlink(missing_ok=True)
        raise OSError(f"what {shlex.join(compiler)} made lacks {', '.join(lacking)}")
    return library


def _lacking(library: ctypes.CDLL) -> list[str]:
    return [name for name in (*TARGETS, *_FUNCTIONS) if not hasattr(library, name)]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


@functools.cache
def _processor() -> str:
    """Say what -march=native depends on, and who made the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    told = ("vendor_id", "flags", "Features", "model name")
    return "".join(sorted({line for line in lines if line.split("\t")[0] in told}))
