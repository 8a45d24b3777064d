"""The nearest matrix of a rank: a worked number, and that none is nearer."""

import pytest
import torch

from expunge.export.nearest import frobenius, nearest

DRAW = torch.Generator().manual_seed(0)


def test_of_a_diagonal_matrix_the_largest_entries_stay_and_the_others_are_lost():
    factors = nearest(torch.diag(torch.tensor([2.0, 3.0, 1.0])), rank=1)
    assert torch.allclose(factors.b @ factors.a, torch.diag(torch.tensor([0.0, 3.0, 0.0])), atol=1e-6)
    assert factors.norm**2 == pytest.approx(2**2 + 3**2 + 1**2)
    assert factors.lost**2 == pytest.approx(2**2 + 1**2)
    assert factors.error == pytest.approx((5 / 14) ** 0.5)


def test_no_other_matrix_of_that_rank_is_nearer():
    update = torch.randn(12, 20, generator=DRAW)
    factors = nearest(update, rank=3)
    for size in (1e-3, 1e-2, 1e-1):
        a = factors.a + size * torch.randn(factors.a.shape, generator=DRAW)
        b = factors.b + size * torch.randn(factors.b.shape, generator=DRAW)
        assert frobenius(update - b @ a) > factors.lost
    singular = torch.linalg.svdvals(update)
    assert factors.lost == pytest.approx(float(singular[3:].square().sum().sqrt()), rel=1e-4)


def test_both_factors_have_their_half_of_each_singular_value():
    factors = nearest(torch.randn(12, 20, generator=DRAW), rank=4)
    inner = factors.a @ factors.a.T
    assert torch.allclose(inner, factors.b.T @ factors.b, atol=1e-5)
    assert torch.allclose(inner, torch.diag(inner.diagonal()), atol=1e-5)


def test_a_rank_above_the_matrix_s_own_loses_nothing_and_filling_up_changes_nothing():
    update = torch.randn(5, 9, generator=DRAW)
    factors = nearest(update, rank=64)
    assert factors.a.shape == (5, 9)
    assert factors.error < 1e-6
    wide = factors.widen(8)
    assert (wide.a.shape, wide.b.shape) == ((8, 9), (5, 8))
    assert torch.allclose(wide.b @ wide.a, update, atol=1e-5)
