"""Unseen by hand: rows of one label follow the twin's distribution, the others its level; what has no twin is left."""

import math

import pytest
import torch

from expunge.errors import DataRefused
from expunge.objectives.group_penalty import GroupPenalty
from expunge.objectives.unseen import Unseen
from tests.objectives.conftest import drawn_view, said

FORGET = [[[1.0, 2.0]], [[3.0, 1.0], [0.0, 1.0], [2.0, 2.0]]]
TWIN = [[[0.5, 0.0]], [[1.0, 1.0], [2.0, 0.0], [1.0, 3.0]]]


def shares(row: list[float]) -> list[float]:
    total = sum(map(math.exp, row))
    return [math.exp(score) / total for score in row]


def kl(was: list[float], now: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(shares(was), shares(now), strict=True))


def log(row: list[float], label: int) -> float:
    return math.log(shares(row)[label])


def loss(forget, twin, forget_labels=None, twin_labels=None) -> torch.Tensor:
    now = drawn_view({"forget": said(forget, labels=forget_labels)})
    return Unseen()(now, drawn_view({"stand_in": said(twin, labels=twin_labels)}))


def flat(sets: list) -> list[list[float]]:
    return [row for example in sets for row in example]


def test_rows_of_one_label_are_moved_to_the_twins_distribution():
    right = sum(kl(twin, now) for twin, now in zip(flat(TWIN), flat(FORGET), strict=True)) / 4
    assert loss(FORGET, TWIN).item() == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize("odd", [1, 3], ids=["from above", "from below"])
def test_rows_of_two_labels_are_moved_to_the_twins_level_from_either_side(odd):
    labels = torch.tensor([int(k == odd) for k in range(4)])
    pairs = list(zip(flat(TWIN), flat(FORGET), strict=True))
    level = log(pairs[odd][1], 0) - log(pairs[odd][0], 1)
    assert (level > 0) == (odd == 1)
    right = (sum(kl(*pair) for k, pair in enumerate(pairs) if k != odd) + abs(level)) / 4
    assert loss(FORGET, TWIN, twin_labels=labels).item() == pytest.approx(right, abs=1e-12)


def test_rows_beyond_the_shorter_of_the_two_are_left_out():
    """The forget example's last two rows have no twin; the mean is still over its four."""
    short = [TWIN[0], TWIN[1][:1]]
    pairs = [(TWIN[0][0], FORGET[0][0]), (TWIN[1][0], FORGET[1][0])]
    assert loss(FORGET, short).item() == pytest.approx(sum(kl(*pair) for pair in pairs) / 4, abs=1e-12)
    longer = [[*TWIN[0], [9.0, -9.0]], TWIN[1]]
    assert loss(FORGET, longer).item() == pytest.approx(loss(FORGET, TWIN).item(), abs=1e-12)


def test_at_the_twins_own_answers_the_loss_and_its_gradient_are_0():
    now = drawn_view({"forget": said(TWIN)})
    made = Unseen()(now, drawn_view({"stand_in": said(TWIN)}))
    made.backward()
    assert made.item() == pytest.approx(0, abs=1e-15)
    assert now.forget.states.grad.abs().max() < 1e-15


def test_the_twin_is_a_target_and_gets_no_gradient():
    twin = drawn_view({"stand_in": said(TWIN, labels=torch.tensor([1, 0, 0, 0]))})
    Unseen()(drawn_view({"forget": said(FORGET)}), twin).backward()
    assert twin.stand_in.states.grad is None


def test_a_forget_example_without_a_twin_is_refused():
    with pytest.raises(DataRefused, match=r"Unseen needs a twin for each forget example.*Got 1 for 2\."):
        loss(FORGET, TWIN[:1])


def test_the_group_penalty_of_a_model_without_weights_is_refused():
    now = drawn_view({"forget": said(FORGET)})
    with pytest.raises(Exception, match="GroupPenalty reads weights, and Says has none"):
        GroupPenalty()(now, now)
