"""FLAT against the theory that it stands on: every conjugate numerically, and the way that it moves a model."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.optimize import minimize_scalar

from expunge.errors import UsageRefused
from expunge.objectives.flat import _PAIRS, FLAT, Divergence

GENERATORS: dict[Divergence, Callable[[float], float]] = {
    "tv": lambda u: abs(u - 1) / 2,
    "kl": lambda u: u * math.log(u),
    "pearson": lambda u: (u - 1) ** 2,
    "js": lambda u: u * math.log(u) - (u + 1) * math.log((u + 1) / 2),
    "reverse_kl": lambda u: -math.log(u),
    "hellinger": lambda u: (math.sqrt(u) - 1) ** 2,
    "jeffrey": lambda u: (u - 1) * math.log(u),
    "neyman": lambda u: (u - 1) ** 2 / u,
}
DIVERGENCE = pytest.mark.parametrize("divergence", GENERATORS)
GRID = [k / 20 for k in range(1, 20)]  # mean probabilities


def conjugate(f: Callable[[float], float], t: float) -> float:
    """sup over u > 0 of u t - f(u), searched for."""
    found = minimize_scalar(lambda x: f(math.exp(x)) - math.exp(x) * t, bounds=(-6, 6), options={"xatol": 1e-10})
    return -found.fun


def test_the_table_has_the_eight_divergences():
    assert set(_PAIRS) == set(GENERATORS)
    assert all(abs(f(1.0)) < 1e-12 for f in GENERATORS.values())  # each is 0 between equals


@DIVERGENCE
def test_the_conjugate_at_the_witness_is_what_a_search_finds(divergence: Divergence):
    witness, composed = _PAIRS[divergence]
    for p in GRID:
        at = torch.tensor(p, dtype=torch.float64)
        searched = conjugate(GENERATORS[divergence], witness(at).item())
        assert composed(at).item() == pytest.approx(searched, abs=1e-6), p


@DIVERGENCE
def test_the_slope_of_the_conjugate_is_that_of_finite_differences(divergence: Divergence):
    for half in _PAIRS[divergence]:
        assert torch.autograd.gradcheck(half, torch.tensor(GRID, dtype=torch.float64, requires_grad=True))


def test_two_entries_of_the_published_table_are_no_conjugates():
    # jeffrey: P + P^2/4 + P^3/16; neyman, at its own witness 1 - e^P: 2 - 2 sqrt(1 - P)
    assert conjugate(GENERATORS["jeffrey"], 1.0) == pytest.approx(1.3304, abs=1e-4)
    assert 1 + 1 / 4 + 1 / 16 == 1.3125
    assert conjugate(GENERATORS["neyman"], 1 - math.exp(0.5)) == pytest.approx(2 - 2 * math.exp(0.25), abs=1e-6)
    assert 2 - 2 * math.sqrt(1 - 0.5) > 0.58 > 0 > 2 - 2 * math.exp(0.25)


@DIVERGENCE
def test_witness_and_conjugate_rise_with_the_probability_which_gives_the_direction(divergence: Divergence):
    """-g(P) on the stand-in and f*(g(P)) on the forgotten: with e^P for e^-P three of the eight would fall."""
    at = torch.tensor(GRID, dtype=torch.float64, requires_grad=True)
    for half in _PAIRS[divergence]:
        assert (torch.autograd.grad(half(at).sum(), at)[0] > 0.1).all()


def log(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_kl_worked_on_ragged_answers(given):
    # forget: P = 0.9, and (0.5 + 0.1 + 0.6) / 3 = 0.4; stand-in: (0.2 + 0.4) / 2 = 0.3, and 0.7
    forget = [[log(0.9, 0.1)], [log(0.5, 0.5), log(0.1, 0.9), log(0.6, 0.4)]]
    stand_in = [[log(0.2, 0.8), log(0.4, 0.6)], [log(0.7, 0.3)]]
    now = given(forget=forget, stand_in=stand_in)
    by_hand = (math.exp(0.9 - 1) + math.exp(0.4 - 1)) / 2 - (0.3 + 0.7) / 2
    assert FLAT(divergence="kl")(now, now).item() == pytest.approx(by_hand, abs=1e-12)


def test_total_variation_of_equal_answers_is_zero(given):
    same = [[log(0.9, 0.1)], [log(0.5, 0.5), log(0.1, 0.9)]]
    now = given(forget=same, stand_in=same)
    assert FLAT()(now, now).item() == pytest.approx(0, abs=1e-15)


@DIVERGENCE
def test_a_step_down_raises_the_stand_in_and_lowers_the_forgotten(divergence: Divergence, drawn):
    now = drawn(0)
    loss = FLAT(divergence=divergence)(now, now)
    likely = {name: now.scores(name).mean(now.scores(name).log_prob().exp()).sum() for name in ("forget", "stand_in")}
    for name, wanted in (("forget", -1), ("stand_in", 1)):
        states = now.scores(name).states
        step = -torch.autograd.grad(loss, states, retain_graph=True)[0]
        change = (torch.autograd.grad(likely[name], states, retain_graph=True)[0] * step).sum()
        assert wanted * change > 0


def test_pearson_pushes_the_forgotten_by_1_plus_half_p(given):
    forget = [[log(0.8, 0.2)]]
    now = given(forget=forget, stand_in=[[log(0.3, 0.7)]])
    got = torch.autograd.grad(FLAT(divergence="pearson")(now, now), now.forget.states)[0]
    # dP / d score of y = p (1 - p) = 0.16
    assert got[0, 0].item() == pytest.approx((1 + 0.8 / 2) * 0.16, abs=1e-12)


def test_a_divergence_that_is_not_there_is_refused():
    with pytest.raises(UsageRefused, match="The `divergence` of FLAT must be one of tv, kl"):
        FLAT(divergence="wasserstein")
