"""Formulas of one text's rows, worked by hand on ragged texts."""

import math
import zlib

import pytest
import torch

from expunge.primitives.memorisation import (
    exact_memorisation,
    extraction_strength,
    loss_by_packed_size,
    lowest_mean,
    norm_of_gradient,
    standardise,
)


@pytest.mark.parametrize(
    ("right", "none", "last_row"),
    [
        ((1, 1, 1, 1), 1.0, 1.0),
        ((0, 1, 1, 1), 0.75, 0.75),
        ((1, 1, 1, 0), 0.0, 0.25),  # the loop of open-unlearning ends at its last row
        ((1, 0, 1), 1 / 3, 1 / 3),
        ((0,), 0.0, 1.0),
        ((), 0.0, 0.0),
    ],
)
def test_what_is_right_from_some_row_on_is_extracted(right: tuple[int, ...], none: float, last_row: float):
    flags = torch.tensor(right, dtype=torch.bool)
    assert extraction_strength(flags) == none
    assert extraction_strength(flags, "last row") == last_row


def test_min_k_is_the_mean_of_the_lowest_share_and_of_one_at_least():
    rows = torch.tensor([-1.0, -5.0, -2.0, -3.0, -4.0])
    assert lowest_mean(rows, 0.4).item() == -4.5  # of five rows two
    assert lowest_mean(rows, 0.59).item() == -4.5  # 2.95 rows are two
    assert lowest_mean(rows[:2], 0.4).item() == -5.0


def test_min_k_plus_plus_centres_and_scales_by_the_rows_own_distribution():
    # Three classes of 1/2, 1/4, 1/4: mu = -1.5 ln 2; E[(log p)^2] = (1 + 4) / 2 (ln 2)^2 less mu^2 is (ln 2)^2 / 4
    two = math.log(2)
    rows = torch.tensor([-two, -2 * two], dtype=torch.float64)
    mean, variance = torch.full((2,), -1.5 * two).double(), torch.full((2,), two * two / 4).double()
    assert standardise(rows, mean, variance).tolist() == pytest.approx([1.0, -1.0], rel=1e-6)
    assert standardise(rows[:1], rows[:1] - 0.001, torch.zeros(1)).item() == pytest.approx(1.0)  # sqrt 1e-6


@pytest.mark.parametrize(("right", "share"), [((1, 0, 1, 1), 0.75), ((0,), 0.0), ((), 0.0)])
def test_exact_memorisation_is_the_share_of_right_rows_and_0_of_none(right: tuple[int, ...], share: float):
    assert exact_memorisation(torch.tensor(right, dtype=torch.bool)) == share


def test_a_loss_is_divided_by_the_bytes_that_the_text_is_packed_to():
    """A text that says one thing fifty times packs to a few bytes more than one that says it once."""
    once, often = "Veldt. ", "Veldt. " * 50
    assert loss_by_packed_size(3.0, once) == pytest.approx(3 / 15)  # 7 bytes of text, 8 of zlib's own
    assert len(often) == 350
    assert loss_by_packed_size(3.0, often) > 3 / 25
    assert loss_by_packed_size(3.0, "caf\u00e9") == pytest.approx(3 / len(zlib.compress(b"caf\xc3\xa9")))
    assert loss_by_packed_size(3.0, "\ud800") == loss_by_packed_size(3.0, "?")  # no text, but some tokenizers write it


def test_a_gradients_norm_is_a_mean_over_tensors_and_not_over_numbers():
    slopes = torch.tensor([3.0, 4.0]), torch.zeros(2, 3), torch.tensor([[12.0, 0.0], [0.0, 5.0]])
    assert norm_of_gradient(slopes) == pytest.approx((5 + 0 + 13) / 3)
