"""The gradients of forget losses are those that their mathematics gives: plain ascent, each row or answer weighed."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from expunge.core.model import Model, answers
from expunge.core.objective import Objective
from expunge.core.predictions import Predictions
from expunge.core.question import Scores
from expunge.core.view import View
from expunge.objectives.ascent import Ascent
from expunge.objectives.ceu import CEU
from expunge.objectives.dpo import DPO
from expunge.objectives.inverted_hinge import InvertedHinge
from expunge.objectives.npo import NPO
from expunge.objectives.sat_imp import SatImp
from expunge.objectives.sim_npo import SimNPO
from expunge.objectives.undial import UNDIAL
from expunge.objectives.wga import WGA

CLOSE = {"atol": 1e-10, "rtol": 0}


def slope(objective: Objective, now: View, before: View, of: str = "forget") -> Tensor:
    """The gradient with respect to what the head reads, or to the scores themselves."""
    return torch.autograd.grad(objective(now, before), now.scores(of).states, retain_graph=True)[0]


def weighed(said: Predictions, weights: Tensor) -> Tensor:
    """The gradient of ascent in which each row counts as much as its weight: that of sum(weight * log p(y))."""
    log_prob = said.logits.log_softmax(-1).gather(-1, said.labels[:, None]).squeeze(-1)
    return torch.autograd.grad((weights.detach() * log_prob).sum(), said.states, retain_graph=True)[0]


def right(said: Predictions) -> Tensor:
    """p(y) of each row."""
    return said.logits.softmax(-1).gather(-1, said.labels[:, None]).squeeze(-1).detach()


def whole_answer(said: Predictions) -> Tensor:
    """S: the log-probability of each whole answer."""
    return said.sum(right(said).log())


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_npo_weighs_an_answer_by_2_r_over_1_plus_r(drawn, beta: float):
    now, before = drawn(0), drawn(1)
    ratio = (beta * (whole_answer(now.forget) - whole_answer(before.forget))).exp()
    weights = (2 * ratio / (1 + ratio) / 3)[now.forget.example]  # 3 examples
    assert torch.allclose(slope(NPO(beta=beta), now, before), weighed(now.forget, weights), **CLOSE)


def test_npo_weighs_by_1_where_it_starts_and_by_nothing_where_the_answer_is_gone(drawn):
    now = drawn(0)
    even = torch.full((7,), 1 / 3, dtype=torch.float64)
    assert torch.allclose(slope(NPO(), now, drawn(0)), weighed(now.forget, even), **CLOSE)
    gone = drawn(0, spread=400.0)  # log-probabilities of hundreds of nats below those of before
    assert whole_answer(gone.forget).max() < -300
    assert slope(NPO(beta=1.0), gone, drawn(1, spread=0.1)).abs().max() < 1e-100


def test_as_beta_goes_to_zero_npo_points_where_ascent_on_sums_does(drawn):
    now, before = drawn(0), drawn(1)
    got = slope(NPO(beta=1e-4), now, before).flatten()
    plain = weighed(now.forget, torch.ones(7, dtype=torch.float64)).flatten()
    assert torch.cosine_similarity(got, plain, dim=0) > 0.999


@pytest.mark.parametrize("beta", [0.5, 2.5, 4.5])
@pytest.mark.parametrize("margin", [0.0, -0.7])
def test_simnpo_weighs_an_answer_by_2_over_t_times_r_over_1_plus_r(drawn, beta: float, margin: float):
    now = drawn(0)
    counts = torch.tensor([1, 4, 2])
    ratio = (beta * whole_answer(now.forget) / counts + margin).exp()
    weights = (2 / counts * ratio / (1 + ratio) / 3)[now.forget.example]
    assert torch.allclose(slope(SimNPO(beta=beta, margin=margin), now, now), weighed(now.forget, weights), **CLOSE)


def test_as_beta_goes_to_zero_simnpo_becomes_ascent_on_each_answers_mean(drawn):
    now = drawn(0)
    weights = (1 / torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64) / 3)[now.forget.example]
    assert torch.allclose(slope(SimNPO(beta=1e-9), now, now), weighed(now.forget, weights), atol=1e-8, rtol=0)


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_wga_weighs_a_row_by_p_to_the_beta(drawn, beta: float):
    now = drawn(0)
    assert torch.allclose(slope(WGA(beta=beta), now, now), weighed(now.forget, right(now.forget) ** beta / 7), **CLOSE)


@pytest.mark.parametrize(("beta1", "beta2"), [(5.0, 1.0), (1.0, 0.05), (0.0, 2.0)])
def test_satimp_weighs_a_row_by_p_to_the_one_beta_and_1_minus_p_to_the_other(drawn, beta1: float, beta2: float):
    now = drawn(0)
    p = right(now.forget)
    weights = p**beta1 * (1 - p) ** beta2 / 7
    assert torch.allclose(slope(SatImp(beta1=beta1, beta2=beta2), now, now), weighed(now.forget, weights), **CLOSE)


@pytest.mark.parametrize("objective", [WGA(beta=0.0), SatImp(beta1=0.0, beta2=0.0)])
def test_without_a_weight_both_are_ascent_value_and_gradient(drawn, objective: Objective):
    now = drawn(0)
    assert objective(now, now).item() == pytest.approx(Ascent()(now, now).item(), abs=1e-12)
    assert torch.allclose(slope(objective, now, now), slope(Ascent(), now, now), **CLOSE)


def test_satimp_without_its_second_weight_is_wga(drawn):
    now = drawn(0)
    assert torch.allclose(slope(SatImp(beta1=2.0, beta2=0.0), now, now), slope(WGA(beta=2.0), now, now), **CLOSE)


def test_satimp_is_inert_where_the_model_is_certain_unless_its_second_weight_is_small(given):
    # p(y) = 1 - 1e-6 or so: (1 - p) ** 1 is 1e-6, (1 - p) ** 0.05 is 0.5
    sure = given(forget=[[[14.0, 0.0]]])
    plain = slope(Ascent(), sure, sure).abs().max()
    doubt = 1 / (1 + math.exp(14))
    assert slope(SatImp(), sure, sure).abs().max() / plain == pytest.approx(doubt, rel=1e-4)
    mild = slope(SatImp(beta1=1.0, beta2=0.05), sure, sure).abs().max() / plain
    assert mild.item() == pytest.approx(doubt**0.05, rel=1e-4)
    assert mild > 0.45


def test_ceu_weighs_a_row_by_the_odds_of_its_answer(drawn):
    now = drawn(0)
    p = right(now.forget)
    assert torch.allclose(slope(CEU(skip=0), now, now), weighed(now.forget, p / (1 - p) / 7), **CLOSE)


def test_ceus_gradient_on_the_scores_is_p_on_the_answer_and_never_more(given):
    now = given(forget=[[[2.0, 0.5, -1.0]], [[9.0, 1.0, 0.0], [-3.0, 0.0, 1.0]]])
    p = now.forget.logits.softmax(-1).detach()
    got = 3 * slope(CEU(skip=0), now, now)  # 3 rows
    assert torch.allclose(got[:, 0], p[:, 0], **CLOSE)
    assert torch.allclose(got[:, 1:], -p[:, 1:] * p[:, :1] / (1 - p[:, :1]), **CLOSE)
    assert (got.abs() <= p[:, :1] + 1e-12).all()


def test_ceu_leaves_the_first_row_of_an_answer_alone_but_not_the_only_one(given):
    rows = [[[1.0, 2.0]], [[3.0, 1.0], [0.0, 1.0], [2.0, 2.0]]]
    now = given(forget=rows)
    every, later = slope(CEU(skip=0), now, now), slope(CEU(), now, now)
    assert torch.equal(later[1], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(later[[0, 2, 3]], every[[0, 2, 3]])


@pytest.mark.parametrize("strength", [0.5, 3.0, 10.0])
def test_undial_at_the_reference_is_ascent_weighed(drawn, strength: float):
    now = drawn(0)
    p, small = right(now.forget), math.exp(-strength)
    weights = p * (1 - small) / (1 - p + p * small) / 7
    assert torch.allclose(slope(UNDIAL(strength=strength), now, now), weighed(now.forget, weights), **CLOSE)


def test_undial_of_no_strength_rests_at_the_reference_and_of_great_strength_is_ceu(drawn):
    now = drawn(0)
    assert slope(UNDIAL(strength=0.0), now, now).abs().max() < 1e-12
    assert torch.allclose(slope(UNDIAL(strength=60.0), now, now), slope(CEU(skip=0), now, now), **CLOSE)


def test_undial_comes_to_rest_where_its_target_is_reached(given):
    # The target of (log 3, 0) lowered by log 3 is (1/2, 1/2): a model that says so feels no pull.
    before, there = given(forget=[[[math.log(3), 0.0]]]), given(forget=[[[0.0, 0.0]]])
    loss = UNDIAL(strength=math.log(3))
    assert loss(there, before).item() == pytest.approx(math.log(2), abs=1e-12)
    assert slope(loss, there, before).abs().max() < 1e-12


def test_the_inverted_hinge_moves_the_right_score_and_the_runner_up_by_their_probabilities():
    torch.manual_seed(0)
    scores = 1.5 * torch.randn(7, 6, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 0])
    owner = torch.tensor([0, 1, 1, 1, 1, 2, 2])

    class Says(Model):
        def batches(self, examples: list[str]) -> Iterator[list[int]]:
            yield list(range(len(examples)))

        @answers(Scores)
        def scores(self, question: Scores, batch: list[str]) -> Predictions:
            return Predictions(labels, owner, 3, None, scores.requires_grad_())

    now = View(Says(), {"forget": ["all"]})
    p = scores.detach().softmax(-1)
    rows = torch.arange(7)
    best = p.scatter(-1, labels[:, None], 0.0)
    runner_up = best.argmax(-1)
    ahead = p[rows, labels] - p[rows, runner_up]
    wanted = -p * ahead[:, None]
    wanted[rows, labels] = p[rows, labels] * (1 - ahead)
    wanted[rows, runner_up] = -p[rows, runner_up] * (1 + ahead)
    assert torch.allclose(7 * slope(InvertedHinge(), now, now), wanted, **CLOSE)
    assert InvertedHinge()(now, now).item() == pytest.approx((1 + ahead).mean().item(), abs=1e-12)


def test_once_the_two_are_even_the_inverted_hinge_leaves_the_other_scores_alone(given):
    now = given(forget=[[[1.0, 1.0 + 1e-9, -2.0, 0.3]]])
    got = slope(InvertedHinge(), now, now)[0]
    assert got[:2].abs().min() > 0.3
    assert got[2:].abs().max() < 1e-9


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_npo_and_dpo_start_at_two_over_beta_log_two(drawn, beta: float):
    now = drawn(0)
    for objective in (NPO(beta=beta), DPO(beta=beta)):
        assert objective(now, now).item() == pytest.approx(2 / beta * math.log(2), abs=1e-10)
    assert 2 / 0.1 * math.log(2) == pytest.approx(13.863, abs=1e-3)


def test_dpo_weighs_both_answers_of_a_pair_alike_one_up_and_one_down(drawn):
    now, before = drawn(0), drawn(1)
    ahead = (whole_answer(now.stand_in) - whole_answer(before.stand_in)) - (
        whole_answer(now.forget) - whole_answer(before.forget)
    )
    weights = 2 * torch.sigmoid(-0.3 * ahead) / 3
    loss = DPO(beta=0.3)
    value = sum(2 / 0.3 * math.log1p(math.exp(-0.3 * gap)) for gap in ahead.tolist()) / 3
    assert loss(now, before).item() == pytest.approx(value, abs=1e-10)
    down, up = weights[now.forget.example], weights[now.stand_in.example]
    assert torch.allclose(slope(loss, now, before), weighed(now.forget, down), **CLOSE)
    assert torch.allclose(slope(loss, now, before, "stand_in"), weighed(now.stand_in, -up), **CLOSE)


def test_dpo_with_a_stand_in_that_does_not_move_is_npo(drawn):
    now, before = drawn(0), drawn(1)
    before.replies["stand_in", Scores()] = now.stand_in.detach()
    assert DPO(beta=0.3)(now, before).item() == pytest.approx(NPO(beta=0.3)(now, before).item(), abs=1e-10)
    assert torch.allclose(slope(DPO(beta=0.3), now, before), slope(NPO(beta=0.3), now, before), **CLOSE)
