"""How XLA's CPU compiler treats loops over little data: as one function, and not as a list of kernels to start.

A kernel costs more to start than a tiny network's operations take: 60 of them make a step of the XOR network.
"""

import os

OPTION = "xla_cpu_small_while_loop_byte_threshold"
# XLA's own is 1 KiB. The XOR network's step takes 0.24 us from 8 KiB on and 1.16 below; MLPs from 4-8-3 to 64-128-10
# took as long with 1 KiB as with 1 GiB (two cores, AMD EPYC, jax 0.10.2): their products stay kernels either way.
_BYTES = 1 << 15


def compile_small_loops() -> bool:
    """Have XLA's CPU compiler make one function of every loop that touches less than 32 KiB in a turn.

    `import accelnet` does so, by adding an option to XLA_FLAGS, which processes that it starts inherit. XLA reads them
    when the first program is compiled; after that nothing changes any more.

    Returns:
        True if the option was added; False where XLA_FLAGS sets it or another one of its kind already.
        `XLA_FLAGS=--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1024` is XLA's own choice.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, XLA_FLAGS=f"--xla_backend_extra_options={OPTION}=1024"):
        ...     compile_small_loops()
        False

    Source: original.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_backend_extra_options" in flags:
        return False
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_extra_options={OPTION}={_BYTES}".strip()
    return True


compile_small_loops()  # on import, so that it comes before the first program
