"""KLoM by hand, and its laws."""

import math

import numpy as np
import pytest
import torch

from expunge.primitives.klom import BINS, CLIP, EMPTY, klom, margins


def test_the_margin_is_the_log_odds_of_the_right_class():
    logits = torch.tensor([[2.0, 0.0, -1.0], [-3.0, 1.0, 1.0]], dtype=torch.float64)
    expected = [z[0] - torch.logsumexp(z[1:], 0) for z in logits]
    torch.testing.assert_close(margins(logits.log_softmax(1)[:, 0]), torch.stack(expected))
    assert margins(torch.tensor([0.0])).item() == math.inf  # clipped where it is counted


def test_a_worked_example_with_a_bin_that_no_retrained_model_is_in():
    # Range 0 to 20, so bins of width 1. Unlearned: half in bin 0, a quarter each in bins 18 and 19 (20 itself is in the
    # last one). Retrained: three quarters in bin 0, a quarter in bin 19, none in bin 18.
    unlearned = torch.tensor([[0.0], [0.5], [18.5], [20.0]])
    retrained = torch.tensor([[0.2], [0.0], [0.9], [19.0]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.25 * math.log(0.25 / EMPTY) + 0.25 * math.log(0.25 / 0.25)
    assert klom(unlearned, retrained).tolist() == pytest.approx([expected])
    other_way = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.25)
    assert klom(retrained, unlearned).tolist() == pytest.approx([other_way])


def test_each_example_has_a_range_of_its_own_and_ensembles_may_differ_in_size():
    draw = torch.Generator().manual_seed(0)
    one, other = torch.randn(30, 7, generator=draw), 3 * torch.randn(50, 7, generator=draw) + 1
    got = klom(one, other)
    for k in range(7):
        both = torch.cat([one[:, k], other[:, k]]).double().numpy()
        edges = np.linspace(both.min(), both.max(), BINS + 1)
        p, q = (np.histogram(each[:, k].double().numpy(), edges)[0] / len(each) for each in (one, other))
        expected = sum(a * math.log(a / (b or EMPTY)) for a, b in zip(p, q, strict=True) if a)
        assert got[k].item() == pytest.approx(expected, abs=1e-9)


def test_it_is_zero_for_the_same_ensemble_and_at_most_ln_of_a_hundred_thousand():
    same = torch.randn(20, 5)
    assert klom(same, same).tolist() == [0.0] * 5
    apart = klom(torch.full((20, 5), -2 * CLIP), torch.full((20, 5), math.inf))
    assert apart.tolist() == pytest.approx([math.log(1 / EMPTY)] * 5)
    assert klom(torch.full((3, 1), 4.0), torch.full((9, 1), 4.0)).tolist() == [0.0]
