"""Coresets: sums that are kept, chances that are met, and a search that beats as many uniform samples."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import scale

from expunge.select._coreset import Search, caratheodory, inclusion, shares, summarise
from expunge.select.auto_coreset import AutoCoreset


@pytest.mark.parametrize(
    ("sizes", "count", "chances"),
    [
        ((1, 1, 2), 2, (0.5, 0.5, 1.0)),
        ((1, 1, 8), 2, (0.5, 0.5, 1.0)),  # 8 of 10 would be 1.6 of 2: certain, and the other one is drawn from the rest
        ((3, 3, 3), 2, (2 / 3, 2 / 3, 2 / 3)),
        ((0, 0), 1, (0.5, 0.5)),
        ((1, 2), 2, (1.0, 1.0)),
    ],
)
def test_a_row_is_drawn_by_its_size_and_never_more_than_surely(sizes, count, chances):
    assert inclusion(np.array(sizes, dtype=float), count) == pytest.approx(np.array(chances))


def test_a_sample_has_the_size_asked_for_and_its_weighted_sum_is_right_on_average():
    rows = np.random.default_rng(0).exponential(size=(30, 2)) ** 2
    how, draw, sums = Search(8, "importance", draws=1), np.random.default_rng(1), []
    for _ in range(2000):
        own, weights = summarise(rows, 8, how, draw)
        assert len(set(own.tolist())) == 8
        sums.append(rows[own].T @ weights)
    error = np.std(sums, axis=0) / 2000**0.5
    assert (np.abs(np.mean(sums, axis=0) - rows.sum(0)) < 4 * error).all()


@pytest.mark.parametrize(("count", "columns", "size"), [(40, 2, 3), (40, 2, 12), (200, 5, 60), (30, 4, 30), (50, 9, 4)])
def test_caratheodory_keeps_the_sums_of_the_columns_and_the_number_of_rows(count, columns, size):
    draw = np.random.default_rng(count + columns)
    matrix = draw.lognormal(sigma=2, size=(count, columns))
    own, weights = caratheodory(matrix, size, draw)
    assert len(own) == len(set(own.tolist())) <= size
    assert (weights > 0).all()
    assert weights.sum() == pytest.approx(count)
    kept = matrix[:, -min(columns, size - 1) :]  # of more columns than a small summary can keep, the newest
    assert kept[own].T @ weights == pytest.approx(kept.sum(0))


def test_a_class_gets_the_mean_of_three_shares():
    """90 and 10 rows of one cost: by size and by cost .9 and .1, with equal classes .5 and .5; of 30 23 and 7."""
    groups = [np.arange(90), np.arange(90, 100)]
    assert shares(np.ones((100, 1)), groups, 30) == [23, 7]  # 30 (.9 + .9 + .5) / 3 = 23
    assert shares(np.ones((100, 1)), groups, 100) == [90, 10]  # no class has more than it has
    dear = np.ones((100, 1))
    dear[90:] = 9.0  # ten rows that cost as much as the other ninety: .1, .5, .5 of 30 are 11, and there are 10
    assert shares(dear, groups, 30) == [20, 10]


def test_the_search_beats_the_best_of_as_many_uniform_samples_on_a_logistic_regression():
    x, y = load_breast_cancer(return_X_y=True)
    x = scale(x)

    def costs(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
        scaled = weights * len(y) / weights.sum()
        model = LogisticRegression(max_iter=300).fit(x[places], y[places], sample_weight=scaled)
        penalty = 0.5 * (model.coef_**2).sum() / len(y)
        return -np.log(model.predict_proba(x)[np.arange(len(y)), y]) + penalty

    whole = costs(np.arange(len(y)), np.ones(len(y))).sum()
    found = AutoCoreset(size=200, seed=7).search(costs, len(y), y)
    assert found.cost == pytest.approx(costs(found.places, found.weights).sum())
    draw = np.random.default_rng(7)
    samples = [draw.choice(len(y), 200, replace=False) for _ in range(found.fits)]
    uniform = [costs(sample, np.ones(200)).sum() / whole - 1 for sample in samples]
    assert found.cost / whole - 1 <= 0.75 * min(uniform)
    assert found.cost / whole - 1 <= 0.6 * np.mean(uniform)


def test_the_search_ends_when_no_round_helps_and_keeps_the_cheapest():
    """Costs are 5, 5, 5 (uniform samples), then 4, 3, 3.5, 3.2 in rounds, of which the last two do not help."""
    given = iter([5.0, 5.0, 5.0, 4.0, 3.0, 3.5, 3.2])
    found = AutoCoreset(size=2, patience=2).search(lambda places, weights: np.full(4, next(given) / 4), 4)
    assert (found.cost, found.fits) == (3.0, 7)
