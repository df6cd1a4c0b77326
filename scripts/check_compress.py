"""What `compress` claims on Fashion-MNIST, "it loses at most so much", checked on rows that it did not see.

python scripts/check_compress.py                  # accuracy, 1,000 validation splits, 2 minutes on two cores
python scripts/check_compress.py --metric loss --splits 200
An MLP is trained on 20,000 rows, and made smaller without training in a dozen ways. The other 50,000 rows stand for all
there are: on them the drop of each network is known. From them validation splits are drawn again and again, and each
time the cheapest network is recommended of which a bound says that it keeps to a drop, as `compress` does. Counted is
how often the recommended one loses more, and how often some bound of all networks is too low, which may be in 5 of 100.
The drops that are asked for lie just below what networks lose, where the claim is easiest to break.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import accelnet as an
from accelnet.compressing.answer import Wanted, choose
from accelnet.compressing.candidate import Candidate, Proposal, cost_of, weighing_of
from accelnet.compressing.drop import Drop, Pair, mean_metric, paired_drop
from accelnet.compressing.fewer_bits import FewerBits
from accelnet.compressing.finetune import untrained_run
from accelnet.compressing.layer_inputs import InputMoments
from accelnet.compressing.measured import Measured, weight_bytes
from accelnet.compressing.proposals import RankLadder, WidthLadder
from accelnet.compressing.widths import find_widths
from accelnet.evaluating.predictions import predict
from accelnet.objectives.metric import Mean

TRAINED, HELD_OUT = 20_000, 50_000
FACTORS = (1.5, 2.0, 3.0, 4.0, 6.0)


def quiet(_: str) -> None:
    """Show nothing."""


def experiment(epochs: float) -> an.Experiment:
    """Make the experiment: all rows but those of the training are its validation split."""
    data = an.data.fashion_mnist()
    rows = [row for split in ("train", "validation", "test") for row in data.splits[split]]
    assert rows == list(range(TRAINED + HELD_OUT)), "rows of the splits lie one after the other"
    splits = {"train": range(TRAINED), "validation": range(TRAINED, TRAINED + HELD_OUT)}
    return an.Experiment(
        data=dataclasses.replace(data, splits=splits),
        model=lambda rngs: an.models.MLP(784, (300, 300), 10, rngs=rngs),
        optimizer=an.optim.adamw(2e-3, weight_decay=0.01, schedule=an.optim.schedules.warmup_cosine()),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=128,
        epochs=epochs,
    )


def smaller(run: an.Run) -> Iterator[tuple[str, an.Run]]:
    """Make the smaller networks."""
    inputs, total = InputMoments(quiet), cost_of(run.experiment)
    ladders = {
        "widths": WidthLadder(run, find_widths(run.experiment), quiet).propose,
        "ranks": RankLadder(weighing_of(run), total, inputs, (), quiet).propose,
    }
    for propose in ladders.values():
        for factor in FACTORS:
            proposal: Proposal | None = propose(factor)
            if proposal is not None:
                yield proposal.name, untrained_run(*proposal.weigh())
    bits = FewerBits(inputs, (), quiet)
    yield from ((f"int{number}", untrained_run(*bits.stored(number, run))) for number in (8, 4))


def measured(metric: Mean, pairs: dict[str, Pair], shares: dict[str, float], rows: Sequence[int]) -> list[Measured]:
    """Compare the networks on rows, with their cost as it is."""

    def of(pair: Pair) -> Pair:
        return pair[0][rows], pair[1][rows]

    original, *others = pairs
    drops: dict[str, Drop | None] = {original: None}
    drops |= {
        name: paired_drop(metric, of(pairs[original]), of(pairs[name]), num_compared=len(others)) for name in others
    }
    nothing: tuple = ()
    return [
        Measured(Candidate(name, nothing, None, None), 0, 0, nothing, 0.0, drops[name], shares[name])  # type: ignore[arg-type]
        for name in pairs
    ]


def main() -> None:
    """Print how often a claim is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=5, help="passes over the training rows")
    parser.add_argument("--rows", type=int, default=5000, help="rows of a validation split")
    parser.add_argument("--splits", type=int, default=1000, help="validation splits that are drawn")
    parser.add_argument("--metric", default="accuracy", choices=("accuracy", "loss"))
    parser.add_argument("--json", action="store_true", help="print the result as the last line, as one JSON object")
    options = parser.parse_args()
    run = an.fit(experiment(options.epochs), progress=False)
    networks = {"original": run, **dict(smaller(run))}
    metric = mean_metric(run.experiment.objective, options.metric)
    pairs = {name: predict(one, "validation", quiet).sums[options.metric] for name, one in networks.items()}
    shares = {name: weight_bytes(one) / weight_bytes(run) for name, one in networks.items()}
    every = measured(metric, pairs, shares, range(HELD_OUT))
    true = {one.name: one.drop.value for one in every if one.drop is not None}
    for name, drop in true.items():
        print(f"{name:14} {shares[name]:6.1%} of the bytes, loses {100 * drop:+.2f}")
    asked = sorted({round(0.98 * drop, 6) for drop in true.values() if drop > 0.001})
    rng = np.random.default_rng(0)
    claims, wrong, low = dict.fromkeys(asked, 0), dict.fromkeys(asked, 0), 0
    for _ in range(options.splits):
        found = measured(metric, pairs, shares, rng.integers(0, HELD_OUT, options.rows))  # type: ignore[arg-type]
        low += any(one.drop.bound < true[one.name] for one in found if one.drop is not None)
        for max_drop in asked:
            recommended, _ = choose(found, Wanted(max_drop, None, 1))
            if recommended is not None:
                claims[max_drop] += 1
                wrong[max_drop] += true[recommended.name] > max_drop
    print(f"some of {len(true)} bounds too low: in {low} of {options.splits} splits of {options.rows:,} rows")
    for max_drop in asked:
        print(f"at most {100 * max_drop:.2f}: recommended {claims[max_drop]} times, lost more {wrong[max_drop]} times")
    if options.json:
        rates = [{"max_drop": one, "claims": claims[one], "wrong": wrong[one]} for one in asked]
        print(json.dumps({"splits": options.splits, "bounds_too_low": low, "asked": rates, "drops": true}))


if __name__ == "__main__":
    main()
