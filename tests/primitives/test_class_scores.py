"""Numbers read row by row are those of the plain computation, and no matrix of all rows and classes is made."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from expunge.core.predictions import Predictions
from expunge.primitives import class_scores as rows
from expunge.primitives.class_scores import Head, divergence, entropy

ROWS, WIDTH, CLASSES = 7, 5, 11


@pytest.fixture(autouse=True)
def three_rows_a_chunk(monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", {"cpu": 3 * CLASSES})
    monkeypatch.setattr(rows, "BLOCK", {"cpu": 3 * 4})  # and answers: 3 rows by 4 classes
    monkeypatch.setattr(rows, "ROWS", 3)


def says(seed: int, dtype=torch.float64, moves: bool = False) -> Predictions:
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(ROWS, WIDTH, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(CLASSES, WIDTH, generator=draw).to(dtype).requires_grad_(moves)
    bias = torch.randn(CLASSES, generator=draw).to(dtype).requires_grad_(moves)
    owner = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    return Predictions(torch.arange(ROWS) % CLASSES, owner, 3, None, states, Head(weight, bias))


@pytest.mark.parametrize("moves", [False, True])
def test_values_and_gradients_are_those_of_the_whole_matrix(moves):
    said, before = says(0, moves=moves), says(1)
    weights = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    whole = torch.nn.functional.log_softmax(said.states @ said.head.weight.T + said.head.bias, -1)
    was = torch.nn.functional.log_softmax(before.states @ before.head.weight.T + before.head.bias, -1).detach()
    asked = [said.states, *([said.head.weight, said.head.bias] if moves else [])]
    for ours, plain in (
        (said.log_prob(), whole[torch.arange(ROWS), said.labels]),
        (said.each_row(divergence, before), (was.exp() * (was - whole)).sum(-1)),
        (said.each_row(entropy), -(whole.exp() * whole).sum(-1)),
    ):
        assert torch.allclose(ours, plain, atol=1e-12, rtol=0)
        got = torch.autograd.grad((ours * weights).sum(), asked, retain_graph=True)
        wanted = torch.autograd.grad((plain * weights).sum(), asked, retain_graph=True)
        for a, b in zip(got, wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-12, rtol=0)


def test_without_gradients_the_values_are_the_same_in_a_chunk_of_three_three_and_one_row():
    said, before = says(0), says(1)
    with torch.no_grad():
        ours = said.each_row(divergence, before), said.log_prob()
    assert torch.allclose(ours[0], said.each_row(divergence, before).detach(), atol=1e-12, rtol=0)
    assert torch.allclose(ours[1], said.log_prob().detach(), atol=1e-12, rtol=0)


def test_the_gradient_is_that_of_finite_differences():
    said, before = says(2), says(3)

    def read(states):
        now = Predictions(said.labels, said.example, 3, None, states, said.head)
        return now.log_prob() + now.each_row(divergence, before) + now.each_row(entropy)

    assert torch.autograd.gradcheck(read, (said.states,))


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("moves", [False, True])
def test_no_matrix_of_all_rows_and_classes_exists(moves):
    said, before = says(0, moves=moves), says(1)
    with Largest() as largest:
        (said.log_prob().sum() + said.each_row(divergence, before).sum()).backward()
        said.row_scores()
    assert largest.numbers <= max(3 * CLASSES, CLASSES * WIDTH) < ROWS * CLASSES
    with Largest() as largest:
        said.log_probs()
    assert largest.numbers == ROWS * CLASSES  # the check does see such a matrix


def test_a_model_in_bfloat16_is_read_in_float32():
    said = says(4, torch.bfloat16)
    values = said.log_prob()
    values.sum().backward()
    assert values.dtype == torch.float32
    assert said.states.grad.dtype == torch.bfloat16
    plain = said.logits.float().log_softmax(-1)[torch.arange(ROWS), said.labels]
    assert torch.allclose(values, plain, atol=1e-6)


def test_a_batch_is_cut_into_its_parts():
    said = says(5)
    first, second = said.cut([1, 2])
    assert first.example.tolist() == [0, 0, 0]
    assert second.example.tolist() == [0, 1, 1, 1]
    assert (first.examples, second.examples) == (1, 2)
    assert torch.equal(torch.cat([first.log_prob(), second.log_prob()]), said.log_prob())


def test_a_log_of_the_loss_does_not_meet_the_output_matrix_again(monkeypatch):
    said, met = says(6), []
    monkeypatch.setattr(rows, "chunks", lambda *asked, plain=rows.chunks: (met.append(1), plain(*asked))[1])
    loss = said.nll()
    with torch.no_grad():
        assert said.nll() == loss
        assert not said.nll().requires_grad
    assert len(met) == 1
    assert said.nll().requires_grad  # with gradients it is worked out anew: a graph serves one backward
    assert len(met) == 2


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_answers_are_those_of_the_whole_matrix(dtype, close):
    said = says(4, dtype)
    twice = Predictions(
        torch.cat([said.labels, said.labels.flip(0)]),  # two answers to each question: the states stand there twice
        torch.zeros(2 * ROWS, dtype=torch.long),
        1,
        None,
        torch.cat([said.states, said.states]),
        said.head,
    )
    whole = (twice.states.double() @ said.head.weight.double().T + said.head.bias.double()).log_softmax(-1)
    answers = twice.row_scores()
    assert torch.allclose(
        answers.log_probs.double(), whole.gather(-1, twice.labels[:, None])[:, 0], atol=close, rtol=close
    )
    assert answers.log_probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert answers.right.tolist() == (whole.argmax(-1) == twice.labels).tolist()


def test_of_equal_scores_the_first_comes_first():
    states, weight = torch.ones(1, 2), torch.ones(9, 2)  # nine equal scores, in blocks of four, four and one

    def right(label: int) -> bool:
        return bool(
            Predictions(torch.tensor([label]), torch.tensor([0]), 1, None, states, Head(weight)).row_scores().right
        )

    assert [right(label) for label in range(9)] == [True] + [False] * 8
