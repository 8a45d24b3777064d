"""Objectives against their papers, worked by hand on examples of unequal length."""

import math
from collections.abc import Iterator

import pytest
import torch

from expunge.core.model import Model, answers
from expunge.core.predictions import Predictions, Share
from expunge.core.question import Scores
from expunge.core.view import View
from expunge.errors import DataRefused
from expunge.objectives.ascent import Ascent
from expunge.objectives.grad_diff import GradDiff
from expunge.objectives.hinged_ascent import HingedAscent
from expunge.objectives.npo import NPO
from expunge.objectives.retain_kl import RetainKL
from expunge.objectives.retain_nll import RetainNLL
from expunge.objectives.settle import Settle


class Says(Model):
    """A model that says what it is given: for each example, a list of rows of class scores; the label is class 0."""

    def __init__(self, **sets: list[list[list[float]]]) -> None:
        self.sets = sets

    def batches(self, examples: list[str]) -> Iterator[list[int]]:
        yield list(range(len(examples)))

    @answers(Scores)
    def scores(self, question: Scores, batch: list[str]) -> Predictions:
        examples = self.sets[batch[0]]
        rows = torch.tensor([row for example in examples for row in example], dtype=torch.float64)
        owner = torch.tensor([k for k, example in enumerate(examples) for _ in example])
        return Predictions(
            labels=torch.zeros(len(rows), dtype=torch.long),
            example=owner,
            examples=len(examples),
            share=None,
            states=rows.requires_grad_(),
        )


def view(**sets: list[list[list[float]]]) -> View:
    return View(Says(**sets), {name: [name] for name in sets})


RAGGED = [[[1.0, 2.0]], [[3.0, 1.0], [0.0, 1.0], [2.0, 2.0]]]  # one row, three rows


def nll(row: list[float]) -> float:
    return math.log(sum(map(math.exp, row))) - row[0]


def test_ascent_is_minus_the_mean_over_rows_not_over_examples():
    mean = sum(nll(row) for example in RAGGED for row in example) / 4
    now = view(forget=RAGGED)
    assert Ascent()(now, now).item() == pytest.approx(-mean, abs=1e-12)


def test_retain_nll_is_the_mean_over_rows():
    mean = sum(nll(row) for example in RAGGED for row in example) / 4
    now = view(retain=RAGGED)
    assert RetainNLL()(now, now).item() == pytest.approx(mean, abs=1e-12)


def test_gradient_difference_is_the_sum_of_its_two_terms():
    now = view(forget=RAGGED, retain=[[[0.0, 0.0]]])
    mean = sum(nll(row) for example in RAGGED for row in example) / 4
    assert GradDiff(forget_weight=0.5)(now, now).item() == pytest.approx(math.log(2) - 0.5 * mean, abs=1e-12)
    assert repr(GradDiff()) == "Ascent() + RetainNLL()"


def test_retain_kl_is_zero_with_zero_gradient_where_nothing_changed():
    now, before = view(retain=RAGGED), view(retain=RAGGED)
    loss = RetainKL()(now, before)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert now.scores_so_far["retain"].logits.grad.abs().max() < 1e-15


def test_retain_kl_worked():
    # before (1/2, 1/2), now (3/4, 1/4): 1/2 log(2/3) + 1/2 log 2
    now, before = view(retain=[[[math.log(3), 0.0]]]), view(retain=[[[0.0, 0.0]]])
    assert RetainKL()(now, before).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), abs=1e-12)


def test_npo_starts_at_two_over_beta_log_two():
    now, before = view(forget=RAGGED), view(forget=RAGGED)
    assert NPO(beta=0.1)(now, before).item() == pytest.approx(2 / 0.1 * math.log(2), abs=1e-12)


def test_npo_worked_on_ragged_rows():
    before = view(forget=[[[0.0, 0.0]], [[0.0, 0.0]] * 3])
    drifts = [sum(-nll(row) + math.log(2) for row in example) for example in RAGGED]
    by_hand = sum(2 / 0.5 * math.log1p(math.exp(0.5 * drift)) for drift in drifts) / 2
    assert NPO(beta=0.5)(view(forget=RAGGED), before).item() == pytest.approx(by_hand, abs=1e-12)


def test_npos_gradient_is_ascents_weighted_by_2_r_over_1_plus_r():
    now, before = view(forget=RAGGED), view(forget=[[[0.5, 0.0]], [[0.0, 0.7]] * 3])
    got = torch.autograd.grad(NPO(beta=0.3)(now, before), now.scores_so_far["forget"].logits)[0]
    said, was = now.scores_so_far["forget"], before.forget
    drift = said.sum(said.log_prob() - was.log_prob())
    ratio = (0.3 * drift).exp()
    weight = (2 * ratio / (1 + ratio)).detach()
    plain = torch.autograd.grad(said.log_prob().sum() / 2, said.logits)[0]
    assert torch.allclose(got, plain * weight[said.example][:, None], atol=1e-12)


def test_as_beta_goes_to_zero_npo_points_where_ascent_on_sums_does():
    now, before = view(forget=RAGGED), view(forget=[[[0.5, 0.0]], [[0.0, 0.7]] * 3])
    got = torch.autograd.grad(NPO(beta=1e-4)(now, before), now.scores_so_far["forget"].logits)[0].flatten()
    said = now.scores_so_far["forget"]
    plain = torch.autograd.grad(said.log_prob().sum(), said.logits)[0].flatten()
    assert torch.cosine_similarity(got, plain, dim=0) > 0.999


def means() -> list[float]:
    """Each ragged example's mean loss: about 1.31 and 0.50."""
    return [sum(map(nll, example)) / len(example) for example in RAGGED]


def test_hinged_ascent_pushes_up_to_the_level_only():
    below, above = means()[1], means()[0]
    level = (below + above) / 2
    now = view(forget=RAGGED)
    loss = HingedAscent(level=level)(now, now)
    assert loss.item() == pytest.approx((level - below) / 2, abs=1e-12)
    gradient = torch.autograd.grad(loss, now.scores_so_far["forget"].logits)[0]
    assert not gradient[0].any()
    assert gradient[1:].any()


def test_settle_pulls_back_what_is_above_the_level():
    below, above = means()[1], means()[0]
    level = (below + above) / 2
    now = view(forget=RAGGED)
    loss = Settle(level=level)(now, now)
    assert loss.item() == pytest.approx((above - below) / 2, abs=1e-12)
    up = torch.autograd.grad(Ascent()(now, now), now.scores_so_far["forget"].logits, retain_graph=True)[0]
    gradient = torch.autograd.grad(loss, now.scores_so_far["forget"].logits)[0]
    # Row 0 is its example's only row of two examples: against ascent, and 4 rows / 2 examples as strong.
    assert torch.allclose(gradient[0], -2 * up[0], atol=1e-12)
    assert torch.allclose(gradient[1:], up[1:] * 4 / (2 * 3), atol=1e-12)


@pytest.mark.parametrize("objective", [HingedAscent(), Settle()])
def test_without_a_level_both_are_ascent_on_examples(objective):
    now = view(forget=RAGGED)
    assert objective(now, now).item() == pytest.approx(-sum(means()) / 2, abs=1e-12)
    now.run.level = 1.0
    assert objective(now, now).item() > 0


@pytest.mark.parametrize("objective", [Ascent(), RetainNLL(), RetainKL(), NPO(beta=0.3), Settle(level=0.9)])
def test_the_parts_of_a_step_add_up_to_the_whole(objective):
    """Read at once, or one example at a time with the step's counts: the same loss, exactly."""
    other = [[[0.5, 0.1]], [[0.2, 0.7], [1.0, 0.0], [0.0, 0.3]]]
    whole = objective(view(forget=RAGGED, retain=RAGGED), view(forget=other, retain=other))
    shares = dict.fromkeys(("forget", "retain"), Share(rows=4, examples=2))
    parts = 0.0
    for one, was in zip(RAGGED, other, strict=True):
        now, before = view(forget=[one], retain=[one]), view(forget=[was], retain=[was])
        now.shares, before.shares = shares, shares
        parts += objective(now, before)
    assert parts.item() == pytest.approx(whole.item(), abs=1e-12)


def test_objectives_are_closed_under_plus_and_times():
    made = 2 * (Ascent() + 0.5 * RetainKL()) + RetainNLL()
    assert [(weight, repr(term)) for weight, term in made.terms()] == [
        (2.0, "Ascent()"),
        (1.0, "RetainKL()"),
        (1.0, "RetainNLL()"),
    ]
    now = view(forget=RAGGED, retain=[[[0.0, 0.0]]])
    by_terms = sum(weight * term(now, now) for weight, term in made.terms())
    assert made(now, now).item() == pytest.approx(by_terms.item(), abs=1e-12)


def test_a_view_runs_a_set_when_it_is_read_and_never_again():
    now = view(forget=RAGGED, retain=RAGGED)
    assert now.scores_so_far == {}
    assert now.forget is now.forget
    assert set(now.scores_so_far) == {"forget"}


def test_the_view_of_before_runs_without_gradients():
    class Linear(Says):
        weight = torch.ones(1, dtype=torch.float64, requires_grad=True)

        @answers(Scores)
        def scores(self, question: Scores, batch: list[str]) -> Predictions:
            said = super().scores(question, batch)
            return Predictions(said.labels, said.example, said.examples, None, said.logits.detach() * self.weight)

    before = View(Linear(retain=RAGGED), {"retain": ["retain"]}, gradients=False)
    assert not before.retain.logits.requires_grad
    assert View(Linear(retain=RAGGED), {"retain": ["retain"]}).retain.logits.requires_grad


def test_a_set_that_the_request_lacks_is_named():
    with pytest.raises(DataRefused, match="reads the retain set, but the request has none"):
        RetainNLL()(view(forget=RAGGED), view(forget=RAGGED))
