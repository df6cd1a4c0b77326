"""What a data set can do with its rows: take over fitted values, draw rows by weight, divide them into folds."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

import numpy as np

from accelnet.data.fitted import check_same_encoding, checked, plain
from accelnet.data.folds import Folds, labels_of, make_folds
from accelnet.data.sampling import BALANCED, balanced_weights, checked_weights, make_tickets
from accelnet.data.variant import changed, refuse_stream
from accelnet.errors import UserError
from accelnet.wording import shown


class Choices:
    """Methods of `Data` that return other data of the same rows."""

    name: str
    arrays: Mapping[str, Any]
    splits: Any
    fitted: Mapping[str, Any]
    sampling: Any

    def refitted(self, fitted: Mapping[str, Any]) -> Self:
        """Return the same rows under other fitted values, such as those of an earlier run.

        Args:
            fitted: Values such as `fitted`; their floats may differ from those here, and nothing else.

        Raises:
            UserError: if rows were encoded differently (categories, names of classes, columns); it says where.

        Example:
            >>> import accelnet as an
            >>> x = np.arange(20.0)[:, None]
            >>> old, new = (an.data.from_arrays(inputs, np.zeros(20)) for inputs in (x, 3 * x + 5))
            >>> batch = {"inputs": new.encode([[2.0]])}
            >>> new.refitted(old.fitted).prepare(batch)["inputs"] == old.prepare(batch)["inputs"]
            Array([[ True]], dtype=bool)
        """
        values = plain(checked(fitted))
        check_same_encoding(self.name, self.fitted, values)
        return changed(self, fitted=values)

    def sampled(self, weights: Any) -> Self:
        """Return the same rows, of which training draws some more often than others.

        An epoch has as many draws as there are training rows; a row comes in proportion to its weight, several times or
        not at all. Weights of examples (`weights` of `from_arrays`) are another thing: with these every row comes once
        an epoch and its loss is multiplied. Evaluation takes every row once.

        Args:
            weights: "balanced", the same chance for each class of the targets; or an array of at least 0 with one value
                for each row, in the order in which the rows were given, or the name of such an array or column. Only
                those of training rows count.

        Raises:
            UserError: if there are no classes to balance, a weight is negative, or those of all training rows are 0.

        Example:
            >>> import accelnet as an
            >>> data = an.data.from_arrays(np.zeros((40, 1)), np.arange(40) < 4, num_classes=2, validation=0, test=0)
            >>> experiment = an.Experiment(
            ...     data=data.sampled("balanced"),
            ...     model=lambda rngs: an.models.MLP(1, (), 2, rngs=rngs),
            ...     optimizer=an.optim.sgd(0.1),
            ...     objective=an.objectives.softmax_cross_entropy(),
            ...     batch_size=40,
            ...     steps=1,
            ... )
            >>> rows, _ = experiment.order.rows(np.int32(0), 0, seed=0)
            >>> data.arrays["targets"][rows].sum().item()
            20
        """
        refuse_stream(self, "drawn by weight")
        if isinstance(weights, str) and weights == BALANCED:
            found: Any = BALANCED
        else:
            found = labels_of(self, "weights to sample by", weights)
            found = checked_weights(found, len(found), f"data {self.name!r}")
        other = changed(self, sampling=found)
        _ = other.tickets
        return other

    @cached_property
    def tickets(self) -> np.ndarray | None:
        """Tickets of the training rows, as of `make_tickets`; None where every row comes once an epoch."""
        train = self.splits["train"]
        if self.sampling is None:
            return None
        if isinstance(self.sampling, str):
            weights = balanced_weights(self.arrays["targets"], train, f"data {self.name!r}")
        else:
            weights = self.sampling[train.start : train.stop]
        return make_tickets(weights, self.name)

    def folds(self, num_folds: int, *, stratify: Any = None, groups: Any = None, seed: int = 0) -> Folds:
        """Divide the training and validation rows into folds, for cross-validation.

        Each fold's `Data` validates the rows of the fold and trains on those of all others; what `prepare` uses is
        fitted to these alone, as are the means in place of a table's missing values. Names of categories stay those
        of the whole. Other splits, such as the test, stay. Sizes of folds differ by a row at most, except where
        groups are larger. Where training rows of a fold outnumber those of another by one, or by up to 1 %, it leaves
        these out, others in each fold, so that all are trained by one program.

        Args:
            num_folds: Number of folds, 2 to the number of rows.
            stratify: Classes of which every fold gets its share, within a row without groups: "targets", the name of
                another array or of a column of a table, or an array of one class for each row, in the order in which
                the rows were given when the data was made. None: rows are drawn at random.
            groups: Groups whose rows stay in one fold, likewise. None: those by which the data was split, if any.
            seed: Seed of the folds, at least 0.

        Returns:
            A sequence of `Data`, each made when it is asked for.

        Raises:
            UserError: if there are fewer rows, groups or rows of a class than folds, an array or column is not there,
                the data was split by time, or its fitted values cannot be fitted again.

        Example:
            >>> import accelnet as an
            >>> data = an.data.from_arrays(np.arange(12.0)[:, None], np.arange(12) % 3, num_classes=3, test=0)
            >>> folds = data.folds(4, stratify="targets")
            >>> [np.sort(fold.take(np.arange(9, 12))["targets"]).tolist() for fold in folds]
            [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
        """
        return make_folds(self, num_folds, stratify, groups, seed)


def check_sampling(name: str, sampling: Any, num_rows: int) -> None:
    """Raise UserError unless sampling is None, "balanced", or an array [N]."""
    if sampling is None or (isinstance(sampling, str) and sampling == BALANCED):
        return
    if not isinstance(sampling, np.ndarray) or sampling.shape != (num_rows,):
        raise UserError(
            f"data {name!r}: sampling is {shown(sampling)}, expected 'balanced' or an array of {num_rows} weights: "
            f"data.sampled(...) makes it"
        )
