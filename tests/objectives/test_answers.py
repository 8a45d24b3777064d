"""Losses that ask for another answer, or for none: worked by hand on examples of unequal length."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch

from expunge.core.model import Model, answers
from expunge.core.predictions import Predictions, Share
from expunge.core.question import Scores
from expunge.core.view import View
from expunge.errors import DataRefused
from expunge.notation.parse import parse
from expunge.objectives.dpo import DPO
from expunge.objectives.idk_nll import IdkNLL
from expunge.objectives.jens_un import JensUn
from expunge.objectives.llmu import LLMU
from expunge.objectives.pdu import PDU
from expunge.objectives.random_label import RandomLabel
from expunge.objectives.retain_jsd import RetainJSD
from expunge.objectives.retain_kl import RetainKL


def log(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_idk_nll_is_the_cross_entropy_of_the_stand_in_rows(given):
    now = given(stand_in=[[log(0.5, 0.5)], [log(0.25, 0.75), log(0.5, 0.5)]])
    assert IdkNLL()(now, now).item() == pytest.approx((math.log(2) + math.log(4) + math.log(2)) / 3, abs=1e-12)


def test_llmu_is_the_sum_of_its_three_terms(given):
    assert LLMU() == parse("0.5 * Ascent() + IdkNLL() + RetainKL()")
    now = given(forget=[[log(0.5, 0.5)]], stand_in=[[log(0.25, 0.75)]], retain=[[log(0.75, 0.25)]])
    before = given(retain=[[log(0.5, 0.5)]])
    kept = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    by_hand = -0.5 * math.log(2) + math.log(4) + kept
    assert LLMU()(now, before).item() == pytest.approx(by_hand, abs=1e-12)


def jsd(p: list[float], q: list[float]) -> float:
    """By its definition."""
    mean = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

    def kl(one: list[float]) -> float:
        return sum(a * math.log(a / m) for a, m in zip(one, mean, strict=True) if a > 0)

    return (kl(p) + kl(q)) / 2


def test_jensun_is_the_divergence_from_a_certain_answer(given):
    rows = [[0.2, 0.5, 0.3], [0.9, 0.05, 0.05], [0.5, 0.5 - 1e-9, 1e-9]]
    now = given(stand_in=[[log(*rows[0])], [log(*rows[1]), log(*rows[2])]])
    by_hand = sum(jsd(row, [1.0, 0.0, 0.0]) for row in rows) / 3
    assert JensUn()(now, now).item() == pytest.approx(by_hand, abs=1e-9)


def test_jensun_goes_from_log_2_to_0_and_lets_an_impossible_answer_be(given):
    never, surely = given(stand_in=[[[-60.0, 0.0]]]), given(stand_in=[[[60.0, 0.0]]])
    assert JensUn()(never, never).item() == pytest.approx(math.log(2), abs=1e-12)
    assert JensUn()(surely, surely).item() == pytest.approx(0, abs=1e-12)
    pull = torch.autograd.grad(JensUn()(never, never), never.stand_in.states)[0]
    assert pull.abs().max() < 1e-20  # e^-60 (60 / 2) is about 3e-25


def test_retain_jsd_is_symmetric_and_bounded_and_a_quarter_of_kl_close_by(given):
    one, other = [0.7, 0.2, 0.1], [0.1, 0.6, 0.3]
    a, b = given(retain=[[log(*one)]]), given(retain=[[log(*other)]])
    assert RetainJSD()(a, b).item() == pytest.approx(jsd(one, other), abs=1e-12)
    assert RetainJSD()(b, a).item() == pytest.approx(RetainJSD()(a, b).item(), abs=1e-12)
    far = given(retain=[[[80.0, 0.0, 0.0]]]), given(retain=[[[0.0, 80.0, 0.0]]])
    assert RetainJSD()(*far).item() == pytest.approx(math.log(2), abs=1e-12)
    near = given(retain=[[[1.0, 0.5, 0.0]]]), given(retain=[[[1.0, 0.501, 0.0]]])
    assert RetainJSD()(*near).item() == pytest.approx(RetainKL()(*near).item() / 4, rel=1e-3)


def test_retain_jsd_is_zero_with_zero_gradient_where_nothing_changed(drawn):
    now = drawn(0)
    loss = RetainJSD()(now, drawn(0))
    assert loss.item() == pytest.approx(0, abs=1e-14)
    assert torch.autograd.grad(loss, now.retain.states)[0].abs().max() < 1e-14


def test_pdu_flattens_scores_and_weighs_what_is_retained(given):
    # (3 - 1)^2 and (4 - 2)^2 and (0 - 0)^2: mean over the rows 8 / 3
    now = given(forget=[[[3.0, 0.0, 0.0]], [[0.0, 4.0, 2.0], [0.0, 0.0, 0.0]]], retain=[[log(0.5, 0.5)]])
    by_hand = 8 / 3 + 50 * math.log(2)
    assert PDU()(now, now).item() == pytest.approx(by_hand, abs=1e-12)
    gradient = torch.autograd.grad(PDU()(now, now), now.forget.states)[0]
    # d (max - mean)^2 / d max = 2 (max - mean) (1 - 1/3), over 3 rows
    assert gradient[0].tolist() == pytest.approx([2 * 2 * 2 / 9, -2 * 2 / 9, -2 * 2 / 9], abs=1e-12)
    assert not gradient[2].any()


@dataclass(frozen=True)
class Choice:
    """A question with an answer, and wrong ones."""

    id: str
    rows: int = 1
    alternatives: tuple["Choice", ...] = field(default=())
    weight: float = 1.0

    def record_digest(self) -> str:
        return hashlib.sha256(self.id.encode()).hexdigest()

    fact_digest = record_digest


class Remembers(Model):
    """A model that says `scores`, and keeps what it was asked."""

    def __init__(self, scores: list[float]) -> None:
        self.scores, self.asked = scores, []

    def batches(self, examples: list[Choice]) -> Iterator[list[int]]:
        yield list(range(len(examples)))

    @answers(Scores)
    def say(self, question: Scores, batch: list[Choice]) -> Predictions:
        self.asked += batch
        owner = torch.tensor([k for k, example in enumerate(batch) for _ in range(example.rows)])
        states = torch.tensor([self.scores] * len(owner), dtype=torch.float64, requires_grad=True)
        return Predictions(torch.zeros_like(owner), owner, len(batch), None, states)


def test_an_example_with_options_gets_one_of_its_answers_each_as_often_and_always_the_same():
    questions = [Choice(f"q{k}", 1, (Choice(f"wrong {k}"),)) for k in range(400)]
    model = Remembers([0.0, 0.0])
    for _ in range(2):
        now = View(model, {"forget": questions})
        assert RandomLabel()(now, now).item() == pytest.approx(math.log(2), abs=1e-12)
    first, again = model.asked[:400], model.asked[400:]
    assert first == again
    right = sum(drawn.id.startswith("q") for drawn in first)
    assert 160 <= right <= 240  # 200 +- 4 standard deviations of 10
    other = Remembers([0.0, 0.0])
    RandomLabel(seed=1)(View(other, {"forget": questions}), now)
    assert other.asked != first


def test_an_example_without_options_gets_classes_drawn_from_all():
    # Labels are drawn from 4 classes of probabilities 0.7, 0.1, 0.1, 0.1: the losses of one row tell which it was.
    model = Remembers(log(0.7, 0.1, 0.1, 0.1))
    losses = [RandomLabel()(View(model, {"forget": [Choice(f"image {k}")]}), None).item() for k in range(400)]
    counts = Counter(round(loss, 6) for loss in losses)
    assert set(counts) == {round(-math.log(0.7), 6), round(-math.log(0.1), 6)}
    assert 65 <= counts[round(-math.log(0.7), 6)] <= 135  # 100 +- 4 standard deviations of 8.7


def test_random_labels_count_each_example_alike_and_the_parts_of_a_step_add_up():
    model = Remembers(log(0.7, 0.1, 0.1, 0.1))
    batch = [Choice("long", 9), Choice("short", 1), Choice("asked", 2, (Choice("wrong", 3),))]
    alone = [RandomLabel()(View(model, {"forget": [one]}), None).item() for one in batch]
    whole = RandomLabel()(View(model, {"forget": batch}), None).item()
    assert whole == pytest.approx(sum(alone) / 3, abs=1e-12)
    shares = {"forget": Share(rows=12, examples=3)}
    parts = [RandomLabel()(View(model, {"forget": part}, shares), None).item() for part in (batch[:1], batch[1:])]
    assert sum(parts) == pytest.approx(whole, abs=1e-12)


def test_dpo_refuses_sets_that_are_no_pairs_and_names_ids_only(given):
    now = given(forget=[[log(0.5, 0.5)]] * 2, stand_in=[[log(0.5, 0.5)]] * 2)
    now.sets["stand_in"] = [replace(example, id=f"idk-{example.id}") for example in now.sets["stand_in"]]
    with pytest.raises(DataRefused, match=r"forget: 0, 1; stand_in: idk-0, idk-1"):
        DPO()(now, now)
