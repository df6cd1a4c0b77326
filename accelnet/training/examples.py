"""A few pictures with what the model says of them, for TensorBoard, at every evaluation."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.report.pictures import is_images
from accelnet.training.events import Event, Moment
from accelnet.training.summaries import at_evaluations

_SHOWN = 8


def examples(experiment: Experiment, workdir: str | Path) -> Event:
    """Return an event that writes some pictures, with what the model says of them, for TensorBoard.

    Eight pictures of the validation split (of the training split, where there is none), evenly spaced, are written at
    every evaluation, or, without a validation split, every epoch. The price each time: the model is traced and run on
    eight examples.

    Args:
        experiment: What is trained, on pictures.
        workdir: Work directory of the run.

    Returns:
        An event for `fit(events=[...])`.

    Raises:
        UserError: if inputs are no pictures, data are a stream, or several processes take part.

    Example:
        >>> import tempfile, accelnet as an
        >>> experiment = an.Experiment(
        ...     data=an.data.digits(),
        ...     model=lambda rngs: an.models.MLP(64, (8,), 10, rngs=rngs),
        ...     optimizer=an.optim.adam(1e-3),
        ...     objective=an.objectives.softmax_cross_entropy(),
        ...     batch_size=64,
        ...     steps=1,
        ... )
        >>> examples(experiment, tempfile.mkdtemp()).when.epochs
        1
    """
    data = experiment.data
    if data.stream is not None or not hasattr(data.arrays["inputs"], "shape") or not is_images(data.arrays["inputs"]):
        raise UserError(f"data {data.name!r} has no pictures [N, height, width, 1 or 3] to show: leave examples out")
    return at_evaluations(experiment, workdir, "examples", _Examples(experiment))


class _Examples:
    def __init__(self, experiment: Experiment) -> None:
        data = experiment.data
        split = "validation" if data.num_examples("validation") else "train"
        rows = data.splits[split]
        chosen = np.unique(np.linspace(rows.start, rows.stop - 1, _SHOWN).astype(np.int64))
        self._data, self._taken, self._tag = data, data.take(chosen), f"examples/{split}"

    def __call__(self, moment: Moment) -> list[Any]:
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        said = words_of(self._data, moment.predict(self._taken["inputs"]))
        content, height, width = _drawn(self._taken["inputs"], said, words_of(self._data, self._taken.get("targets")))
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=content)
        return [Summary.Value(tag=self._tag, image=image)]


def words_of(data: Any, values: Any) -> list[str] | None:
    """Return, for each example, its class or number in words; None for what neither is."""
    if not getattr(values, "shape", ()):  # such as outputs by name
        return None
    values = np.asarray(values)
    classes = data.info.get("num_classes")
    if classes and values.shape[1:] == (classes,):
        values = values.argmax(axis=-1)
    values = np.asarray(data.decode(values))
    if values.size != len(values):
        return None
    return [one if isinstance(one, str) else f"{one:.4g}" for one in values.reshape(-1).tolist()]


def _drawn(pictures: np.ndarray, said: list[str] | None, known: list[str] | None) -> tuple[bytes, int, int]:
    """Return a row of pictures with words above them as a PNG, its height and its width."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 * len(pictures), 1.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for index, axes in enumerate(np.ravel(figure.subplots(1, len(pictures)))):
        one = pictures[index].astype(np.float64)
        one = (one - one.min()) / ((one.max() - one.min()) or 1.0)
        axes.imshow(one[..., 0] if one.ndim == 3 and one.shape[2] == 1 else one, cmap="gray")
        axes.axis("off")
        words = "" if said is None else said[index]
        differs = said is not None and known is not None and said[index] != known[index]
        axes.set_title(
            f"{words}\n(is {known[index]})" if differs and known else words, fontsize=8,
            color="firebrick" if differs else "black",
        )  # fmt: skip
    file = io.BytesIO()
    canvas.print_png(file)
    width, height = canvas.get_width_height()
    return file.getvalue(), height, width
