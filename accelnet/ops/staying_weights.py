"""Programs whose weights stay: what the weights alone decide is computed once, and not at every call."""

from typing import Any

import jax

# Of a kind that the caches of `jax.jit` look at: what was traced for training is traced anew.
_stay = jax.make_user_context(False)


def weights_stay() -> Any:
    """Return a context in which programs are traced whose weights will stay, as `Prepared` has them.

    Example:
        >>> with weights_stay():
        ...     do_weights_stay()
        True
    """
    return _stay(True)


def do_weights_stay() -> bool:
    """Say whether the program that is traced is one whose weights stay.

    Example:
        >>> do_weights_stay()
        False
    """
    return bool(_stay.value)
