import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from bie_stream.errors import ConfigError
from train.evaluate.probe import forest, majority, make_folds, permute_by_well, score

LABELS = np.repeat(["a", "b"], 60)
GROUPS = np.array([f"well{i // 6}" for i in range(120)])


def test_no_group_stands_in_train_and_test() -> None:
    for folds in (2, 5, 20, 99):
        for train, test in make_folds(LABELS, GROUPS, folds).pairs:
            assert not set(GROUPS[train]) & set(GROUPS[test])
    assert len(make_folds(LABELS, GROUPS, 99).pairs) == 20


def test_what_is_there_is_found_and_what_is_not_is_chance() -> None:
    rng = np.random.default_rng(0)
    folds = make_folds(LABELS, GROUPS, 5)
    noise = rng.standard_normal((120, 4)).astype(np.float32)
    signal = noise + (LABELS == "b")[:, None] * np.float32(4)
    assert score(forest(signal, LABELS, folds), LABELS, GROUPS).balanced_accuracy > 0.95
    assert score(forest(noise, LABELS, folds), LABELS, GROUPS).balanced_accuracy < 0.65
    assert score(majority(LABELS, folds), LABELS, GROUPS).balanced_accuracy == pytest.approx(0.5)


def test_features_that_only_name_the_well_do_not_help() -> None:
    well = np.repeat(np.random.default_rng(0).standard_normal((20, 8)), 6, axis=0).astype(np.float32)
    found = score(forest(well, LABELS, make_folds(LABELS, GROUPS, 5)), LABELS, GROUPS)
    assert found.balanced_accuracy < 0.75


def test_permuted_labels_stay_whole_in_a_group() -> None:
    permuted = permute_by_well(LABELS, GROUPS)
    assert sorted(permuted) == sorted(LABELS)
    assert all(len(set(permuted[group == GROUPS])) == 1 for group in set(GROUPS))
    assert balanced_accuracy_score(LABELS, permuted) < 0.8


def test_the_rank_of_ordered_classes_is_correlated_per_well() -> None:
    numbers = np.repeat(np.arange(20.0), 6)
    labels = np.where(numbers < 10, "low", "high")
    sure = np.stack([labels == "high", labels == "low"], axis=1).astype(float)
    assert score(sure, labels, GROUPS, numbers, ["low", "high"]).spearman == pytest.approx(0.867, abs=0.01)


def test_a_question_without_an_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs two or more"):
        make_folds(np.repeat("a", 120), GROUPS, 5)
    with pytest.raises(ConfigError, match="all samples are in one group"):
        make_folds(LABELS, np.repeat("w", 120), 5)
