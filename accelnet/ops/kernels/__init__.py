"""Kernels for the CPU, written in C++ and called by XLA's programs.

`call` makes a kernel an operation of JAX with a plain meaning beside it: a function of JAX that computes the same. The
kernel is taken where a program is lowered for CPUs, one device at a time, and the library is there; everywhere else
(exports, which must run elsewhere; programs that XLA partitions, which it can partition; derivatives; machines without
a compiler) the meaning is. Kernels compute in float32, some with products of bfloat16 (`bfloat16.h`), and round like no
other program: see `product.h`.

Every operand and result has a leading axis of members, 1 where members share it, so that vmap is one more of them.
"""

from accelnet.ops.kernels.call import NAME as NAME
from accelnet.ops.kernels.call import Kernel as Kernel
from accelnet.ops.kernels.call import Meaning as Meaning
from accelnet.ops.kernels.call import Rounding as Rounding
from accelnet.ops.kernels.call import call as call
from accelnet.ops.kernels.call import call_library as call_library
from accelnet.ops.kernels.call import meaning_of as meaning_of
from accelnet.ops.kernels.call import with_kernels as with_kernels
from accelnet.ops.kernels.library import TARGETS as TARGETS
from accelnet.ops.kernels.library import load as load
from accelnet.ops.kernels.library import most_bytes as most_bytes
from accelnet.ops.kernels.library import multiplies_bfloat16 as multiplies_bfloat16
from accelnet.ops.kernels.library import prepared_size as prepared_size
from accelnet.ops.kernels.library import share as share
