"""The search: which smaller networks are trained, one after the other, and what is made of the best."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelnet.compressing.candidate import Candidate, Proposal, Weighing, cost_of
from accelnet.compressing.finetune import Start, find_rate, of_length, train, untrained_run, without_test
from accelnet.compressing.measured import Comparison
from accelnet.compressing.store import Store
from accelnet.errors import DivergenceError
from accelnet.experiment import Experiment
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
        teacher: Function from a run to its experiment with the original's outputs as further targets. None: without.
        notes: What is left alone, and why.
    """

    structures: Mapping[str, Callable[[float], Proposal | None]] = field(default_factory=dict)
    bits: Mapping[str, Callable[[Run], Weighing]] = field(default_factory=dict)
    teacher: Callable[[Run], Experiment] | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Goal:
    """What a network has to keep to.

    Attributes:
        max_drop: Largest drop of the metric. None: any.
        fits: Function that says of a run whether it answers fast enough. None: all do.
        num_compared: Number of networks that will be compared, for the bounds.
    """

    max_drop: float | None
    fits: Callable[[Run], bool] | None
    num_compared: int


@dataclass(frozen=True, eq=False)
class Trained:
    """A training of the search: a candidate, the proposal that it is, and its place on the ladder."""

    factor: float
    proposal: Proposal
    candidate: Candidate

    @property
    def is_twin(self) -> bool:
        """Whether it began with new weights."""
        return "scratch" in self.candidate.how


def next_factor(judged: Mapping[float, bool], ladder: Sequence[float], ascending: bool = False) -> float | None:
    """Return where on the ladder to train next: between the smallest network that is good and the largest that is not.

    Args:
        judged: By factor, whether a network of that size is good enough.
        ladder: Factors, ascending.
        ascending: Take the largest networks first, as where only their speed is asked for.

    Returns:
        The factor, None where all is known.

    Example:
        >>> next_factor({}, LADDER), next_factor({4.0: True}, LADDER), next_factor({4.0: True, 8.0: False}, LADDER)
        (4.0, 8.0, 6.0)
        >>> next_factor({4.0: False}, LADDER), next_factor({1.5: False}, LADDER)
        (2.0, None)
    """
    left = [factor for factor in ladder if factor not in judged]
    if ascending or not left:
        return left[0] if left else None
    if not judged:
        return min(left, key=lambda factor: abs(math.log(factor / _FIRST)))
    good = max((factor for factor, fine in judged.items() if fine), default=1.0)
    bad = min((factor for factor, fine in judged.items() if not fine and factor > good), default=math.inf)
    between = [factor for factor in left if good < factor < bad]
    if not between:
        return None
    middle = 2 * good if bad == math.inf else math.sqrt(good * bad)
    return min(between, key=lambda factor: abs(math.log(factor / middle)))


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
        self.trained: list[Trained] = []
        self.notes: list[str] = list(ways.notes)
        self._proposed: dict[float, list[tuple[Proposal, Run]]] = {}
        self._impossible: set[float] = set()
        self._count = 0

    def candidates(self) -> list[Candidate]:
        """Return the original and all that was made, in this order."""
        first = Candidate("original", (), cost_of(self.original.experiment), self.original)
        ladder = self._ladder() if self.ways.structures else ()
        while ladder and self._count < self.budget and self._train_next(ladder):
            pass
        made = [one.candidate for one in self.trained]
        if not made:  # what the methods make without training
            best = [(proposal, run) for factor in ladder for proposal, run in self._proposals(factor)[:1]]
            made = [Candidate(one.name, one.how, one.cost, run) for one, run in best]
        bases = [first, *self._promising(made)]
        return [first, *made, *(smaller for base in bases for smaller in self._with_bits(base))]

    def is_good(self, one: Candidate) -> bool:
        """Say whether a candidate keeps to the goal."""
        if self.goal.fits is not None and not self.goal.fits(one.run):
            return False
        return self.goal.max_drop is None or self._drop(one).is_within(self.goal.max_drop)

    def _drop(self, one: Candidate) -> Any:
        return self.comparison.drop(one.run, self.goal.num_compared)

    def _ladder(self) -> Sequence[float]:
        """Return the factors that are worth a training: where a time is asked for, those that answer in it."""
        fits = self.goal.fits
        if fits is None:
            return LADDER
        first, last = 0, len(LADDER) - 1
        while first < last:  # smaller networks are faster
            middle = (first + last) // 2
            fast = any(fits(run) for _, run in self._proposals(LADDER[middle]))
            first, last = (first, middle) if fast else (middle + 1, last)
        return LADDER[first:]

    def _proposals(self, factor: float) -> list[tuple[Proposal, Run]]:
        """Return what there is at a factor, with weights, the best without training first."""
        if factor not in self._proposed:
            known = [one.same for proposals in self._proposed.values() for one, _ in proposals]
            made = []
            for name, propose in self.ways.structures.items():
                self.say(f"{name} for {factor:g} times fewer FLOPs")
                proposal = propose(factor)
                if proposal is not None and proposal.same not in known:
                    made.append((proposal, untrained_run(*proposal.weigh())))
            self._proposed[factor] = sorted(made, key=lambda pair: self.comparison.cost(pair[1]))
        return self._proposed[factor]

    def _train_next(self, ladder: Sequence[float]) -> bool:
        """Train what tells most; say whether there was something."""
        last = self._count == self.budget - 1
        missing = bool(self.trained) and not any(one.is_twin for one in self.trained)
        if (self._count % _SCRATCH_EVERY == _SCRATCH_EVERY - 1 or (last and missing)) and self._train_twin():
            return True
        judged = dict.fromkeys(self._impossible, False)
        for one in self.trained:
            judged[one.factor] = judged.get(one.factor, False) or self.is_good(one.candidate)
        factor = next_factor(judged, ladder, ascending=self.goal.max_drop is None)
        if factor is None:
            return self._train_with_teacher() or self._train_second() or self._train_twin()
        if proposals := self._proposals(factor):
            self._finetune(factor, *proposals[0])
        else:  # no network of this size: taken for one that is not good enough
            self._impossible.add(factor)
        return True

    def _best(self, among: Sequence[Trained]) -> Trained:
        """Return the smallest that is good enough, else the one that loses least."""
        good = [one for one in among if self.is_good(one.candidate)]
        if good:
            return max(good, key=lambda one: one.factor)
        return min(among, key=lambda one: self.comparison.cost(one.candidate.run))

    def _promising(self, made: Sequence[Candidate]) -> list[Candidate]:
        """Return the smallest two that are good enough, else the one that loses least."""
        good = sorted(filter(self.is_good, made), key=lambda one: one.cost.flops)[:2]
        return good or sorted(made, key=lambda one: self.comparison.cost(one.run))[:1]

    def _finetune(self, factor: float, proposal: Proposal, run: Run) -> None:
        start = Start(run.params, run.model_state)
        self._train(factor, proposal, f"{proposal.name}, fine-tuned", proposal.how, proposal.experiment, start)

    def _train_twin(self) -> bool:
        """Train from new weights, for as many epochs in all, the best that has no such twin yet."""
        twins = {one.proposal.name for one in self.trained if one.is_twin}
        left = [one for one in self.trained if one.proposal.name not in twins]
        if not left:
            return False
        best = self._best(left)
        name, how = f"{best.proposal.name}, from scratch", (*best.proposal.how, "scratch")
        self._train(best.factor, best.proposal, name, how, of_length(best.proposal.experiment, 2.0), None)
        return True

    def _train_with_teacher(self) -> bool:
        """Fine-tune the best once more, with the original's outputs as further targets."""
        tuned = [one for one in self.trained if not one.is_twin]
        if self.ways.teacher is None or not tuned or any("teacher" in one.candidate.how for one in tuned):
            return False
        best = self._best(tuned)
        run = next(run for one, run in self._proposals(best.factor) if one is best.proposal)
        name, how = f"{best.proposal.name}, taught", (*best.proposal.how, "teacher")
        self._train(best.factor, best.proposal, name, how, self.ways.teacher(run), Start(run.params, run.model_state))
        return True

    def _train_second(self) -> bool:
        """Fine-tune what was second best without training, at the sizes that were trained."""
        done = {one.proposal.name for one in self.trained}
        for factor in sorted({one.factor for one in self.trained}):
            for proposal, run in self._proposals(factor):
                if proposal.name not in done:
                    self._finetune(factor, proposal, run)
                    return True
        return False

    def _train(
        self,
        factor: float,
        proposal: Proposal,
        name: str,
        how: tuple[str, ...],
        experiment: Experiment,
        start: Start | None,
    ) -> None:
        """Train, or take what is trained already, and count it."""
        self._count += 1
        began, known = time.monotonic(), self.store.read(name)
        display = _Line(self.say, f"training {self._count} of {self.budget}, {name}")
        experiment = without_test(experiment)
        try:
            if "rate" not in known:
                known["rate"] = {"factor": 1.0, "tried": []} if start is None else find_rate(experiment, start, display)
                self.store.write(name, known)
            run = train(experiment, start, known["rate"]["factor"], self.store.folder(name), display)
        except DivergenceError as error:
            self.notes.append(f"{name}: {error}")
            self._impossible.add(factor)
            return
        if "seconds" not in known:
            known["seconds"] = time.monotonic() - began
            self.store.write(name, known)
        total = run.result["epochs"]
        if start is not None:
            total += self.original.step / self.original.experiment.order.steps_per_epoch
        if experiment.objective is not proposal.experiment.objective:  # a teacher's: the network is judged without
            run = dataclasses.replace(run, experiment=proposal.experiment)
        training = {"epochs": run.result["epochs"], "total_epochs": total, **known}
        self.trained.append(Trained(factor, proposal, Candidate(name, how, proposal.cost, run, training)))

    def _with_bits(self, base: Candidate) -> list[Candidate]:
        made = []
        for name, reduce in self.ways.bits.items():
            whole = f"{base.name}, {name}" if base.how else name
            self.say(whole)
            experiment, params, model_state = reduce(base.run)
            cost = dataclasses.replace(cost_of(experiment), parameters=base.cost.parameters, flops=base.cost.flops)
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
