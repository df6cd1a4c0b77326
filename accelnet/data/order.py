"""Which example is the n-th of the run: a function of (seed, n) alone.

The same code runs inside the compiled step (on device arrays) and on the host (on NumPy arrays, for
streaming), in 32-bit integer arithmetic, so both give the same order to the last example. No permutation is
stored or sorted, so nothing has to be saved to resume and no chunk has to end with the epoch.
"""

from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import jax
import numpy as np

from accelnet.errors import UserError

# A position moves in about half of the rounds, each time to a random place. Over 60,000 examples 12 rounds still leave
# 10 pairs of neighbours together where 1 is expected, 20 leave none too many; each costs 0.1 us per 128 examples.
_ROUNDS = 24


def mix(x: Any) -> Any:
    """Scramble 32 bits, one to one.

    Args:
        x: uint32 array, of NumPy or of JAX.

    Returns:
        uint32 array of the same shape.

    Example:
        >>> mix(np.array([1, 2], np.uint32)).tolist()
        [1364076727, 821347078]

    Source: the finalizer of MurmurHash3 (Appleby, 2011, public domain).
    """
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def permute(position: Any, *, seed: Any, epoch: Any, num_examples: int, xp: ModuleType = np) -> Any:
    """Map positions to examples by a pseudo-random permutation of `range(num_examples)`.

    Round r swaps x with (k_r - x) mod n where a hash of the larger of the two says so: every round is its
    own inverse, so the whole is a permutation for any n, without a table.

    Args:
        position: uint32 [B], below `num_examples`.
        seed: uint32 scalar or [1].
        epoch: uint32 scalar or [1]; every epoch has its own permutation.
        num_examples: n, from 1 to 2**31.
        xp: `numpy` or `jax.numpy`; both give the same integers.

    Returns:
        uint32 [B], the examples at those positions.

    Example:
        >>> order = permute(np.arange(5, dtype=np.uint32), seed=0, epoch=0, num_examples=5)
        >>> sorted(order.tolist())
        [0, 1, 2, 3, 4]

    Source: Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card Shuffle", CRYPTO 2012, figure 1
    (swap-or-not); the round function here is a hash, not a cipher.
    """
    n = np.uint32(num_examples)
    rounds = xp.arange(_ROUNDS, dtype=xp.uint32)
    word = mix(xp.asarray(seed, dtype=xp.uint32).reshape(1) + np.uint32(0x9E3779B9))
    word = mix(word ^ xp.asarray(epoch, dtype=xp.uint32).reshape(1))
    salts = mix(word + rounds * np.uint32(0x9E3779B9))
    pivots = mix(salts ^ np.uint32(0x5BD1E995)) % n

    def swap(position: Any, salt_and_pivot: Any) -> tuple[Any, None]:
        salt, pivot = salt_and_pivot
        partner = pivot + (n - position)
        partner = xp.where(partner >= n, partner - n, partner)
        chosen = mix(xp.maximum(position, partner) ^ salt) & np.uint32(1)
        return xp.where(chosen == np.uint32(1), partner, position), None

    if xp is not np:  # a loop in the program: as fast as 24 copies of its body, and 0.3 s less to compile
        return jax.lax.scan(swap, position, (salts, pivots), unroll=4)[0]
    for salt_and_pivot in zip(salts, pivots, strict=True):
        position, _ = swap(position, salt_and_pivot)
    return position


def draw(cell: Any, *, seed: Any, epoch: Any, tickets: Any, xp: ModuleType = np) -> Any:
    """Draw one ticket of each cell of tickets, and return the rows that they belong to.

    Args:
        cell: uint32 [B], below n.
        seed: uint32 scalar or [1].
        epoch: uint32 scalar or [1]; every epoch has its own draws.
        tickets: uint32 [n], as of `make_tickets`.
        xp: `numpy` or `jax.numpy`; both give the same integers.

    Returns:
        uint32 [B], rows 0 to n - 1.

    Example:
        >>> from accelnet.data.sampling import make_tickets
        >>> tickets = make_tickets(np.array([1.0, 3.0, 0.0, 0.0]), "toy")
        >>> draw(np.arange(4, dtype=np.uint32), seed=0, epoch=0, tickets=tickets).tolist()
        [0, 1, 1, 1]
    """
    width = np.uint32((2**32 - 1) // len(tickets))
    word = mix(xp.asarray(seed, dtype=xp.uint32).reshape(1) + np.uint32(0x85EBCA77))
    word = mix(word ^ xp.asarray(epoch, dtype=xp.uint32).reshape(1))
    ticket = cell * width + mix(mix(cell + word) ^ word) % width
    return xp.searchsorted(tickets, ticket, side="right").astype(xp.uint32)


def eval_rows(start: Any, stop: Any, positions: Any, xp: ModuleType = np) -> tuple[Any, Any]:
    """Return the rows at positions of the split `start` to `stop`, and the mask; padding repeats the last row."""
    rows = start + positions
    return xp.minimum(rows, stop - 1), rows < stop


@dataclass(frozen=True)
class Order:
    """The batches of a training run, cut into microbatches.

    An epoch has ceil(n / batch_size) steps; the last one's missing rows repeat examples of the epoch's
    beginning and are masked. With `tickets`, an epoch has n draws instead, in which rows come in proportion to theirs.

    Attributes:
        num_examples: Number n of rows of the training split.
        batch_size: Examples per update.
        microbatch_size: Examples per forward and backward pass; above `batch_size`, the rest is padding.
        first_row: First of the data's rows that is in the training split.
        whole_batches: Whether the last, partial batch of an epoch is left out: other examples in each epoch.
        tickets: uint32 [n], as of `make_tickets`, where rows are drawn by weight. None: every row comes once.

    Raises:
        UserError: if the batch is larger than the data or a size is not positive.

    Example:
        >>> order = Order(num_examples=10, batch_size=4, microbatch_size=4)
        >>> order.steps_per_epoch
        3
        >>> rows, mask = order.rows(2, 0, seed=0)
        >>> mask.tolist()
        [True, True, False, False]
    """

    num_examples: int
    batch_size: int
    microbatch_size: int
    first_row: int = 0
    whole_batches: bool = False
    tickets: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("batch_size", "microbatch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.batch_size > self.num_examples:
            raise UserError(
                f"batch_size {self.batch_size} is larger than the training split of {self.num_examples} "
                f'examples: take at most {self.num_examples}, or "full" for the whole split per update'
            )

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch, the last partial one included, unless it is left out."""
        return self.num_examples // self.batch_size if self.whole_batches else -(-self.num_examples // self.batch_size)

    @property
    def has_padding(self) -> bool:
        """Whether a microbatch of an epoch holds padding."""
        partial = self.num_examples % self.batch_size != 0 and not self.whole_batches
        return partial or self.batch_size % self.microbatch_size != 0

    @property
    def num_microbatches(self) -> int:
        """Microbatches per update."""
        return -(-self.batch_size // self.microbatch_size)

    def divided(self, num_parts: int, *, pad: bool = False) -> "Order":
        """Return an order whose microbatches divide into equal parts.

        Args:
            num_parts: Parts of a microbatch, at least 1.
            pad: Make the microbatch as much larger as need be.

        Returns:
            This order, or one with a larger microbatch.

        Raises:
            UserError: if the microbatch does not divide and `pad` is off, with the nearest sizes that do.

        Example:
            >>> Order(num_examples=10, batch_size=4, microbatch_size=4).divided(3)
            Traceback (most recent call last):
            accelnet.errors.UserError: batch_size 4 does not divide into 3 parts, one for each ...: take 3 or 6
        """
        size = self.microbatch_size
        larger = -(-size // num_parts) * num_parts
        if larger == size:
            return self
        if pad:
            return replace(self, microbatch_size=larger)
        name = "batch_size" if size == self.batch_size else "microbatch_size"
        near = [str(n) for n in (larger - num_parts, larger) if n > 0]
        raise UserError(
            f"{name} {size} does not divide into {num_parts} parts, one for each device along the mesh's batch axes: "
            f"take {' or '.join(near)}"
        )

    @property
    def is_whole(self) -> bool:
        """Whether one microbatch is the whole split, so that order has no meaning."""
        return self.microbatch_size == self.num_examples and self.tickets is None

    def rows(
        self, step: Any, microbatch: Any, *, seed: Any, part: Any = 0, num_parts: int = 1, tickets: Any = None,
        xp: ModuleType = np,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Give the rows of one microbatch, or of an equal part of it.

        Args:
            step: Update of the run, int32 scalar, from 0.
            microbatch: Number of the microbatch in the batch, int32 scalar, from 0.
            seed: uint32 scalar.
            part: Number of the part of the microbatch, int32 scalar, from 0.
            num_parts: Parts of a microbatch, a divisor of its size.
            tickets: Those of the order, where they are an operand of a program. None: those of the order.
            xp: `numpy` or `jax.numpy`.

        Returns:
            (rows, mask): int32 [microbatch_size / num_parts] into the data's rows, and bool of that shape, False
            for padding.
        """
        size = self.microbatch_size // num_parts
        within = microbatch * self.microbatch_size + part * size + xp.arange(size, dtype=xp.int32)
        tickets = self.tickets if tickets is None else tickets
        return self._rows(step, step // self.steps_per_epoch, within, seed, tickets, xp)

    def block(self, steps: range, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Give the rows of many steps at once, on the host: the hashing of one step alone takes NumPy 0.9 ms.

        Args:
            steps: Updates of the run, at least one.
            seed: uint32.

        Returns:
            (rows, mask): int32 and bool [len(steps), num_microbatches, microbatch_size], those of `rows`.
        """
        step = np.arange(steps.start, steps.stop, dtype=np.int32)[:, None]
        epochs = step[:, 0] // self.steps_per_epoch
        within = np.arange(self.num_microbatches * self.microbatch_size, dtype=np.int32)[None, :]
        parts = [
            self._rows(step[epochs == epoch], epoch, within, seed, self.tickets, np) for epoch in np.unique(epochs)
        ]
        shape = (len(steps), self.num_microbatches, self.microbatch_size)
        rows, mask = (np.concatenate(arrays).reshape(shape) for arrays in zip(*parts, strict=True))
        return rows, mask

    def _rows(self, step: Any, epoch: Any, within: Any, seed: Any, tickets: Any, xp: ModuleType) -> tuple[Any, Any]:
        position = (step % self.steps_per_epoch) * self.batch_size + within
        mask = (within < self.batch_size) & (position < self.num_examples)
        if not self.has_padding:
            mask = xp.ones_like(mask)  # a constant, which XLA folds: 10 % of a step of digits_mlp
        rows = position % self.num_examples
        if self.batch_size < self.num_examples:
            rows = permute(rows.astype(xp.uint32), seed=seed, epoch=epoch, num_examples=self.num_examples, xp=xp)
        if tickets is not None:
            rows = draw(rows.astype(xp.uint32), seed=seed, epoch=epoch, tickets=tickets, xp=xp)
        return rows.astype(xp.int32) + self.first_row, mask


def order_of(
    rows: range, batch_size: int | str, microbatch_size: int | None, tickets: np.ndarray | None = None
) -> Order:
    """Return the order of a training split.

    Args:
        rows: The split's rows.
        batch_size: Examples per update; "full" for all of them.
        microbatch_size: Examples per forward and backward pass. None: the batch, of a full one at most 1,024.
        tickets: As in `Order`.

    Raises:
        UserError: as in `Order`, and if the microbatch is larger than the batch.

    Example:
        >>> order_of(range(4000), "full", None).microbatch_size
        1024
    """
    size = len(rows) if isinstance(batch_size, str) else batch_size
    part = microbatch_size or (min(size, 1024) if isinstance(batch_size, str) else size)
    if part > size:
        raise UserError(f"microbatch_size {part} is larger than batch_size {size}: take at most the batch size")
    return Order(len(rows), size, part, rows.start, tickets=tickets)
