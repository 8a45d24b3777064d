"""The plane in which a page draws what several models hold of the same images."""

import math

import torch

from expunge.run.plane import align, project

ALL = torch.ones(4, dtype=torch.bool)
CROSS = torch.tensor([[2.0, 0.0, 5.0], [-2.0, 0.0, 5.0], [0.0, 1.0, 5.0], [0.0, -1.0, 5.0]])
"""Four states: 2 apart from the middle along one axis, 1 along another, and alike in the third."""


def test_coordinates_are_deviations_along_the_two_main_axes():
    at = project({"before": CROSS}, ALL)["before"]
    deviation = math.sqrt((4 + 4) / 4)  # of the first axis
    assert torch.allclose(at.abs(), CROSS[:, :2].double().abs() / deviation)
    assert torch.allclose(at[0], -at[1])


def test_the_model_after_is_drawn_where_it_moved_to_and_not_turned_back():
    at = project({"before": CROSS, "after": CROSS + torch.tensor([2.0, 0.0, 0.0])}, ALL)
    moved = at["after"] - at["before"]
    assert torch.allclose(moved[:, 0].abs(), torch.full((4,), math.sqrt(2.0), dtype=torch.float64))
    assert torch.allclose(moved[:, 1], torch.zeros(4, dtype=torch.float64), atol=1e-12)


def test_a_reference_with_axes_and_a_scale_of_its_own_is_drawn_as_the_same():
    torch.manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(5, 5))
    wide = torch.cat([CROSS, torch.zeros(4, 2)], 1)  # its layer may have another width
    at = project({"before": CROSS, "reference": 3 * wide @ turn + 7}, ALL)
    assert torch.allclose(at["before"], at["reference"], atol=1e-5)


def test_only_what_should_stay_says_how_a_reference_is_turned():
    kept = torch.tensor([True, True, True, False])
    other = CROSS.double().clone()
    other[3] = torch.tensor([9.0, 9.0, 9.0])  # what it never saw lies where it may
    assert torch.allclose(align(other, CROSS.double(), kept)[:3], CROSS[:3].double(), atol=1e-9)


def test_states_of_one_number_lie_on_a_line():
    at = project({"before": CROSS[:, :1]}, ALL)["before"]
    assert torch.equal(at[:, 1], torch.zeros(4, dtype=torch.float64))
