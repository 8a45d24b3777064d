"""U-LiRA by hand, and its laws."""

import math

import pytest
import torch

from expunge.errors import UsageRefused
from expunge.primitives.ulira import LEAST, ulira


def log_density(value: float, sample: list[float]) -> float:
    mean = sum(sample) / len(sample)
    variance = max(LEAST, sum((each - mean) ** 2 for each in sample) / (len(sample) - 1))
    return -((value - mean) ** 2) / (2 * variance) - math.log(variance) / 2


def test_a_worked_example():
    # Unlearned 0, 1, 2 and 9; retrained 8, 9, 10. Without itself, 0 is judged by 1, 2, 9: mean 4, variance 19, so
    # log N = -16/38 - ln(19)/2 = -1.89, against -81/2 - ln(1)/2 = -40.5: unlearned. 9 is judged by 0, 1, 2: mean 1,
    # variance 1, so -32 against 0: retrained, which is wrong. 1 and 2 are right; so are 8, 9 and 10, whose like are
    # nearer: 8 by 9, 10 (mean 9.5, variance 0.5) -2.25 + 0.35 against -(25 / (2 * 16.67)) - 1.41 = -2.16.
    got = ulira(torch.tensor([[0.0], [1.0], [2.0], [9.0]]), torch.tensor([[8.0], [9.0], [10.0]]))
    assert got.tolist() == pytest.approx([(3 / 4 + 1) / 2])


def test_each_example_is_judged_by_its_own_distributions_without_the_model_that_is_judged():
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(6, 5, generator=draw, dtype=torch.float64)
    other = 2 * torch.randn(8, 5, generator=draw, dtype=torch.float64) + 1

    def right(own: list[float], others: list[float]) -> float:
        each = [log_density(own[k], own[:k] + own[k + 1 :]) - log_density(own[k], others) > 0 for k in range(len(own))]
        return sum(each) / len(each)

    expected = [
        (right(one[:, k].tolist(), other[:, k].tolist()) + right(other[:, k].tolist(), one[:, k].tolist())) / 2
        for k in range(5)
    ]
    assert ulira(one, other).tolist() == pytest.approx(expected)


def test_two_halves_of_one_ensemble_are_told_apart_by_chance_and_two_kinds_always():
    draw = torch.Generator().manual_seed(0)
    same = torch.randn(100, 400, generator=draw)
    assert ulira(same[:50], same[50:]).mean().item() == pytest.approx(0.5, abs=0.02)
    assert ulira(same[:50] + 50, same[50:]).tolist() == [1.0] * 400
    wider = ulira(same[:50] * 4, same[50:])  # the mean alone would not tell
    assert wider.mean().item() > 0.7


def test_which_is_called_unlearned_does_not_matter_nor_does_a_shift():
    one, other = torch.randn(10, 7, dtype=torch.float64), torch.randn(12, 7, dtype=torch.float64) + 1
    torch.testing.assert_close(ulira(one, other), ulira(other, one))
    torch.testing.assert_close(ulira(one + 3, other + 3), ulira(one, other))


def test_what_never_varies_is_told_by_its_place_alone():
    assert ulira(torch.full((4, 1), 2.0), torch.full((4, 1), 2.0)).tolist() == [0.5]
    assert ulira(torch.full((4, 1), 2.0), torch.full((4, 1), 2.5)).tolist() == [1.0]
    assert ulira(torch.full((4, 1), math.inf), torch.full((4, 1), -math.inf)).tolist() == [1.0]


def test_pooled_variance_is_that_of_all_examples():
    # Of 0 the others' mean is 2 and the variances are 2 and 0.5, pooled 1.25. Of the retrained: 3, with 1 and 9, so 5.
    unlearned = torch.tensor([[0.0, 0.0], [1.0, 1.5], [3.0, 2.5]])
    retrained = unlearned.new_tensor([[2.0, 0.0], [3.0, 3.0], [4.0, 6.0]])
    got = ulira(unlearned, retrained, pooled=True)
    scores = [
        -((x - mean) ** 2) / (2 * variance) - math.log(variance) / 2 + (x - 3) ** 2 / 10 + math.log(5) / 2
        for x, mean, variance in ((0, 2, 1.25), (1, 1.5, (4.5 + 3.125) / 2), (3, 0.5, (0.5 + 1.125) / 2))
    ]
    back = [
        -((x - mean) ** 2) / (2 * variance)
        - math.log(variance) / 2
        + (x - 4 / 3) ** 2 / (2 * both)
        + math.log(both) / 2
        for both in ((7 / 3 + 19 / 12) / 2,)
        for x, mean, variance in ((2, 3.5, 2.5), (3, 3, 10), (4, 2.5, 2.5))
    ]
    assert got[0].item() == pytest.approx((sum(s > 0 for s in scores) / 3 + sum(s > 0 for s in back) / 3) / 2)
    draw = torch.Generator().manual_seed(0)
    few, others = torch.randn(3, 500, generator=draw), torch.randn(3, 500, generator=draw) + 2
    assert ulira(few, others, pooled=True).mean() > ulira(few, others).mean() + 0.02


def test_too_few_models_are_refused():
    with pytest.raises(UsageRefused, match=r"^U-LiRA was given 2 unlearned and 9 retrained models\. Give three"):
        ulira(torch.zeros(2, 4), torch.zeros(9, 4))
