"""Which layer, or which part of the step, an instruction of a compiled program comes from: its Python stack says it."""

import re

# Frames of these functions say what a kernel is for; the innermost call of a module says which layer it is.
_PARTS = (
    (re.compile(r"^Objective\.totals$|^_?silence"), "loss"),
    (re.compile(r"^make_update\.<locals>\.update$"), "optimizer"),
    (re.compile(r"^(Device|Stream)Feed\.|^Order\.|^prepare$"), "input"),
    (re.compile(r"^make_gradient\.<locals>\.of_part\.<locals>\.of_microbatch$"), "gradient"),
    (re.compile(r"^make_(train|eval)_chunk"), "loop"),
    (re.compile(r"^random_(crop|flip)"), "augmentation"),
)
_LAYER = re.compile(r"^([A-Za-z]\w*)\.__call__$")


class Frames:
    """The tables of stack frames at the head of a program's text.

    Args:
        text: of the program.

    Example:
        >>> Frames("HloModule m").label("metadata={stack_frame_id=3}")
        ''
    """

    def __init__(self, text: str) -> None:
        head = text[: text.find("\n%")] if "\n%" in text else text
        self._functions = {
            int(n): name for n, name in re.findall(r'^(\d+) "([^"]*)"$', _section(head, "FunctionNames"), re.MULTILINE)
        }
        self._locations = {
            int(n): int(function)
            for n, function in re.findall(
                r"^(\d+) \{[^}]*?function_name_id=(\d+)", _section(head, "FileLocations"), re.MULTILINE
            )
        }
        self._frames = {
            int(n): (int(location), int(parent))
            for n, location, parent in re.findall(
                r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)", _section(head, "StackFrames"), re.MULTILINE
            )
        }
        self._labels: dict[int, str] = {}

    def label(self, attributes: str) -> str:
        """Return the layer, or the part of the step, that an instruction comes from; "" if that is not known."""
        found = re.search(r"stack_frame_id=(\d+)", attributes)
        if found is None:
            return ""
        frame = int(found[1])
        if frame not in self._labels:
            self._labels[frame] = self._find(frame)
        return self._labels[frame]

    def _find(self, frame: int) -> str:
        names = []
        while frame in self._frames and len(names) < 64:
            location, parent = self._frames[frame]
            names.append(self._functions.get(self._locations.get(location, 0), ""))
            frame = parent - 1  # the text counts parents from 1, and 0 is none
        if any(name.endswith("make_loss.<locals>.loss.<locals>.forward") for name in names):
            return next((found[1] for name in names if (found := _LAYER.match(name))), "model")
        return next((part for name in names for pattern, part in _PARTS if pattern.match(name)), "")


def _section(text: str, title: str) -> str:
    start = text.find(f"\n{title}\n")
    if start < 0:
        return ""
    end = text.find("\n\n", start)
    return text[start : end if end > 0 else len(text)]
