"""How a data set prints itself."""

from accelnet.data.glance.card import card
from accelnet.data.glance.outline import outline, outline_text


class Shown:
    """Give a `Data` its form in a terminal and in a notebook.

    Example:
        >>> import accelnet as an
        >>> an.data.xor()
        data     xor, 4 rows: train 4
        inputs   float32 [N, 2], 32 B in memory
        targets  float32 [N, 1], 16 B in memory
        classes  2, rows in train: 0 2, 1 2
    """

    def __repr__(self) -> str:
        return outline_text(outline(self))

    def _repr_html_(self) -> str:
        return card(self)
