"""Names for the parts of a program, by which its compiled form can be read."""

import re
from contextlib import AbstractContextManager
from typing import Any

import jax

# Tells these names from those that JAX gives: "jit(chunk)/while/body/an.gradient/jvp(an.model)/an.Linear/dot_general".
_PREFIX = "an."


def scope(name: str) -> AbstractContextManager[Any]:
    """Name the operations that are traced inside; this changes their metadata alone.

    Args:
        name: Letters, digits and underscores: a part of the step, or the class of a layer.

    Example:
        >>> with scope("loss"):
        ...     total = jax.numpy.ones(3).sum()
    """
    return jax.named_scope(_PREFIX + name)


def innermost(op_name: str) -> str:
    """Return the innermost scope that an instruction of a compiled program was traced in, "" if there is none.

    Args:
        op_name: Metadata of the instruction. JAX's transformations may wrap the names of scopes. Private classes, whose
            names begin with an underscore, belong to the scope around them.

    Example:
        >>> innermost("jit(chunk)/while/body/an.gradient/transpose(jvp(an.model))/an.Linear/dot_general")
        'Linear'
    """
    names = re.findall(rf"(?<![\w.]){re.escape(_PREFIX)}([A-Za-z]\w*)", op_name)
    return names[-1] if names else ""
