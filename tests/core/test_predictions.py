"""Rows and examples, worked by hand on examples of one, three and two rows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core.model import Model, answers
from expunge.core.predictions import Predictions, RowScores, Share
from expunge.core.question import LogProbabilities, Scores
from expunge.primitives import class_scores
from expunge.primitives.class_scores import Head

OWNERS = [0, 1, 1, 1, 2, 2]
VALUES = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 7.0], dtype=torch.float64)


def says(owners: list[int], logits: list[list[float]], labels: list[int], examples: int | None = None) -> Predictions:
    return Predictions(
        labels=torch.tensor(labels),
        example=torch.tensor(owners),
        examples=max(owners) + 1 if examples is None else examples,
        share=None,
        states=torch.tensor(logits, dtype=torch.float64),
    )


def ragged(share: Share | None = None) -> Predictions:
    said = says(OWNERS, [[0.0, 0.0]] * 6, [0] * 6)
    return said if share is None else said.part_of(share)


def test_sum_and_mean_go_over_the_rows_of_each_example():
    assert ragged().sum(VALUES).tolist() == [1.0, 2.0 + 3.0 + 4.0, 5.0 + 7.0]
    assert ragged().mean(VALUES).tolist() == [1.0, 9 / 3, 12 / 2]
    assert ragged().counts().tolist() == [1, 3, 2]


def test_means_over_rows_and_over_examples_differ_on_ragged_rows():
    said = ragged()
    assert said.over_rows(VALUES).item() == 22 / 6
    assert said.over_examples(said.mean(VALUES)).item() == (1 + 3 + 6) / 3


def test_a_share_divides_by_the_counts_of_the_whole_step():
    said = ragged(Share(rows=11, examples=8))
    assert said.over_rows(VALUES).item() == 22 / 11
    assert said.over_examples(said.mean(VALUES)).item() == 10 / 8


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(1, 5), min_size=2, max_size=7),
    cuts=st.lists(st.integers(0, 7), max_size=3),
    seed=st.integers(0, 9),
)
def test_the_parts_of_a_step_add_up_exactly_to_the_whole(rows: list[int], cuts: list[int], seed: int):
    # Whole numbers over a power of two add up without rounding, so equality is exact where the arithmetic is right.
    draw = torch.Generator().manual_seed(seed)
    values = torch.randint(-512, 512, (sum(rows),), generator=draw).double() / 4
    owner = [k for k, n in enumerate(rows) for _ in range(n)]
    whole = says(owner, [[0.0]] * len(owner), [0] * len(owner))
    share = Share(rows=len(owner), examples=len(rows))
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    of_rows = of_examples = 0.0
    for start, end in zip(edges, edges[1:], strict=False):
        mine = torch.tensor([start <= k < end for k in owner])
        part = says([k - start for k in owner if start <= k < end], [[0.0]] * int(mine.sum()), [0] * int(mine.sum()))
        part = part.part_of(share)
        of_rows += part.over_rows(values[mine]).item() * len(owner)
        of_examples += part.over_examples(part.sum(values[mine])).item() * len(rows)
    assert math.isclose(of_rows, whole.over_rows(values).item() * len(owner), abs_tol=1e-9)
    assert math.isclose(of_examples, whole.over_examples(whole.sum(values)).item() * len(rows), abs_tol=1e-9)


def test_a_part_without_examples_of_a_set_counts_nothing():
    none = Predictions(
        labels=torch.tensor([], dtype=torch.long),
        example=torch.tensor([], dtype=torch.long),
        examples=0,
        share=None,
        states=torch.zeros(0, 2),
    )
    assert none.nll().item() == 0.0
    assert none.over_examples(torch.zeros(0)).item() == 0.0


def test_split_gives_each_example_its_rows_whatever_their_order():
    said = says([2, 0, 2, 1], [[0.0]] * 4, [0] * 4)
    assert [part.tolist() for part in said.split(torch.tensor([10, 20, 30, 40]))] == [[20], [40], [10, 30]]
    empty = says([0, 2], [[0.0]] * 2, [0, 0])
    assert [part.tolist() for part in empty.split(torch.tensor([1, 2]))] == [[1], [], [2]]
    assert empty.mean(torch.tensor([1.0, 2.0])).tolist() == [1.0, 0.0, 2.0]


def test_log_prob_is_the_label_s_score_less_the_log_of_the_sum_of_exponentials():
    said = says([0, 0], [[1.0, 2.0], [0.0, 0.0]], [1, 0])
    first, second = 2 - math.log(math.e + math.e**2), -math.log(2)
    assert torch.allclose(said.log_prob(), torch.tensor([first, second], dtype=torch.float64), atol=1e-15)
    assert math.isclose(said.nll().item(), -(first + second) / 2)
    assert torch.allclose(said.log_probs().exp().sum(-1), torch.ones(2, dtype=torch.float64))


def test_half_precision_scores_are_widened_before_the_softmax():
    logits = torch.tensor([[6.0, 0.0, 0.0]], dtype=torch.bfloat16)
    said = Predictions(torch.tensor([0]), torch.tensor([0]), 1, None, logits)
    assert said.log_prob().dtype == torch.float32
    # In bfloat16, 6 + log(1 + 2 exp(-6)) = 6.005 is 6, and the answer would be certain.
    assert math.isclose(said.log_prob().item(), -math.log(1 + 2 * math.exp(-6)), rel_tol=1e-4)
    assert said.log_probs().dtype == torch.float32


def test_answers_say_which_rows_had_the_right_class_first():
    said = says([0, 0, 1], [[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]], [1, 1, 1]).row_scores()
    assert said.right.tolist() == [True, False, True]
    assert said.mean(said.right.double()).tolist() == [1 / 2, 1.0]


def test_answers_taken_apart_and_joined_are_the_same():
    said = says(OWNERS, [[float(k), 1.0] for k in range(6)], [0, 1, 0, 1, 0, 1]).row_scores()
    parts = said.cut([1] * said.examples)
    assert [part.counts().tolist() for part in parts] == [[1], [3], [2]]
    whole = RowScores.join(parts)
    for name in ("labels", "example", "log_probs", "right"):
        assert torch.equal(getattr(whole, name), getattr(said, name)), name
    assert whole.examples == 3


@dataclass(frozen=True)
class Counted:
    """An example of so many rows, all of the class that its number says."""

    number: int
    rows: int
    weight: float = 1.0
    id: str = ""
    size: int = 1


class OutOfOrder(Model):
    """Reads the last example with the first, and those between later."""

    @answers(Scores)
    def scores(self, question: Scores, batch: list[Counted]) -> Predictions:
        owner = [k for k, example in enumerate(batch) for _ in range(example.rows)]
        return says(owner, [[0.0] * 3] * len(owner), [batch[k].number for k in owner])

    def batches(self, examples: list[Counted]) -> Iterator[list[int]]:
        yield [len(examples) - 1, 0]
        yield list(range(1, len(examples) - 1))


def test_batches_read_in_any_order_are_joined_in_the_order_of_the_examples():
    whole = OutOfOrder().ask(LogProbabilities(), [Counted(0, 2), Counted(1, 2), Counted(2, 1)])
    assert whole.example.tolist() == [0, 0, 1, 1, 2]
    assert whole.labels.tolist() == [0, 0, 1, 1, 2]
    assert whole.counts().tolist() == [2, 2, 1]


def test_the_statistics_of_a_row_worked_by_hand():
    # p = 1/2, 1/4, 1/4; log p = -log 2, -2 log 2, -2 log 2; mean under p -1.5 log 2, variance under p (log 2)^2 / 4
    halves = [math.log(2), 0.0, 0.0]
    said = says([0, 0, 1], [halves, halves, [1.0, 3.0, 2.0]], [1, 0, 2]).row_moments()
    assert said.rank.tolist() == [1, 0, 1]
    two = math.log(2)
    assert said.log_probs[:2].tolist() == pytest.approx([-2 * two, -two])
    assert said.mean_log_prob[:2].tolist() == pytest.approx([-1.5 * two] * 2)
    assert said.variance[:2].tolist() == pytest.approx([two**2 / 4] * 2)
    assert said.entropy[0].item() == pytest.approx(1.5 * two)


def test_the_statistics_of_rows_are_those_of_all_their_scores_whatever_the_chunks(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    states, matrix = torch.randn(9, 4, generator=draw), Head(torch.randn(30, 4, generator=draw))
    labels = torch.randint(30, (9,), generator=draw)
    monkeypatch.setattr(class_scores, "CHUNK", {"cpu": 60})  # two rows at a time
    said = Predictions(labels, torch.arange(9), 9, None, states, matrix).row_moments()
    log_probs = (states @ matrix.weight.T).log_softmax(-1)
    right = log_probs[torch.arange(9), labels]
    mean = (log_probs.exp() * log_probs).sum(-1)
    assert torch.allclose(said.log_probs, right, atol=1e-6)
    assert said.rank.tolist() == (log_probs > right[:, None]).sum(-1).tolist()
    assert torch.allclose(said.mean_log_prob, mean, atol=1e-6)
    assert torch.allclose(said.variance, (log_probs.exp() * (log_probs - mean[:, None]) ** 2).sum(-1), atol=1e-5)
