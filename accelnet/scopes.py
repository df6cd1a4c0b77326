"""Names for the parts of a program, by which its compiled form can be read."""

import re
from contextlib import AbstractContextManager
from typing import Any

import jax

# Tells these names from those that JAX gives: "jit(chunk)/while/body/an.gradient/jvp(an.model)/an.Linear/dot_general".
_PREFIX = "an."
# Parts of a step that readers of a program treat in their own way: what runs around the steps, and what runs
# once, after a loss that was not finite.
LOOP, FAILURE = "loop", "failure"


def scope(name: str) -> AbstractContextManager[Any]:
    """Name the operations that are traced inside; this changes their metadata alone.

    Args:
        name: Letters, digits and underscores: a part of the step, or the class of a layer.

    Example:
        >>> with scope("loss"):
        ...     total = jax.numpy.ones(3).sum()
    """
    return jax.named_scope(_PREFIX + name)


def layer_scope(layer: Any, path: str) -> AbstractContextManager[Any]:
    """Name the operations of a layer by its class and its path in the model, which may be empty.

    Example:
        >>> with layer_scope([], "layers.0"):
        ...     total = jax.numpy.ones(3).sum()
    """
    kind = type(layer).__name__
    # After a point, so that no part of a path is taken for a scope.
    return scope(f"{kind}.{path}" if path else kind)


def classes(scopes: str) -> str:
    """Return scopes joined by "/" without what tells them from others: of layers, the classes.

    Example:
        >>> classes("an.model/an.Linear.layers.0/mine.own")
        'model/Linear/mine.own'
    """
    names = (name.split(".")[1] if name.startswith(_PREFIX) else name for name in scopes.split("/"))
    return "/".join(names)


def layer_of(op_name: str) -> str:
    """Return the innermost layer that an instruction was traced in, or the part of the step, "" if there is none.

    Args:
        op_name: As of `innermost`.

    Example:
        >>> layer_of("jit(chunk)/an.gradient/transpose(jvp(an.model))/an.MLP/an.Linear.layers.0/dot_general")
        'layers.0 (Linear)'
        >>> layer_of("jit(chunk)/an.optimizer/mul")
        'optimizer'
    """
    names = re.findall(rf"(?<![\w.]){re.escape(_PREFIX)}([A-Za-z]\w*)(?:\.([^/()]*))?", op_name)
    kind, path = names[-1] if names else ("", "")
    return f"{path} ({kind})" if path else kind


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
