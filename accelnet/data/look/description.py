"""A whole look at a data set: what is in it, and what may be wrong with it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from accelnet import arguments
from accelnet.data.dataset import Data
from accelnet.data.glance.examples import examples, is_text
from accelnet.data.glance.outline import counted, labels_of, outline
from accelnet.data.look.equal_rows import equal_rows
from accelnet.data.look.features import (
    Numbers,
    as_json,
    histograms,
    input_numbers,
    named_columns,
    statistics,
    target_numbers,
)
from accelnet.data.look.finding import Finding
from accelnet.data.look.findings import class_findings, feature_findings
from accelnet.data.look.page import description_page
from accelnet.data.look.reading import SplitRows, read_splits
from accelnet.data.look.telling import telling_inputs
from accelnet.data.look.text import description_text

_HISTOGRAMS = 12
_EXAMPLES = 24  # where there are no classes, or many
_OF_A_CLASS = 4
_SYMBOLS = 24


@dataclass(frozen=True, eq=False)
class Description:
    """Hold what a data set is and what may be wrong with it.

    Attributes:
        values: JSON values, of the schema that the guide documents.

    Example:
        >>> import accelnet as an
        >>> description = an.data.describe(an.data.from_arrays(np.arange(20.0)[:, None], np.arange(20.0)))
        >>> [finding.name for finding in description.findings]
        []
        >>> description.to_json()["splits"]
        {'train': 16, 'validation': 2, 'test': 2}
    """

    values: Mapping[str, Any]

    @property
    def findings(self) -> list[Finding]:
        """What may be wrong, with what to do."""
        return [Finding(**one) for one in self.values["findings"]]

    def to_json(self) -> dict[str, Any]:
        """Return the values for a JSON file."""
        return dict(self.values)

    def page(self) -> str:
        """Return them as an HTML page that needs nothing else."""
        return description_page(self.values)

    def __repr__(self) -> str:
        return description_text(self.values)


def describe(data: Data, *, most_rows: int = 10_000, say: Callable[[str], None] = lambda _: None) -> Description:
    """Look at a data set: rows, classes, ranges, examples, and what may be wrong with them.

    Args:
        data: Data set.
        most_rows: Most rows of a split that are read where they are not in memory, evenly spaced; 256 MiB of them at
            most. Of a stream, the first batch is read.
        say: Function that is told what is being done.

    Returns:
        The `Description`. Equal rows are found by hashes of all inputs of a row. Shares of classes count as different
        where chance explains it in one of a million cases; outliers are 20 deviations from the mean.

    Raises:
        UserError: if a row that is read is not as the data says.

    Example:
        >>> import accelnet as an
        >>> x = np.array([[number, 7.0] for number in range(40)])
        >>> description = describe(an.data.from_arrays(x, x[:, 0] % 2, num_classes=2))
        >>> [finding.text for finding in description.findings]
        ['1 of 2 inputs are the same in all 32 rows of train: inputs[1] (7)']
    """
    arguments.instance("data", data, Data, "a Data, as of accelnet.data.from_arrays(...)")
    most_rows = arguments.integer("most_rows", most_rows, low=1)
    arguments.function("say", say, "a function of a text")
    held = read_splits(data, most_rows, say)
    train, values = held["train"], outline(data)
    say("ranges of the inputs")
    inputs = [one for numbers in input_numbers(data, train.arrays["inputs"]) for one in statistics(numbers)]
    targets_are_classes = values["classes"] is not None
    if not targets_are_classes and not isinstance(data.arrays["targets"], Mapping):
        values["classes"] = counted(data, {split: one.arrays["targets"] for split, one in held.items()})
    say("ranges of the targets")
    goals = [] if values["classes"] else target_numbers(data, train.arrays["targets"])
    targets = [one for numbers in goals for one in statistics(numbers)]
    say("equal rows")
    found = equal_rows(data, held)
    if values["classes"]:
        sampled = () if targets_are_classes else [split for split, one in held.items() if not one.is_whole]
        found += class_findings(values["classes"]["counts"], values["classes"]["names"], sampled)
    found += feature_findings(data, inputs, targets, len(train.rows))
    say("inputs that tell the target")
    found += telling_inputs(data, train)
    say("examples")
    return Description({
        **values,
        "read": {split: len(one.rows) for split, one in held.items()},
        "findings": [asdict(finding) for finding in found],
        "categories": named_columns(data, train.arrays["inputs"])[:_HISTOGRAMS],
        "symbols": _symbols(data, train),
        "inputs": as_json(inputs),
        "targets": as_json(targets),
        "histograms": {"inputs": _pictured(data, train), "targets": _histograms(goals)},
        "examples": _examples(data, train),
    })  # fmt: skip


def _pictured(data: Data, train: SplitRows) -> list[dict[str, Any]]:
    """Return histograms of inputs, without those of 0 and 1 that stand for names."""
    inputs = train.arrays["inputs"]
    spelled = {f"{one['name']}={name}" for one in named_columns(data, inputs) for name in one["names"]}
    return _histograms(input_numbers(data, inputs), spelled)


def _histograms(every: Sequence[Numbers], left_out: Collection[str] = ()) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for numbers in every:
        names = [name for name in numbers.names if name not in left_out]
        found += histograms(numbers, names[: _HISTOGRAMS - len(found)])
    return found


def _symbols(data: Data, train: SplitRows) -> list[dict[str, Any]]:
    """Return the commonest characters or tokens of a text with their counts."""
    inputs = train.arrays["inputs"]
    if not is_text(data) or isinstance(inputs, Mapping):
        return []
    counts = np.bincount(inputs.reshape(-1))
    order = np.argsort(-counts, kind="stable")[:_SYMBOLS]
    return [{"name": repr(data.decode(index[None]))[1:-1], "count": int(counts[index])} for index in order]


def _examples(data: Data, train: SplitRows) -> list[dict[str, Any]]:
    """Return the first rows of each class, or of all where there are none."""
    targets = train.arrays["targets"]
    labels = None if isinstance(targets, Mapping) else labels_of(data, targets)
    if labels is None:
        chosen = np.arange(min(_EXAMPLES, len(train.rows)))
    else:
        order = np.argsort(labels, kind="stable")
        classes, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
        each = max(1, min(_OF_A_CLASS, 2 * _EXAMPLES // len(classes)))
        starts = list(zip(first, counts, strict=True))[: 2 * _EXAMPLES]
        chosen = np.concatenate([order[start : start + min(each, count)] for start, count in starts])
    return examples(data, _rows(train.arrays, chosen), train.rows[chosen])


def _rows(tree: Any, chosen: np.ndarray) -> Any:
    return {key: _rows(one, chosen) for key, one in tree.items()} if isinstance(tree, Mapping) else tree[chosen]
