"""D2DGN by hand: a teacher for what is retained, and one that never learnt for what is deleted."""

from pathlib import Path

import pytest
import torch

from expunge.core.question import HiddenStates, LogProbabilities, Scores
from expunge.core.view import View
from expunge.internals.untrained import draw_weights
from expunge.objectives.bad_teacher import BadTeacher
from expunge.objectives.d2dgn import D2DGN
from expunge.objectives.d2dgn_features import D2DGNFeatures
from expunge.objectives.retain_kl import RetainKL
from tests.families import moved
from tests.graphs import link_request, network

CPU = torch.device("cpu")


@pytest.fixture
def views(tmp_path: Path) -> tuple[View, View]:
    request, before = link_request(tmp_path), network(kind="GraphForLinkPrediction")
    student = before.fork(network(kind="GraphForLinkPrediction").module.requires_grad_(True))
    moved(student)
    sets = request.sets()
    return View(student, sets), View(before, sets, gradients=False)


def said(view: View, name: str) -> torch.Tensor:
    """The probability of each pair of a set that it is linked."""
    last = view.model.ask(Scores(), view.sets[name]).logits[:, 1]
    return torch.sigmoid(last)


def test_it_is_half_the_divergence_from_either_teacher(views: tuple[View, View]):
    now, before = views
    destroyer = draw_weights(before.model, 0, CPU)
    teachers = {"retain": said(before, "retain"), "forget": said(View(destroyer, now.sets), "forget")}
    halves = []
    for name, p in teachers.items():
        q = said(now, name)
        halves.append((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean())
    assert D2DGN()(now, before).item() == pytest.approx(sum(halves).item() / 2, abs=1e-5)


def test_alpha_is_the_share_of_what_is_retained(views: tuple[View, View]):
    kept, gone = RetainKL()(*views).item(), BadTeacher()(*views).item()
    assert D2DGN(alpha=0.9)(*views).item() == pytest.approx(0.9 * kept + 0.1 * gone, abs=1e-6)


def test_the_feature_form_sums_squares_over_both_nodes_and_averages_over_rows(views: tuple[View, View]):
    now, before = views
    question = HiddenStates(1)
    destroyer = draw_weights(before.model, 0, CPU)
    teachers = {"retain": before.model, "forget": destroyer}
    halves = []
    for name, teacher in teachers.items():
        student, taught = (model.ask(question, now.sets[name]).states for model in (now.model, teacher))
        assert student.shape == (len(now.sets[name]), 2 * 4)  # both nodes, side by side
        halves.append((student - taught).square().sum() / len(now.sets[name]))
    assert D2DGNFeatures()(now, before).item() == pytest.approx(sum(halves).item() / 2, rel=1e-5)


def test_the_destroyer_knows_nothing_and_sees_the_graph_that_is_left(views: tuple[View, View]):
    _, before = views
    destroyer = draw_weights(before.model, 0, CPU)
    assert torch.equal(destroyer.module.edges, before.model.module.edges)
    first, other = (each.ask(LogProbabilities(), before.sets["retain"]).log_probs for each in (destroyer, before.model))
    assert not torch.allclose(first, other, atol=1e-2)
