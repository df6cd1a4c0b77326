"""The search: which smaller networks are trained, one after the other, and what is made of the best."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from accelnet.compressing.candidate import Candidate, Proposal, Weighing, cost_of
from accelnet.compressing.drop import Drop
from accelnet.compressing.finetune import Start, of_length, untrained_run
from accelnet.compressing.ladder import LADDER, next_factor
from accelnet.compressing.measured import PairedExamples, Say
from accelnet.compressing.store import SearchStore
from accelnet.compressing.trainings import Trainings
from accelnet.compressing.ways import Ways
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.training.run import Run

_SCRATCH_EVERY = 3
_KEPT_FOR_BITS = 4  # trainings, from which on the last is kept for weights that are rounded while they are trained


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
        comparison: PairedExamples,
        goal: Goal,
        *,
        budget: int,
        store: SearchStore,
        say: Say,
    ) -> None:
        self.original, self.ways, self.comparison, self.goal, self.say = original, ways, comparison, goal, say
        self._notes: list[str] = []
        self._trainings = Trainings(original, budget, store, say, self._notes.append)
        self._trained: list[Trained] = []
        self._proposed: dict[float, list[tuple[Proposal, Run]]] = {}
        self._impossible: set[float] = set()
        self._kept = 0

    @property
    def notes(self) -> list[str]:
        """What was left alone, and why; trainings that failed."""
        return list(dict.fromkeys([*self.ways.notes, *self._notes]))

    def candidates(self) -> list[Candidate]:
        """Return the original and all that was made, in this order."""
        first = Candidate("original", (), cost_of(self.original.experiment), self.original)
        ladder = self._ladder() if self.ways.structures else ()
        if self._trainings.budget >= _KEPT_FOR_BITS and any(one.rounding for one in self.ways.bits.values()):
            self._kept = 1
        while ladder and self._trainings.left > self._kept and self._train_next(ladder):
            pass
        made = self._made(ladder)
        bits = self._with_bits(first, made)
        self._kept = 0
        while ladder and self._trainings.left and self._train_next(ladder):  # what was kept and not needed
            made = self._made(ladder)
        return [first, *made, *bits]

    def _made(self, ladder: Sequence[float]) -> list[Candidate]:
        """Return what was trained; where nothing was, what the methods make without."""
        if self._trained:
            return [one.candidate for one in self._trained]
        best = [pair for factor in ladder for pair in self._proposals(factor)[:1]]
        return [Candidate(proposal.name, proposal.how, proposal.cost, run) for proposal, run in best]

    def is_good(self, one: Candidate) -> bool:
        """Say whether a candidate keeps to the goal."""
        if self.goal.fits is not None and not self.goal.fits(one.run):
            return False
        return self.goal.max_drop is None or self._drop(one).is_within(self.goal.max_drop)

    def _drop(self, one: Candidate) -> Drop:
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
        count, last = self._trainings.count, self._trainings.left == self._kept + 1
        missing = bool(self._trained) and not any(one.is_twin for one in self._trained)
        if (count % _SCRATCH_EVERY == _SCRATCH_EVERY - 1 or (last and missing)) and self._train_twin():
            return True
        if last and self._train_with_teacher():
            return True
        judged = dict.fromkeys(self._impossible, False)
        for one in self._trained:
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

    def _finetune(self, factor: float, proposal: Proposal, run: Run) -> None:
        start = Start(run.params, run.model_state)
        self._train(factor, proposal, f"{proposal.name}, fine-tuned", proposal.how, proposal.experiment, start)

    def _train_twin(self) -> bool:
        """Train from new weights, for as many epochs in all, the best that has no such twin yet."""
        twins = {one.proposal.name for one in self._trained if one.is_twin}
        left = [one for one in self._trained if one.proposal.name not in twins]
        if not left:
            return False
        best = self._best(left)
        name, how = f"{best.proposal.name}, from scratch", (*best.proposal.how, "scratch")
        self._train(best.factor, best.proposal, name, how, of_length(best.proposal.experiment, 2.0), None)
        return True

    def _train_with_teacher(self) -> bool:
        """Fine-tune the best once more, with the original's outputs as further targets."""
        tuned = [one for one in self._trained if not one.is_twin]
        if self.ways.teacher is None or not tuned or any("teacher" in one.candidate.how for one in tuned):
            return False
        best = self._best(tuned)
        run = next(run for one, run in self._proposals(best.factor) if one is best.proposal)
        try:
            taught, start = self.ways.teacher(best.proposal.experiment), Start(run.params, run.model_state)
        except UserError as error:
            self._notes.append(f"no teacher: {error}")
            self.ways = dataclasses.replace(self.ways, teacher=None)
            return False
        how = (*best.proposal.how, "teacher")
        self._train(best.factor, best.proposal, f"{best.proposal.name}, taught", how, taught, start)
        return True

    def _train_second(self) -> bool:
        """Fine-tune what was second best without training, at the sizes that were trained."""
        done = {one.proposal.name for one in self._trained}
        for factor in sorted({one.factor for one in self._trained}):
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
        made = self._trainings.train(name, experiment, start)
        if made is None:
            self._impossible.add(factor)
            return
        run, training = made
        if "teacher" in how:  # a network is judged, and goes on, without
            run = dataclasses.replace(run, experiment=proposal.experiment)
        self._trained.append(Trained(factor, proposal, Candidate(name, how, proposal.cost, run, training)))

    def _with_bits(self, first: Candidate, made: Sequence[Candidate]) -> list[Candidate]:
        """Give the original and the best networks fewer bits, and train those for which rounding was too much."""
        ordered = sorted(made, key=lambda one: (one.cost.flops, self.comparison.cost(one.run)))
        # Of equal networks the one that loses least.
        good = list({one.structure: one for one in reversed(ordered) if self.is_good(one)}.values())[::-1][:2]
        promising = good or sorted(made, key=lambda one: self.comparison.cost(one.run))[:1]
        found, lost = [], []
        for base in (first, *promising):
            for name, way in self.ways.bits.items():
                if way.rounding is None and base is not first:
                    continue  # a mere form of storage is a row, beside those with fewer bits
                self.say(f"{base.name}, {name}")
                one = self._rounded(base, name, way.stored(base.run))
                found.append(one)
                if not self.is_good(one) and (base is first or base in good):
                    lost.append((base, name))
        # The smallest base, and of its bits the most: what is nearest to being good enough.
        order = [first, *reversed(promising)]
        for base, name in sorted(lost, key=lambda pair: order.index(pair[0]), reverse=True):
            if self._trainings.left and self.ways.bits[name].rounding is not None:
                found += self._trained_for_bits(base, name)
        return found

    def _trained_for_bits(self, base: Candidate, name: str) -> list[Candidate]:
        way, whole = self.ways.bits[name], self.original.experiment
        assert way.rounding is not None
        assert way.trained is not None
        length = {"epochs": whole.epochs, "steps": whole.steps}
        told = {key: whole.config[key] for key in length if key in whole.config}
        plain = base.run.experiment.replace(**length, config={**base.run.experiment.config, **told})
        start = Start(base.run.params, base.run.model_state)
        made = self._trainings.train(f"{base.name}, trained for {name}", way.rounding(plain), start)
        if made is None:
            return []
        one = self._rounded(base, f"trained for {name}", way.trained(made[0]))
        return [dataclasses.replace(one, training=made[1])]

    def _rounded(self, base: Candidate, name: str, weighing: Weighing) -> Candidate:
        cost = dataclasses.replace(cost_of(weighing[0]), parameters=base.cost.parameters, flops=base.cost.flops)
        whole = f"{base.name}, {name}" if base.how else name
        return Candidate(whole, (*base.how, "bits"), cost, untrained_run(*weighing), base.training)
