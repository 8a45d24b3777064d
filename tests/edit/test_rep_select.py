"""RepSelect: its collapsed gradient and its budget, worked by hand; and that it leaves other texts alone."""

import math

import pytest
import torch

from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.edit._collapsed_gradient import collapse, collapsed_gradient
from expunge.edit.rep_select import RepSelect
from expunge.errors import DataRefused, UsageRefused
from expunge.events import Note
from expunge.notation.parse import parse
from tests.edit.test_edits import REQUEST, Point, linear, weights
from tests.families import family_of, gpt2, llama, mixtral

torch.set_num_threads(1)
NOTHING_LEARNT = parse("Finetune(objective=0.0 * Ascent(), adapter=Full(), steps=1, stop=None)")


def turned(values: list[float], seed: int = 0) -> torch.Tensor:
    """A matrix with these singular values."""
    draw = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(len(values), len(values), generator=draw, dtype=torch.float64))[0] for _ in "uv"
    )
    return u @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ v


def test_the_largest_components_are_divided_on_both_sides_by_how_far_they_exceed_the_last_of_them():
    # of eight components a quarter, two: 16 -> 16 / (16 / 8)^2 = 4, and 8 -> 8; the others stay
    made = torch.linalg.svdvals(collapse(turned([16, 8, 4, 4, 2, 2, 1, 1]), rank=512))
    assert made.tolist() == pytest.approx([8, 4, 4, 4, 2, 2, 1, 1], rel=1e-12)
    # of one: 16 -> 16, for it is the last of them
    assert torch.allclose(collapse(turned([16, 8, 4, 4, 2, 2, 1, 1]), rank=1), turned([16, 8, 4, 4, 2, 2, 1, 1]))


def test_components_that_are_not_there_are_not_counted():
    # eight of twelve are there, so two are collapsed, and none of those that are rounding
    made = torch.linalg.svdvals(collapse(turned([16, 8, 4, 4, 2, 2, 1, 1, 0, 0, 0, 0]), rank=512))
    assert made[:8].tolist() == pytest.approx([8, 4, 4, 4, 2, 2, 1, 1], rel=1e-12)
    assert made[8:].abs().max() < 1e-12


def test_each_expert_has_components_of_its_own_and_one_that_read_nothing_has_none():
    one, other = turned([16, 8, 4, 4, 2, 2, 1, 1], 1), turned([100, 5, 4, 3, 2, 1, 1, 1], 2)
    stack = torch.stack([one, torch.zeros_like(one), other])
    made = collapse(stack, rank=512)
    assert torch.allclose(made[0], collapse(one, 512))
    assert torch.equal(made[1], torch.zeros_like(one))
    assert torch.allclose(made[2], collapse(other, 512))


def test_a_step_goes_up_the_loss_as_far_as_the_budget_lasts():
    # The forget example's gradient is (-1, 1) in feature 0, of length sqrt 2, and has one component: none is collapsed.
    # With feature 1 the retain examples do not notice, so every step is within the budget.
    network, notes = linear((3.0, 5.0), (3.0, 5.0)), []
    plan = RepSelect(steps=5, learning_rate=0.1, learn=NOTHING_LEARNT)
    made = weights(plan(network, REQUEST, notes.append))
    assert made[0] == pytest.approx([3 - 0.5 / math.sqrt(2), 5.0])
    assert made[1] == pytest.approx([3 + 0.5 / math.sqrt(2), 5.0])
    assert "5 steps of 0.1 are within the budget" in [note.what for note in notes if isinstance(note, Note)]


def test_the_budget_is_the_mean_kl_on_the_retained_rows():
    # Where a retained example reads the same, n steps of 0.1 part two equal scores by 2 * n * 0.1 * sqrt 2:
    # p = 1 / (1 + exp(d)), and KL = -log 2 - (log p + log(1 - p)) / 2.
    def kl(n: int) -> float:
        p = 1 / (1 + math.exp(2 * n * 0.1 * math.sqrt(2)))
        return -math.log(2) - (math.log(p) + math.log(1 - p)) / 2

    request = Request(forget=REQUEST.forget, retain=(Point("same words", (2.0, 0.0)),))
    network = linear((3.0, 5.0), (3.0, 5.0))
    for n in (0, 1, 3, 6):
        budget = (kl(n) + kl(n + 1)) / 2
        made = RepSelect(budget=budget, steps=7, learning_rate=0.1, learn=NOTHING_LEARNT)(network, request)
        assert weights(made)[1][0] == pytest.approx(3 + n * 0.1 / math.sqrt(2), rel=1e-12)


@pytest.mark.parametrize("make", [llama, gpt2, mixtral])
def test_only_matrices_of_the_mlps_move_and_no_router(make):
    moved = collapsed_gradient(make(), family_of("llama")[1].forget, 512)
    assert moved
    assert not [name for name in moved if not any(part in name for part in ("mlp", "expert"))]
    assert not [name for name in moved if name.endswith(("bias", "mlp.gate.weight"))]
    assert sum(float(each.square().sum()) for each in moved.values()) == pytest.approx(1.0, rel=1e-5)


def test_it_raises_the_forget_loss_and_stays_within_the_budget_on_a_model_of_language():
    network, request = family_of("llama")
    made = RepSelect(budget=0.02, learning_rate=0.01)(network, request)
    before, after = (model.ask(Scores(), request.forget).nll() for model in (network, made))
    assert after > before
    with torch.no_grad():
        was, now = (model.ask(Scores(), request.retain).log_probs() for model in (network, made))
    assert 0.01 < float((was.exp() * (was - now)).sum(-1).mean()) <= 0.02


def test_what_cannot_be_is_refused():
    with pytest.raises(DataRefused, match="Give --retain"):
        RepSelect(learn=NOTHING_LEARNT)(linear((3.0, 5.0), (3.0, 5.0)), Request(forget=REQUEST.forget))
    for wrong in ("RepSelect(budget=-1.0)", "RepSelect(rank=-1)", "RepSelect(steps=0)", "RepSelect(learning_rate=0.0)"):
        with pytest.raises(UsageRefused, match="RepSelect: `budget` and `rank` must be at least 0"):
            parse(wrong)
