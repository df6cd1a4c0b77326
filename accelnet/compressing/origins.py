"""Which element of which parameter stands where in an array that a program made of it."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class ParameterElements(NamedTuple):
    """Say of which elements of a parameter an array consists.

    Attributes:
        path: Path of the parameter, joined by dots.
        shape: Shape of the parameter.
        indices: For every element of the array the number of the parameter's, row by row, of the array's shape.
        stride: For an array that is one of many, as the body of a loop over layers sees them, how many elements further
            the next one begins; the indices are those of the first. 0 for an array that is not.
    """

    path: str
    shape: tuple[int, ...]
    indices: np.ndarray
    stride: int = 0


class Use(NamedTuple):
    """Say which part of a parameter a product multiplies its inputs by.

    Attributes:
        path: Path of the parameter, joined by dots.
        axes: Axes of the parameter that are contracted.
        indices: Elements of the parameter as matrices, int [groups, features, outputs].
        order: Features of the program's operand, in the order that the parameter has them in.
    """

    path: str
    axes: tuple[int, ...]
    indices: np.ndarray
    order: np.ndarray


def origin_of(path: str, shape: tuple[int, ...]) -> ParameterElements:
    """Return the origin of a parameter itself.

    Example:
        >>> origin_of("kernel", (2, 3)).indices.tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    return ParameterElements(path, tuple(shape), np.arange(math.prod(shape), dtype=np.int32).reshape(shape))


def moved(origin: ParameterElements, primitive: str, params: Mapping[str, Any]) -> list[ParameterElements] | None:
    """Return the origins of the results of an operation that only moves elements; None of one that changes them.

    Args:
        origin: Origin of its operand.
        primitive: Name of the operation.
        params: Its parameters.

    Example:
        >>> (result,) = moved(origin_of("kernel", (2, 3)), "transpose", {"permutation": (1, 0)})
        >>> result.indices.tolist()
        [[0, 3], [1, 4], [2, 5]]
    """
    if primitive not in _MOVES:
        return None
    found = _MOVES[primitive](origin.indices, params)
    return [origin._replace(indices=one) for one in (found if isinstance(found, list) else [found])]


def use_of(origin: ParameterElements, indices: np.ndarray) -> Use | None:
    """Find which axes of a parameter a product contracts.

    Args:
        origin: Origin of the product's operand.
        indices: Its indices as matrices, [groups, features, outputs].

    Returns:
        The use; None where it is not a product over whole axes.

    Example:
        >>> kernel = origin_of("kernel", (2, 3, 4))
        >>> use_of(kernel, kernel.indices.reshape(1, 6, 4)).axes
        (0, 1)
    """
    if not indices.size:
        return None
    features = indices[0, :, 0]
    # Every output and every group have their features in the same places.
    if not np.array_equal(indices - indices[:, :1], np.broadcast_to((features - features[0])[:, None], indices.shape)):
        return None
    contracted = _varying(features, origin.shape)
    free = _varying(indices[:, 0].ravel(), origin.shape)
    if contracted & free or math.prod(origin.shape[axis] for axis in contracted) != len(features):
        return None
    # Axes of one element belong to the features before the first axis of outputs, to the outputs behind it.
    first = min(free, default=len(origin.shape) - 1)
    axes = contracted | {axis for axis in range(first) if origin.shape[axis] == 1}
    order = np.argsort(features)
    return Use(origin.path, tuple(sorted(axes)), indices[:, order], order)


def _varying(elements: np.ndarray, shape: tuple[int, ...]) -> set[int]:
    """Return the axes of an array along which some of its elements lie apart."""
    return {axis for axis, where in enumerate(np.unravel_index(elements, shape)) if (where != where[0]).any()}


def _slice(indices: np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
    steps = params["strides"] or (1,) * indices.ndim
    ends = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return indices[tuple(slice(*map(int, one)) for one in ends)]


def _broadcast(indices: np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
    shape = [1] * len(params["shape"])
    for axis, size in zip(params["broadcast_dimensions"], indices.shape, strict=True):
        shape[axis] = size
    return np.broadcast_to(indices.reshape(shape), params["shape"])


def _split(indices: np.ndarray, params: Mapping[str, Any]) -> list[np.ndarray]:
    return np.split(indices, np.cumsum(params["sizes"])[:-1].tolist(), params["axis"])


_MOVES: dict[str, Callable[[np.ndarray, Mapping[str, Any]], np.ndarray | list[np.ndarray]]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": lambda indices, params: indices.reshape(params["new_sizes"]),
    "rev": lambda indices, params: np.flip(indices, params["dimensions"]),
    "slice": _slice,
    "split": _split,
    "squeeze": lambda indices, params: np.squeeze(indices, tuple(params["dimensions"])),
    "transpose": lambda indices, params: np.transpose(indices, params["permutation"]),
} | dict.fromkeys(
    ("convert_element_type", "copy", "copy_p", "name", "optimization_barrier", "reduce_precision"),
    lambda indices, _: indices,
)
