"""Sizes that are known only when the graph runs, as tensors."""

import ast
from collections.abc import Callable, Sequence
from typing import Any

from jax.export import is_symbolic_dim

_OPERATIONS: dict[Any, str] = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Pow: "Pow"}


def is_known(size: Any) -> bool:
    """Say whether a size is a number.

    Example:
        >>> is_known(3)
        True
    """
    return not is_symbolic_dim(size)


def same(one: Any, other: Any) -> bool:
    """Say whether two sizes are equal whatever the symbols stand for.

    Example:
        >>> from jax.export import symbolic_shape
        >>> (batch,) = symbolic_shape("batch")
        >>> same(2 * batch - batch, batch), same(batch, 1)
        (True, False)
    """
    return str(one) == str(other)


def terms(
    size: str, variable: Callable[[str], str], ints: Callable[[Sequence[int]], str], add: Callable[..., str]
) -> str:
    """Write the operations that compute a symbolic size, and return the tensor int64[1].

    Args:
        size: The size as jax prints it, such as "2*b + floordiv(t, 2)".
        variable: Function of a symbol's name that returns its tensor.
        ints: Function that stores constants.
        add: Function that adds an operation.
    """

    def write(node: ast.expr) -> str:
        match node:
            case ast.Name(id=name):
                return variable(name)
            case ast.Constant(value=int(value)):
                return ints([value])
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return add("Neg", write(operand))
            case ast.BinOp(left=left, op=op, right=right):
                return add(_OPERATIONS[type(op)], write(left), write(right))
            case ast.Call(func=ast.Name(id="max" | "min" as name), args=args):
                return add(name.capitalize(), *map(write, args))
            case ast.Call(func=ast.Name(id="mod"), args=[left, right]):
                return add("Mod", write(left), write(right))
            case ast.Call(func=ast.Name(id="floordiv"), args=[left, right]):
                # Sizes' quotients are of numbers >= 0 but for paddings: rounded down, not towards 0.
                one, other = write(left), write(right)
                return add("Div", add("Sub", one, add("Mod", one, other)), other)
        raise NotImplementedError(ast.unparse(node))

    return write(_parsed(size))


def symbols(size: Any) -> set[str]:
    """Return the symbols that a size depends on.

    Example:
        >>> from jax.export import symbolic_shape
        >>> b, t = symbolic_shape("b, t")
        >>> sorted(symbols(b * (t // 2)))
        ['b', 't']
    """
    called = {"max", "min", "mod", "floordiv"}
    return {node.id for node in ast.walk(_parsed(str(size))) if isinstance(node, ast.Name)} - called


def _parsed(size: str) -> ast.expr:
    return ast.parse(size.replace("^", "**"), mode="eval").body
