"""What is asked of embeddings, and of which rows of their table: classes, groups, folds."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bie_stream.errors import ConfigError, nearest
from train.evaluate.probe import Folds, Labels, Score, make_folds, score


@dataclass(frozen=True)
class Question:
    """What is asked of the embeddings.

    Attributes:
        label: column of the sample table; rows without a value are left out, and counted.
        group: column whose values are kept whole in folds; `well` is the well on its plate.
        folds: how many; as many as groups, or more, leaves each group out once.
        bins: for a numeric label: ranges (low, high), both ends included; rows outside are left out.
    """

    label: str
    group: str = "well"
    folds: int = 5
    bins: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Asked:
    """A question put to a table: M of its N rows have an answer.

    Attributes:
        taken: [N] bool, those rows; all that follows is of them.
        labels, wells, groups: [M].
        numbers, order: of binned labels the number of each row [M], and the classes from low to high.
    """

    taken: npt.NDArray[np.bool_]
    labels: Labels
    wells: Labels
    groups: Labels
    folds: Folds
    numbers: npt.NDArray[np.float64] | None
    order: list[str] | None

    def score(self, probabilities: npt.NDArray[np.float64]) -> Score:
        """Of out-of-fold probabilities [M, classes]."""
        return score(probabilities, self.labels, self.wells, self.numbers, self.order)


def ask(metadata: pa.Table, question: Question) -> Asked:
    """Puts a question to the columns of a sample table.

    Raises:
        ConfigError: it has no such column, or too few classes or groups.
    """
    labels, numbers, order = _labels(metadata, question)
    taken = labels != ""
    wells = _strings(metadata, "plate") + np.array("/") + _strings(metadata, "well")
    groups = wells if question.group == "well" else _strings(metadata, question.group)
    folds = make_folds(labels[taken], groups[taken], question.folds)
    numbers = None if numbers is None else numbers[taken]
    return Asked(taken, labels[taken], wells[taken], groups[taken], folds, numbers, order)


def _labels(metadata: pa.Table, question: Question) -> tuple[Labels, npt.NDArray[np.float64] | None, list[str] | None]:
    """A class for each row ("" where it has none), and for binned labels the numbers and the classes in order."""
    if not question.bins:
        return _strings(metadata, question.label), None, None
    column = _column(metadata, question.label)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise ConfigError(f"label {question.label!r} is no number, so it cannot be cut into bins")
    numbers = np.array([np.nan if value is None else float(value) for value in column.to_pylist()])
    order = [f"{low:g}-{high:g}" for low, high in question.bins]
    labels = np.full(len(numbers), "", dtype=f"<U{max(map(len, order))}")
    for (low, high), name in zip(question.bins, order, strict=True):
        labels[(numbers >= low) & (numbers <= high)] = name
    return labels, numbers, order


def _strings(metadata: pa.Table, name: str) -> Labels:
    return np.array(["" if value is None else str(value) for value in _column(metadata, name).to_pylist()])


def _column(metadata: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in metadata.column_names:
        raise ConfigError(f"the embeddings have no column {name!r}; {nearest(name, metadata.column_names)}")
    return metadata[name]
