import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from accelnet.models.initialization import he_normal


def test_kernels_hold_flaxs_numbers():
    key = jax.random.key(3)
    for shape in ((3, 3, 2, 5), (6, 4)):
        np.testing.assert_array_equal(he_normal(key, shape), nnx.initializers.he_normal()(key, shape))
    assert he_normal(key, (3, 3, 2, 5), jnp.bfloat16).dtype == jnp.bfloat16
