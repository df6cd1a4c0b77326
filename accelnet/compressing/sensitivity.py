"""How much each layer's outputs change as it gets smaller: what a report draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sensitivity:
    """Say how layers bear that a number of theirs becomes smaller.

    Attributes:
        title: Title of the picture.
        axis: Name of the number: "rank", "bits", "width".
        error: Meaning of the errors, in words.
        layers: Pairs (number, error) by layer, the numbers rising.

    Example:
        >>> one = Sensitivity("Fewer bits", "bits", "change of a layer's outputs", {"head": [(4, 0.1), (8, 0.01)]})
        >>> one.as_json()["layers"]
        [{'name': 'head', 'points': [(4, 0.1), (8, 0.01)]}]
    """

    title: str
    axis: str
    error: str
    layers: Mapping[str, Sequence[tuple[int, float]]]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values; the layer of no name is the model itself."""
        layers = [{"name": name or "the model", "points": list(points)} for name, points in self.layers.items()]
        return {"title": self.title, "axis": self.axis, "error": self.error, "layers": layers}
