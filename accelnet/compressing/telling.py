"""What a search found, in sentences."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from accelnet.compressing.answer import Wanted, drop_number
from accelnet.compressing.measured import Measured, PairedExamples
from accelnet.report.numbers import duration, short


def told(
    measured: Sequence[Measured],
    recommended: Measured | None,
    nearest: Measured | None,
    wanted: Wanted,
    comparison: PairedExamples,
    test: Mapping[str, Any],
) -> str:
    """Say what is recommended and why, or what keeps all from it and what can be done.

    Args:
        measured: Networks, the original first.
        recommended: The recommended one.
        nearest: The nearest one, where none is recommended.
        wanted: What was asked for.
        comparison: Examples that were compared.
        test: Recommended one on the test split.
    """
    teller = _Teller(measured, wanted, comparison)
    if recommended is None:
        return teller.of_none(nearest)
    parts = teller.of_recommended(recommended), teller.of_twin(recommended), teller.of_test(test), teller.of_original()
    return " ".join(filter(None, parts))


class _Teller:
    def __init__(self, measured: Sequence[Measured], wanted: Wanted, comparison: PairedExamples) -> None:
        self.measured, self.wanted, self.comparison = measured, wanted, comparison
        self.metric = {"is_share": comparison.metric.is_share}
        self.compared = len(measured) - 1

    def of_recommended(self, one: Measured) -> str:
        first, cost = self.measured[0], one.candidate.cost
        times = ", ".join(
            f"{duration(row['p50'])} at batch {row['batch_size']} ({100 * row['ratio']:.0f} %)" for row in one.latency
        )
        before = first.candidate.cost.parameters
        instead = "" if before == cost.parameters else f" instead of {short(before)}"
        return (
            f"Take {one.name}: {100 * one.bytes / first.bytes:.0f} % of the bytes, {short(cost.parameters)} parameters"
            f"{instead}, answers in {times} of the original's time. "
            f"{self._drop(one.drop.to_dict() if one.drop else {}, self.comparison.split, self.comparison.examples)}"
            + self._bound(one)
        )

    def _bound(self, one: Measured) -> str:
        if one.drop is None or not math.isfinite(one.drop.bound):
            return ", too few for an interval."
        at_once = f" for all {self.compared} compared networks at once" if self.compared > 1 else ""
        return f"; it loses at most {self._amount(one.drop.bound)}, with 95 %{at_once}."

    def _drop(self, drop: Mapping[str, Any], split: str, examples: int) -> str:
        value = drop["value"]
        how = "lower" if not self.comparison.metric.lower_is_better else "higher"
        how = how if value >= 0 else {"lower": "higher", "higher": "lower"}[how]
        within = ""
        if drop["low"] is not None:
            within = f" (drop {drop_number(drop['low'], self.metric)} to {drop_number(drop['high'], self.metric)})"
        same = f"Its {self.comparison.name} on the {examples:,} {split} examples is"
        return (
            f"{same} that of the original{within}"
            if value == 0
            else (f"{same} {self._amount(abs(value))} {how} than the original's{within}")
        )

    def _amount(self, value: float) -> str:
        return f"{drop_number(value, self.metric)}{' points' if self.metric['is_share'] else ''}"

    def of_twin(self, one: Measured) -> str:
        """Compare what was fine-tuned with what was trained from new weights, for the recommended network."""
        same = [
            other
            for other in self.measured[1:]
            if other.candidate.cost.flops == one.candidate.cost.flops and "bits" not in other.candidate.how
        ]
        tuned, twins = ([x.lost for x in same if ("scratch" in x.candidate.how) == new] for new in (False, True))
        if not tuned or not twins:
            return ""
        return (
            f"Fine-tuned from the original's weights this network {self._change(min(tuned))}; trained from new "
            f"weights, with as many epochs in all, it {self._change(min(twins))}."
        )

    def _change(self, lost: float) -> str:
        if not math.isfinite(lost):
            return "gives no numbers"
        if lost == 0:
            return "loses nothing"
        return f"{'loses' if lost >= 0 else 'gains'} {self._amount(abs(lost))}"

    def of_test(self, test: Mapping[str, Any]) -> str:
        if not test:
            return ""
        drop = test["drop"]
        words = f"{self._drop(drop, 'test', drop['examples'])}, looked at once."
        if self.wanted.max_drop is not None and drop["low"] is not None and drop["low"] > self.wanted.max_drop:
            words += " That is more than was asked for: do not trust the validation split."
        return words

    def of_original(self) -> str:
        """Say so where the original is as fast as was asked for, and nothing else was."""
        first, wanted = self.measured[0], self.wanted
        if wanted.latency is None or wanted.max_drop is not None or not wanted.keeps_latency(first):
            return ""
        return f"The original is as fast, too: {duration(first.seconds(wanted.batch_size))}."

    def of_none(self, nearest: Measured | None) -> str:
        wanted = self.wanted
        if nearest is None or nearest.drop is None:
            return "No smaller network could be measured: look at the notes."
        if not wanted.keeps_latency(nearest):
            return (
                f"No network answers within {duration(wanted.latency or 0.0)} at batch {wanted.batch_size} on this "
                f"machine: the fastest, {nearest.name}, takes {duration(nearest.seconds(wanted.batch_size))}. Give a "
                "longer --latency, more --methods, or a smaller model to begin with."
            )
        assert wanted.max_drop is not None
        limit = self._amount(wanted.max_drop)
        if wanted.keeps_drop(nearest):
            return f"No network that loses at most {limit} is cheaper than the original."
        bound = nearest.drop.bound
        words = f"No network is shown to lose at most {limit}: the nearest, {nearest.name}, loses "
        words += f"{self._amount(nearest.drop.value)}, "
        known = math.isfinite(bound)
        words += f"at most {self._amount(bound)} with 95 %" if known else "with too few examples for an interval"
        needed = nearest.drop.examples_needed(wanted.max_drop)
        if needed is not None and needed > nearest.drop.examples:
            return (
                f"{words}. The {nearest.drop.examples:,} {self.comparison.split} examples cannot decide: about "
                f"{needed:,} could. Give a larger --max-drop, or keep more rows for validation."
            )
        return f"{words}. Give a larger --max-drop, or a larger --budget for more trainings."
