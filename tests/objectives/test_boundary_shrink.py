"""Boundary shrink on a linear classifier of two pixels, whose boundaries can be drawn."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from expunge.core.view import View
from expunge.data.images import Picture
from expunge.errors import UsageRefused
from expunge.models.vision import ImageClassifier
from expunge.objectives.boundary_shrink import BoundaryShrink

WEIGHTS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
"""Scores x, 2 y and -3 x of a picture with the pixels x and y."""


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHTS.clone())

    def forward(self, pixel_values):
        return SimpleNamespace(logits=pixel_values.flatten(1) @ self.weight.T)


def picture(x: float, y: float, label: int = 0) -> Picture:
    return Picture(f"{x} {y}", torch.tensor([[[x, y]]]), label, f"{x} {y}")


def loss(bound: float, *forget: Picture) -> torch.Tensor:
    now, before = (View(ImageClassifier.of(Linear(), None), {"forget": forget}) for _ in range(2))
    return BoundaryShrink(bound=bound)(now, before)


def cross_entropy(point: Picture, label: int) -> float:
    scores = (WEIGHTS @ point.pixels.flatten()).tolist()
    return math.log(sum(map(math.exp, scores))) - scores[label]


def test_the_class_behind_the_nearest_boundary_is_learnt_at_the_picture_itself():
    """At (1, 0.2) the runner-up is class 1 by 0.4. A step of 0.3 to lower x and higher y leads to (0.7, 0.5), where
    class 1 scores 1 and class 0 0.7: the boundary is crossed."""
    point = picture(1.0, 0.2)
    assert loss(0.3, point).item() == pytest.approx(cross_entropy(point, 1), rel=1e-6)


def test_how_far_it_looks_and_whither_decides_what_it_finds():
    """At (1, -1) the classes score 1, -2 and -3. A step of 1.5 to lower x and higher y, which raises the loss, leads to
    (-0.5, 0.5) and the scores -0.5, 1 and 1.5; the other way class 1 stays the second."""
    point = picture(1.0, -1.0)
    assert loss(0.0, point).item() == pytest.approx(cross_entropy(point, 1), rel=1e-6)
    assert loss(1.5, point).item() == pytest.approx(cross_entropy(point, 2), rel=1e-6)


def test_a_boundary_that_is_not_reached_gives_the_likeliest_other_class():
    """At (3, 0.1) a step of 0.01 leaves class 0 the likeliest; it is not learnt."""
    point = picture(3.0, 0.1)
    assert loss(0.01, point).item() == pytest.approx(cross_entropy(point, 1), rel=1e-6)


def test_the_attack_is_on_the_original_and_the_loss_on_the_network_in_training():
    now, before = (View(ImageClassifier.of(Linear(), None), {"forget": (picture(1.0, 0.2),)}) for _ in range(2))
    with torch.no_grad():
        now.model.module.weight.zero_()  # says nothing of any class
    found = BoundaryShrink(bound=0.3)(now, before)
    assert found.item() == pytest.approx(math.log(3), rel=1e-6)
    found.backward()
    assert before.model.module.weight.grad is None
    # Class 1 is to be learnt: its scores rise by (1 - 1/3) of the picture, those of the others fall by a third.
    assert torch.allclose(now.model.module.weight.grad[:, 0], torch.tensor([1 / 3, -2 / 3, 1 / 3]))


def test_several_pictures_count_alike():
    points = picture(1.0, 0.2), picture(3.0, 0.1)
    assert loss(0.3, *points).item() == pytest.approx(sum(cross_entropy(p, 1) for p in points) / 2, rel=1e-6)


def test_a_bound_has_to_be_a_number():
    with pytest.raises(UsageRefused, match="`bound` of BoundaryShrink"):
        BoundaryShrink(bound=math.nan)
