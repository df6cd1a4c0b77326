"""A snapshot of a state's arrays, with a checksum of each, while the training goes on."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from accelnet.data.order import mix
from accelnet.parallel.memory import fetched
from accelnet.training.manifest import DamagedError


def snapshot(arrays: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Return arrays that the next chunk of steps does not write into, and a checksum of each; not waited for.

    On the CPU, where the host's view of an array is the array itself, they are copies. Elsewhere Orbax copies them to
    the host before it returns.
    """
    first = next(iter(arrays.values()))
    mesh = first.sharding.mesh if isinstance(first.sharding, NamedSharding) else None
    same = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    if not is_on_cpu(arrays):
        return arrays, jax.jit(_checksums, out_shardings=same)(arrays)
    # One program for both: it is not waited for, where copies alone would be.
    where = {name: array.sharding for name, array in arrays.items()}
    return jax.jit(_copies_and_checksums, out_shardings=(where, same))(arrays)


def verified(arrays: dict[str, jax.Array], expected: dict[str, int]) -> dict[str, jax.Array]:
    """Return arrays that were read, if their checksums are those that were saved.

    Raises:
        DamagedError: if one is not; all processes see it.
    """
    arrays, checksums = snapshot(arrays)
    for name, checksum in fetched(checksums).items():
        if checksum != expected[name]:
            raise DamagedError(f"the checksum of {name} is wrong")
    return arrays


def is_on_cpu(arrays: dict[str, jax.Array]) -> bool:
    """Say whether arrays lie in the host's memory."""
    return next(iter(next(iter(arrays.values())).sharding.device_set)).platform == "cpu"


def _copies_and_checksums(arrays: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    return {name: jnp.copy(array) for name, array in arrays.items()}, _checksums(arrays)


def _checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _checksum(array) for name, array in arrays.items()}


@jax.jit  # traced once for all arrays of one shape
def _checksum(array: jax.Array) -> jax.Array:
    """Hash every value with its position and add up: the same however the array is cut over devices and hosts."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(jnp.uint32)
    position = jnp.zeros(array.shape, jnp.uint32)
    for axis, length in enumerate(array.shape):
        position = position * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return jnp.sum(mix(bits ^ mix(position)), dtype=jnp.uint32)
