"""The trainings of a search: counted, shown, kept, and not done twice."""

import time
from collections.abc import Callable
from typing import Any

from accelnet.compressing.finetune import Start, find_rate, train, without_test
from accelnet.compressing.store import SearchStore
from accelnet.errors import DivergenceError
from accelnet.experiment import Experiment
from accelnet.training.progress import Progress
from accelnet.training.run import Run

_SECONDS_BETWEEN_WORDS = 5.0


class Trainings:
    """Train candidates, as many as a budget allows.

    Args:
        original: The run, whose epochs are in the weights that a fine-tuning begins with.
        budget: Number of trainings.
        store: What is done already.
        say: Line that shows what is being done.
        note: Function that gets a sentence worth keeping.
    """

    def __init__(
        self,
        original: Run,
        budget: int,
        store: SearchStore,
        say: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self.original, self.budget, self._store, self._say, self._note = original, budget, store, say, note
        self.count = 0

    @property
    def left(self) -> int:
        """Number of trainings that may still be done."""
        return self.budget - self.count

    def train(self, name: str, experiment: Experiment, start: Start | None) -> tuple[Run, dict[str, Any]] | None:
        """Train, or take what is trained already.

        Args:
            name: Name of the candidate.
            experiment: What is trained.
            start: Weights to start from, at a rate that is found anew. None: new ones, at the experiment's own.

        Returns:
            The run, and of its training "epochs", "total_epochs" (with those of the original, where its weights were
            the start), "rate" and "seconds". None: it diverged.
        """
        self.count += 1
        began, known = time.monotonic(), self._store.read(name)
        display = _Line(self._say, f"training {self.count} of {self.budget}, {name}")
        experiment = without_test(experiment)
        try:
            if "rate" not in known:
                known["rate"] = {"factor": 1.0, "tried": []} if start is None else find_rate(experiment, start, display)
                self._store.write(name, known)
            run = train(experiment, start, known["rate"]["factor"], self._store.folder(name), display)
        except DivergenceError as error:
            self._note(f"{name}: {error}")
            return None
        if "seconds" not in known:
            known["seconds"] = time.monotonic() - began
            self._store.write(name, known)
        total = epochs = run.result["epochs"]
        if start is not None:
            total += self.original.step / self.original.experiment.order.steps_per_epoch
        return run, {"epochs": epochs, "total_epochs": total, **known}


class _Line(Progress):
    """Show the steps of one training in the line of the whole search."""

    def __init__(self, say: Callable[[str], None], name: str) -> None:
        self._say, self._name, self._last = say, name, 0.0
        self._say(name)

    def update(self, step: int, loss: float | None = None, examples_per_second: float | None = None) -> None:
        del examples_per_second
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_WORDS:
            self._last = now
            self._say(f"{self._name}: step {step:,}" + ("" if loss is None else f", loss {loss:.4g}"))

    def note(self, text: str) -> None:
        self._say(f"{self._name}: {text}")
