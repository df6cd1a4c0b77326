"""The search: which smaller networks are trained, one after the other, and what is made of the best."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelnet.compressing.candidate import Candidate, Cost, Proposal, Weighing, cost_of
from accelnet.compressing.finetune import Start, find_rate, of_length, train, untrained_run, without_test
from accelnet.compressing.measured import Comparison
from accelnet.compressing.store import Store
from accelnet.errors import DivergenceError
from accelnet.terminal import StatusLine
from accelnet.training.progress import Progress
from accelnet.training.run import Run

# How many times fewer FLOPs a network has. The first training stands in the middle; each says where the next is.
LADDER = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_FIRST = 4.0
_SCRATCH_EVERY = 3
_SECONDS_BETWEEN_WORDS = 5.0


@dataclass(frozen=True)
class Ways:
    """How networks are made smaller.

    Attributes:
        structures: By name, function from how many times fewer FLOPs to a `Proposal`, None where there is none.
        bits: By name, function from a run to the same network with fewer bits.
        teacher: Function from the experiment of a candidate to the same one that learns from the original's outputs
            too. None: without.
    """

    structures: Mapping[str, Callable[[float], Proposal | None]] = field(default_factory=dict)
    bits: Mapping[str, Callable[[Run], Weighing]] = field(default_factory=dict)
    teacher: Callable[[Run], Any] | None = None


@dataclass(frozen=True)
class Goal:
    """What a network has to keep to.

    Attributes:
        max_drop: Largest drop of the metric. None: any.
        fits: Function that says of a run whether it answers fast enough.
        num_compared: Number of networks that will be compared, for the bounds.
    """

    max_drop: float | None
    fits: Callable[[Run], bool]
    num_compared: int


class Search:
    """Train smaller networks, as many as the budget allows, and give them fewer bits.

    Args:
        original: The run.
        ways: How networks are made smaller.
        comparison: Examples on which candidates are compared with the original.
        goal: What a network has to keep to.
        budget: Number of trainings.
        store: What is done already.
        say: Line that shows what is being done.
    """

    def __init__(
        self,
        original: Run,
        ways: Ways,
        comparison: Comparison,
        goal: Goal,
        *,
        budget: int,
        store: Store,
        say: StatusLine,
    ) -> None:
        self.original, self.ways, self.comparison, self.goal = original, ways, comparison, goal
        self.budget, self.store, self.say = budget, store, say
        self.trained: list[tuple[float, Proposal, Candidate]] = []
        self.failed: list[str] = []
        self._proposed: dict[float, list[tuple[Proposal, Run]]] = {}
        self._started = time.monotonic()
        self._trainings = 0

    def candidates(self) -> list[Candidate]:
        """Return the original and all that was made, in this order."""
        first = Candidate("original", (), cost_of(self.original.experiment), self.original)
        if self.ways.structures:
            while self._trainings < self.budget and self._train_next():
                pass
        untrained = [] if self.trained else self._untrained()
        found = [first, *(one for _, _, one in self.trained), *untrained]
        bases = [first, *self._promising([one for one in found if one is not first])]
        return [*found, *(smaller for base in bases for smaller in self._with_bits(base))]

    def _untrained(self) -> list[Candidate]:
        """Return what the methods make without training, where there is no budget for any."""
        return [
            Candidate(proposal.name, proposal.how, proposal.cost, run)
            for factor in LADDER
            for proposal, run in self._proposals(factor)[:1]
        ]

    def _proposals(self, factor: float) -> list[tuple[Proposal, Run]]:
        """Return what there is at a factor, with weights, the best without training first."""
        if factor not in self._proposed:
            known = {id(one) for proposals in self._proposed.values() for one, _ in proposals}
            made = []
            for name, propose in self.ways.structures.items():
                self.say(f"{name} for {factor:g} times fewer FLOPs")
                proposal = propose(factor)
                if proposal is not None and id(proposal) not in known:
                    made.append((proposal, untrained_run(*proposal.weigh())))
            lower = self.comparison.metric.lower_is_better

            def rank(pair: tuple[Proposal, Run]) -> float:
                value = self.comparison.value(pair[1])
                return float("inf") if value is None else value if lower else -value

            self._proposed[factor] = sorted(made, key=rank)
        return self._proposed[factor]

    def _train_next(self) -> bool:
        """Train what tells most; say whether there was something."""
        last = self._trainings == self.budget - 1
        no_twin = not any("scratch" in one.how for _, _, one in self.trained)
        due = self._trainings % _SCRATCH_EVERY == _SCRATCH_EVERY - 1 or (last and no_twin and self._trainings)
        if due and self._train_twin():
            return True
        factor = self._next_factor()
        if factor is None:
            return self._train_with_teacher() or self._train_second() or (not due and self._train_twin())
        proposals = self._proposals(factor)
        if not proposals:  # nothing of this size can be made: take it for one that is not good enough
            self._proposed[factor] = []
            self._skipped.add(factor)
            return True
        self._finetune(factor, *proposals[0])
        return True

    @property
    def _skipped(self) -> set[float]:
        return self.__dict__.setdefault("_skipped_factors", set())

    def _next_factor(self) -> float | None:
        """Return the factor between the smallest network that is good enough and the largest that is not."""
        judged = {factor: False for factor in self._skipped}
        for factor, _, one in self.trained:
            judged[factor] = judged.get(factor, False) or self.is_good(one)
        if not judged:
            return _FIRST
        good = max((factor for factor, fine in judged.items() if fine), default=1.0)
        bad = min((factor for factor, fine in judged.items() if not fine and factor > good), default=float("inf"))
        between = [factor for factor in LADDER if good < factor < bad and factor not in judged]
        if bad == float("inf") and between:
            return next((factor for factor in between if factor >= 2 * good), between[-1])
        return between[len(between) // 2] if between else None

    def is_good(self, one: Candidate) -> bool:
        """Say whether a candidate keeps to the goal."""
        if not self.goal.fits(one.run):
            return False
        if self.goal.max_drop is None:
            return True
        return self.comparison.drop(one.run, self.goal.num_compared).is_within(self.goal.max_drop)

    def _promising(self, found: Sequence[Candidate]) -> list[Candidate]:
        """Return the smallest that is good enough, and what is nearest to being so."""
        good = sorted((one for one in found if self.is_good(one)), key=lambda one: one.cost.flops)[:2]
        return good or sorted(found, key=self._badness)[:1]

    def _badness(self, one: Candidate) -> float:
        bound = self.comparison.drop(one.run, self.goal.num_compared).bound
        return float("inf") if bound is None else bound

    def _finetune(self, factor: float, proposal: Proposal, run: Run) -> None:
        name = f"{proposal.name}, fine-tuned"
        start = Start(run.params, run.model_state)
        self._keep(factor, proposal, name, proposal.how, proposal.experiment, start, 2.0)

    def _train_twin(self) -> bool:
        """Train from new weights, for as many epochs in all, what is the best so far and has no such twin yet."""
        twins = {proposal.name for _, proposal, one in self.trained if "scratch" in one.how}
        left = [entry for entry in self.trained if entry[1].name not in twins and "scratch" not in entry[2].how]
        if not left:
            return False
        good = [entry for entry in left if self.is_good(entry[2])]
        factor, proposal, _ = max(good, key=lambda entry: entry[0]) if good else min(left, key=lambda e: self._badness(e[2]))
        experiment = of_length(proposal.experiment, 2.0)
        how = (*proposal.how, "scratch")
        self._keep(factor, proposal, f"{proposal.name}, from scratch", how, experiment, None, 2.0)
        return True

    def _train_with_teacher(self) -> bool:
        """Fine-tune the best once more, with the original's outputs as further targets."""
        if self.ways.teacher is None or any("teacher" in one.how for _, _, one in self.trained):
            return False
        tuned = [entry for entry in self.trained if "scratch" not in entry[2].how]
        if not tuned:
            return False
        good = [entry for entry in tuned if self.is_good(entry[2])]
        factor, proposal, _ = max(good, key=lambda entry: entry[0]) if good else min(tuned, key=lambda e: self._badness(e[2]))
        run = next(run for one, run in self._proposals(factor) if one is proposal)
        experiment = self.ways.teacher(run)
        start, how = Start(run.params, run.model_state), (*proposal.how, "teacher")
        self._keep(factor, proposal, f"{proposal.name}, taught", how, experiment, start, 2.0)
        return True

    def _train_second(self) -> bool:
        """Fine-tune what was second best without training, at the sizes that were trained."""
        done = {proposal.name for _, proposal, _ in self.trained}
        for factor in sorted({factor for factor, _, _ in self.trained}):
            for proposal, run in self._proposals(factor):
                if proposal.name not in done:
                    self._finetune(factor, proposal, run)
                    return True
        return False

    def _keep(
        self,
        factor: float,
        proposal: Proposal,
        name: str,
        how: tuple[str, ...],
        experiment: Any,
        start: Start | None,
        total: float,
    ) -> None:
        """Train, or take what is trained already, and count it."""
        self._trainings += 1
        began, known = time.monotonic(), self.store.read(name)
        display = _Line(self.say, f"training {self._trainings} of {self.budget}, {name}")
        experiment = without_test(experiment)
        try:
            if "rate" not in known:
                known["rate"] = {"factor": 1.0, "tried": []} if start is None else find_rate(experiment, start, display)
                self.store.write(name, known)
            run = train(experiment, start, known["rate"]["factor"], self.store.folder(name), display)
        except DivergenceError as error:
            self.failed.append(f"{name}: {error}")
            return
        if "seconds" not in known:
            known["seconds"] = time.monotonic() - began
            self.store.write(name, known)
        epochs = self.original.experiment.total_steps / self.original.experiment.order.steps_per_epoch
        training = {"epochs": run.result["epochs"], "total_epochs": total * epochs, **known}
        self.trained.append((factor, proposal, Candidate(name, how, proposal.cost, run, training)))

    def _with_bits(self, base: Candidate) -> list[Candidate]:
        made = []
        for name, reduce in self.ways.bits.items():
            whole = name if not base.how else f"{base.name}, {name}"
            self.say(whole)
            experiment, params, model_state = reduce(base.run)
            cost = replace(cost_of(experiment), parameters=base.cost.parameters, flops=base.cost.flops)
            run = untrained_run(experiment, params, model_state)
            made.append(Candidate(whole, (*base.how, "bits"), cost, run, base.training))
        return made


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
