"""Check outputs and targets against the task, before the first step."""

from collections.abc import Callable
from typing import Any

from accelnet.errors import UserError
from accelnet.objectives.objective import Objective


def check_outputs(
    objective: Objective,
    outputs: Any,
    targets: Any,
    *,
    num_classes: int | None,
    target_range: Callable[[], tuple[float, float] | None],
) -> None:
    """Check the width of outputs against the classes, and the targets against the loss.

    Args:
        objective: objective, whose task says what outputs and targets mean.
        outputs: outputs of the model, arrays or shapes; anything else is not checked.
        targets: prepared targets, likewise.
        num_classes: number of classes of the data, None where it does not say.
        target_range: function that returns the least and the largest target, None where they are not known. It is
            called only where they matter.

    Raises:
        UserError: if there are fewer (of classes: other) logits than classes, or targets are out of their range.
    """
    checked = objective.task in ("classes", "labels", "tokens")
    if not checked or not hasattr(outputs, "shape") or not hasattr(targets, "shape"):
        return
    if objective.task == "labels":
        found = target_range()
        if found is not None and not (found[0] >= 0 and found[1] <= 1):
            raise UserError(
                f"the targets are numbers from {found[0]:g} to {found[1]:g}, expected 0 to 1 for a sigmoid: say which "
                "of them mean yes, or take squared_error for numbers, softmax_cross_entropy for classes"
            )
        return
    if outputs.shape == targets.shape or not outputs.shape:
        return
    width = outputs.shape[-1]
    if num_classes is not None and (width < num_classes or (objective.task == "classes" and width > num_classes)):
        raise UserError(
            f"the model gives {width} outputs, and the data has {num_classes} classes: give the model's last layer "
            f"{num_classes} outputs, or change num_classes of the data"
        )
    found = target_range() if num_classes is None else None
    if found is not None and not (found[0] >= 0 and found[1] < width):
        raise UserError(
            f"the targets are classes from {found[0]:g} to {found[1]:g}, and the model gives {width} outputs, for "
            f"the classes 0 to {width - 1}: number the classes from 0 on, or give the last layer {int(found[1]) + 1} "
            "outputs"
        )
