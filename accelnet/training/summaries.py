"""What an event writes for TensorBoard at every evaluation, in a file of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.training.events import Event, Moment
from accelnet.training.record import EventFile
from accelnet.training.rhythm import Every
from accelnet.training.rhythms import rhythms_of


def at_evaluations(
    experiment: Experiment, workdir: str | Path, name: str, values: Callable[[Moment], Sequence[Any]]
) -> Event:
    """Return an event that writes values at every evaluation, or, without a validation split, every epoch.

    Args:
        experiment: What is trained.
        workdir: Work directory of the run.
        name: Name of what is written, in messages and at the end of the file's name.
        values: Function from a moment to `Summary.Value`s of TensorBoard.

    Raises:
        UserError: if several processes take part.
    """
    if jax.process_count() > 1:
        raise UserError(f"{name} are written by a run of one process: leave them out")
    when = rhythms_of(experiment).get("eval", Every(epochs=1))
    assert isinstance(when, Every)
    return Event(when, _Summaries(Path(workdir) / "tensorboard", f".accelnet-{name}", values))


class _Summaries:
    def __init__(self, directory: Path, ending: str, values: Callable[[Moment], Sequence[Any]]) -> None:
        # Not the ending of the file of rows, which is written anew when a run resumes.
        self._directory, self._ending, self._values = directory, ending, values
        self._file: EventFile | None = None

    def __call__(self, moment: Moment) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        self._file = self._file or EventFile(self._directory, self._ending)
        self._file.write(moment.step, summary=Summary(value=self._values(moment)))
        self._file.flush()

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()
