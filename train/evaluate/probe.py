"""What can be told from features: a random forest in folds that keep groups whole. Pure functions of arrays.

Wells (or plates, rows) never stand in train and test at once: crops of one field look alike whatever was done to it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score, classification_report, f1_score
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

from bie_stream.errors import ConfigError

Labels = npt.NDArray[np.str_]
_TREES = 300


@dataclass(frozen=True)
class Folds:
    """Pairs of train and test rows, the same for every method that is compared."""

    pairs: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]
    description: str


@dataclass(frozen=True)
class Score:
    """One method's out-of-fold predictions, summed up.

    Attributes:
        report: per class precision, recall, f1-score, support, as scikit-learn's `classification_report`.
        spearman: between a group's mean predicted rank of class and its true number; None without numbers.
    """

    balanced_accuracy: float
    macro_f1: float
    report: dict[str, Any]
    spearman: float | None


def make_folds(labels: Labels, groups: Labels, folds: int, seed: int = 0) -> Folds:
    """Folds with whole groups; as many folds as groups (or more asked for) leaves each group out once.

    Raises:
        ConfigError: there are too few groups or classes to test anything.
    """
    names, classes = np.unique(groups), np.unique(labels)
    if len(classes) < 2:
        raise ConfigError(f"the label has {len(classes)} class ({', '.join(classes)}); a classifier needs two or more")
    if len(names) < 2:
        raise ConfigError(f"all samples are in one group ({', '.join(names)}); there is nothing to leave out")
    empty = np.zeros(len(labels))
    if folds >= len(names):
        return Folds(
            list(LeaveOneGroupOut().split(empty, labels, groups)), f"each of {len(names)} groups left out once"
        )
    fewest = min(len(np.unique(groups[labels == name])) for name in classes)
    if fewest < folds:
        raise ConfigError(
            f"a class stands in only {fewest} groups: at most {max(fewest, 2)} folds can each hold it, asked {folds}"
        )
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(empty, labels, groups)
    return Folds(list(split), f"{folds} stratified folds of whole groups ({len(names)} groups)")


def forest(features: npt.NDArray[np.float32], labels: Labels, folds: Folds, seed: int = 0) -> npt.NDArray[np.float64]:
    """[N, classes] out-of-fold probabilities of a balanced random forest; classes in sorted order."""
    classes = np.unique(labels)
    probabilities = np.zeros((len(labels), len(classes)))
    for train, test in folds.pairs:
        model = RandomForestClassifier(_TREES, class_weight="balanced", n_jobs=-1, random_state=seed)
        model.fit(features[train], labels[train])
        probabilities[np.ix_(test, np.searchsorted(classes, model.classes_))] = model.predict_proba(features[test])
    return probabilities


def majority(labels: Labels, folds: Folds) -> npt.NDArray[np.float64]:
    """[N, classes]: always the commonest class of the training rows."""
    classes = np.unique(labels)
    probabilities = np.zeros((len(labels), len(classes)))
    for train, test in folds.pairs:
        model = DummyClassifier(strategy="most_frequent").fit(np.zeros((len(train), 1)), labels[train])
        probabilities[test, np.searchsorted(classes, model.predict(np.zeros((1, 1))))[0]] = 1
    return probabilities


def permute_by_well(labels: Labels, wells: Labels, seed: int = 0) -> Labels:
    """Labels dealt anew among wells, each well whole: learned and scored on these, what is left is chance."""
    blocks, inverse = np.unique(np.stack([wells, labels], axis=1), axis=0, return_inverse=True)
    dealt = np.random.default_rng(seed).permutation(blocks[:, 1])
    shuffled: Labels = dealt[inverse.ravel()]
    return shuffled


def score(
    probabilities: npt.NDArray[np.float64],
    labels: Labels,
    wells: Labels,
    numbers: npt.NDArray[np.float64] | None = None,
    order: list[str] | None = None,
) -> Score:
    """Sums up out-of-fold probabilities.

    Args:
        numbers, order: where classes are ranges of a number, that number of each sample and the classes from low
            to high: then each well's mean expected class is correlated with its number.
    """
    classes = np.unique(labels)
    predicted = classes[probabilities.argmax(1)]
    spearman = None
    if numbers is not None and order is not None:
        expected = probabilities @ np.array([order.index(name) for name in classes])
        names, inverse = np.unique(wells, return_inverse=True)
        per_well = [np.bincount(inverse, values) / np.bincount(inverse) for values in (expected, numbers)]
        if len(names) > 2 and all(np.ptp(values) > 0 for values in per_well):
            spearman = float(spearmanr(*per_well).statistic)
    return Score(
        balanced_accuracy=float(balanced_accuracy_score(labels, predicted)),
        macro_f1=float(f1_score(labels, predicted, average="macro", zero_division=0)),
        report=classification_report(labels, predicted, output_dict=True, zero_division=0),
        spearman=spearman,
    )
