"""The Triton kernels against the torch path, on a CPU under Triton's interpreter.

Not collected by itself: the interpreter must be chosen before Triton is imported, so `test_kernels.py` runs this file
in a process of its own. By hand: TRITON_INTERPRET=1 python -m pytest tests/adapters/interpreted_kernels.py
"""

import math

import pytest
import torch
from torch import Tensor

from expunge.adapters import _fold as fold
from expunge.adapters import _kernels as kernels
from expunge.adapters._maps import MAPS, Form, Map

RAGGED = [(150, 130, 70, 3), (65, 200, 33, 20)]  # out, in, tokens, rank
SHAPES = [
    *((torch.float32, *shape) for shape in [*RAGGED, (64, 128, 64, 16), (600, 70, 5, 2), (1, 1, 1, 1)]),
    *((dtype, *shape) for dtype in (torch.bfloat16, torch.float16) for shape in RAGGED),
]


def noise(*shape: int, size: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


def factors(out: int, width: int, rank: int) -> tuple[Tensor, Tensor]:
    return noise(rank, width, size=0.1, seed=1), noise(out, rank, size=0.1, seed=2)


def off(got: Tensor, right: Tensor) -> float:
    """Relative error, as a whole."""
    return ((got.double() - right.double()).norm() / right.double().norm()).item()


def by_torch(dy: Tensor, x: Tensor, a: Tensor, b: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Gradients of the torch path in float64: it rounds dY^T X to the input's precision, which the kernels do not."""
    a, b = a.double().requires_grad_(), b.double().requires_grad_()
    weight = torch.zeros(len(b), a.shape[1], dtype=torch.float64)
    fold.bounded_linear(x.double(), weight, None, a, b, form).backward(dy.double())
    return a.grad, b.grad


def test_the_interpreter_is_on():
    assert kernels.INTERPRETED


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize(("dtype", "out", "width", "tokens", "rank"), SHAPES)
def test_the_folded_weight_is_the_torch_paths(map, dtype, out, width, tokens, rank):
    a, b = factors(out, width, rank)
    weight, form = noise(out, width, size=0.05).to(dtype), Form.of(map, rank, 2.0 * rank, 30.0, None, width)
    # The interpreter cuts bfloat16 off where torch rounds: 1 step of the last place, 2^-7 of the value.
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    right = fold.fold(weight.float(), a, b, form)
    for given in (weight, weight.T.contiguous().T):  # as a linear layer has it, and as GPT-2's Conv1D has it
        got = kernels.fold(given, a, b, form)
        assert got.dtype == dtype
        assert got.stride() == given.stride()
        assert torch.allclose(got.float(), right, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize(("dtype", "out", "width", "tokens", "rank"), SHAPES)
def test_the_factors_gradients_are_the_torch_paths(map, dtype, out, width, tokens, rank):
    a, b = factors(out, width, rank)
    x, dy = noise(tokens, width, seed=3).to(dtype), noise(tokens, out, seed=4).to(dtype)
    form = Form.of(map, rank, 2.0 * rank, 30.0, None, width)
    got, right = kernels.factor_gradients(dy, x, a, b, form), by_torch(dy, x, a, b, form)
    assert [g.dtype for g in got] == [torch.float32] * 2
    assert max(off(g, r) for g, r in zip(got, right, strict=True)) < 2e-6


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # NumPy's, on the way to the right 0
@pytest.mark.parametrize("map", MAPS)
def test_value_and_slope_hold_their_digits_from_tiny_phases_to_large_ones(map):
    # rank 1, A = 1: the phase is B itself. One token of ones: dY^T X = 1, so dB is the slope.
    size = torch.logspace(-6, math.log10(200), 400)
    phase, one = torch.cat([-size, size])[:, None], torch.ones(1, 1)
    form = Form(map, omega=1.0, scale=1.0)
    value = kernels.fold(torch.zeros_like(phase), one, phase, form).double()
    right = MAPS[map].value(phase.double())
    # sigmoid is 2 p - 1 on the torch path too, where a tiny phase loses digits; the others lose none.
    assert torch.allclose(value, right, rtol=1e-6, atol=2e-7 if map == "sigmoid" else 1e-12 if map == "tanh" else 1e-7)
    slope = kernels.factor_gradients(torch.ones(1, len(phase)), one, one, phase, form)[1].double()
    assert torch.allclose(slope, MAPS[map].slope(phase.double()), rtol=1e-6, atol=3e-7)


def test_a_layer_worked_through_in_blocks_of_rows_gets_the_same_gradients(monkeypatch):
    (a, b), form = factors(300, 90, 5), Form.of("sine", 5, 10.0, 30.0, None, 90)
    x, dy = noise(40, 90, seed=3), noise(40, 300, seed=4)
    whole = kernels.factor_gradients(dy, x, a, b, form)
    # For each 64 rows: A's partial sums, 90 * 5, and B's from two tiles across, 2 * 64 * 5, of 4 bytes: 4360.
    monkeypatch.setattr(kernels, "PARTIAL", 2 * 4360)  # 300 rows in blocks of 128, 128 and 44
    parts = kernels.factor_gradients(dy, x, a, b, form)
    assert torch.equal(whole[1], parts[1])
    assert off(parts[0], whole[0]) < 1e-6


def test_the_same_input_gives_the_same_bits():
    (a, b), form = factors(150, 130, 8), Form.of("sine", 8, 16.0, 100.0, None, 130)
    x, dy = noise(50, 130, seed=3), noise(50, 150, seed=4)
    first, second = (kernels.factor_gradients(dy, x, a, b, form) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_inputs_and_factors_that_are_views_are_read_as_they_lie():
    (a, b), form = factors(70, 66, 4), Form.of("sine", 4, 8.0, 30.0, None, 66)
    x, dy = noise(66, 2 * 30, seed=3).T[::2], torch.tensor([0.5]).expand(30, 70)
    a_view, b_view = a.T.contiguous().T, b.T.contiguous().T
    got = kernels.factor_gradients(dy, x, a_view, b_view, form)
    right = by_torch(dy, x, a, b, form)
    assert max(off(g, r) for g, r in zip(got, right, strict=True)) < 2e-6
    weight = noise(70, 66)
    assert torch.equal(kernels.fold(weight, a_view, b_view, form), kernels.fold(weight, a, b, form))


@pytest.mark.parametrize("map", MAPS)
def test_a_factor_that_is_nan_shows_in_the_weight_as_on_the_torch_path(map):
    (a, b), form = factors(70, 66, 4), Form.of(map, 4, 8.0, 30.0, None, 66)
    b[3, 1] = math.nan
    got, right = kernels.fold(noise(70, 66), a, b, form), fold.fold(noise(70, 66), a, b, form)
    assert right[3].isnan().all()
    assert torch.equal(got.isnan(), right.isnan())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("map", ["sine", "clip"])
def test_a_whole_layer_through_the_kernels_is_the_torch_path(map, transposed, monkeypatch):
    form, bias = Form.of(map, 3, 6.0, 30.0, None, 66), noise(70, seed=5)
    weight = noise(66, 70).T if transposed else noise(70, 66)

    def run() -> list[Tensor]:
        a, b = (factor.requires_grad_() for factor in factors(70, 66, 3))
        x = noise(2, 5, 66, seed=3).requires_grad_()
        y = fold.bounded_linear(x, weight, bias, a, b, form)
        y.backward(noise(2, 5, 70, seed=4))
        return [y.detach(), x.grad, a.grad, b.grad]

    right = run()
    monkeypatch.setattr(fold, "kernels", lambda *_: kernels)
    got = run()
    assert [g.shape for g in got] == [r.shape for r in right]
    assert max(off(g, r) for g, r in zip(got, right, strict=True)) < 2e-6


def test_a_trial_on_a_device_passes_kernels_that_are_right_and_finds_those_that_are_wrong(monkeypatch):
    cpu, before = torch.device("cpu"), torch.get_rng_state()
    assert kernels.disagreement(cpu, torch.float32, "sine", 8) < 1e-6
    assert kernels.disagreement(cpu, torch.bfloat16, "sine", 33) < 0.004
    assert torch.equal(torch.get_rng_state(), before)
    sine = MAPS["sine"]
    for wrong in (Map(MAPS["tanh"].value, sine.slope), Map(sine.value, MAPS["tanh"].slope)):
        monkeypatch.setitem(kernels.MAPS, "sine", wrong)
        assert kernels.disagreement(cpu, torch.bfloat16, "sine", 8) > 0.02


def test_the_interpreter_is_never_taken_for_a_gpu():
    fold._try_kernels.cache_clear()
    with pytest.warns(RuntimeWarning, match="TRITON_INTERPRET is set"):
        assert fold._try_kernels(torch.device("cpu"), torch.float32, "sine", 8) is None
