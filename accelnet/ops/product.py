"""Products with one meaning and, on the CPU, compiled kernels where they are faster than XLA's."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from accelnet.ops import kernels
from accelnet.ops.symbolic import is_below

# Fewer multiplications than these stay XLA's: it makes one kernel of all members' products, and one function of a whole
# loop that has no call. For 1,024 members with [4 x 2] times [2 x 3] it took a fifth of the compiled kernel's time, for
# 256 with [16 x 16] times [16 x 16] 1.2 times, 3.5 for the kernels' gradient (`scripts/bench_ops.py --products`).
_FEWEST = 1024
_TYPES = (jnp.float32, jnp.bfloat16)


class _Multiply(NamedTuple):
    """The product of two matrices, each as it is or transposed (hashable)."""

    lhs_transposed: bool
    rhs_transposed: bool
    precision: Any = None

    def __call__(self, lhs: Array, rhs: Array) -> tuple[Array]:
        axes = ((0 if self.lhs_transposed else 1,), (1 if self.rhs_transposed else 0,))
        return (lax.dot_general(lhs, rhs, (axes, ((), ())), precision=self.precision),)

    def cotangent(self, position: int) -> tuple[kernels.Kernel, bool]:
        """Give the kernel of an operand's cotangent, and whether it takes the result's cotangent second."""
        left, right = self.lhs_transposed, self.rhs_transposed
        second = left if position == 0 else not right
        flags = {
            (0, False): (False, not right),  # g b'
            (0, True): (right, True),  # b g', of a transposed
            (1, True): (not left, False),  # a' g
            (1, False): (True, left),  # g' a, of b transposed
        }[position, second]
        return self._replace(lhs_transposed=flags[0], rhs_transposed=flags[1]).kernel, second

    def by_kernel(self, lhs: Array, rhs: Array) -> Array:
        """Multiply float32 or bfloat16 by the kernel, where there is enough to multiply."""
        multiplications = lhs.size * rhs.shape[0 if self.rhs_transposed else 1]
        few = is_below(multiplications, _FEWEST)
        (product,) = self(lhs, rhs) if few else kernels.call(self.kernel, lhs, rhs)
        return product

    @property
    def kernel(self) -> kernels.Kernel:
        """The kernel that computes it."""
        return kernels.Kernel("accelnet_multiply", (int(self.lhs_transposed), int(self.rhs_transposed)), self)


def dot_general(
    lhs: Array,
    rhs: Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    **settings: Any,
) -> Array:
    """Multiply `lhs` by `rhs`, a drop-in for `jax.lax.dot_general`, as in `nnx.Linear(..., dot_general=dot_general)`.

    XLA's CPU programs take 1.1 to 1.8 times as long as the compiled kernels for the products of a population, [members,
    m, k] by [members, k, n] under `vmap`, and twice as long for the kernels' gradient of a layer with few outputs; for
    others the two are equal (`scripts/bench_ops.py --products`). So the product of float32 [..., k] by [k, n], or by
    [n, k] contracted over its second axis, is a kernel's on the CPU, and so are its gradients. Everything else, and all
    on every other platform, is `jax.lax`'s own. Works under jit, vmap, grad, jvp, scan and remat.

    Args:
        lhs: as in jax.lax.
        rhs: as in jax.lax.
        dimension_numbers: as in jax.lax.
        precision: as in jax.lax.
        preferred_element_type: as in jax.lax.
        **settings: `out_sharding`, as in jax.lax; other than None gets XLA's own product.

    Returns:
        The product, as of jax.lax.

    Raises:
        TypeError: what jax.lax.dot_general raises for the same arguments.

    Example:
        >>> dot_general(jnp.ones((2, 3)), jnp.ones((3, 5)), (((1,), (0,)), ((), ()))).shape
        (2, 5)
    """
    native = functools.partial(
        lax.dot_general,
        dimension_numbers=dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **settings,
    )
    (lhs_axes, rhs_axes), (lhs_batch, rhs_batch) = dimension_numbers
    is_plain = (
        not (lhs_batch or rhs_batch)
        and lhs.ndim >= 2 == rhs.ndim
        and tuple(lhs_axes) == (lhs.ndim - 1,)
        and len(rhs_axes) == 1
        and lhs.dtype == rhs.dtype
        and lhs.dtype in _TYPES
        and preferred_element_type in (None, lhs.dtype)
        and not any(setting is not None for setting in settings.values())
    )
    if not is_plain:
        return native(lhs, rhs)
    out = jax.eval_shape(native, lhs, rhs)  # jax.lax's own checks
    multiply = _Multiply(False, bool(rhs_axes[0]), tuple(precision) if isinstance(precision, list) else precision)
    return multiply.by_kernel(lhs.reshape(math.prod(lhs.shape[:-1]), lhs.shape[-1]), rhs).reshape(out.shape)


def transposed_product(lhs: Array, rhs: Array) -> Array:
    """Return lhs' rhs of [k, m] and [k, n], [m, n]: the gradient of a layer's weights, with a depth of all examples.

    Example:
        >>> transposed_product(jnp.ones((3, 2)), jnp.ones((3, 4))).shape
        (2, 4)
    """
    multiply = _Multiply(True, False)
    return multiply.by_kernel(lhs, rhs) if lhs.dtype == rhs.dtype and lhs.dtype in _TYPES else multiply(lhs, rhs)[0]
