"""The numbers of a benchmark, each made of values that were measured text by text, with what it is in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from expunge.audits.truth_ratio import TINY, TruthRatio
from expunge.benchmarks._values import Column, Values
from expunge.primitives.estimates import Estimate, area_estimate, mean_estimate
from expunge.primitives.statistics import ks, priv_leak, smallest_detectable

SIDES = ("forget", "holdout")
"""The sets that membership is of."""
Mean = Literal["arithmetic", "geometric"]
MEMBERSHIP = {
    "loss": "mean loss",
    "min_k": "Min-K",
    "min_k_plus": "Min-K++",
    "zlib": "mean loss over the length that zlib packs the text to",
    "gradient_norm": "mean norm of the gradient of a weight tensor",
    "reference": "mean loss less that of the reference",
}
"""Measures that tell members from others: higher is less of a member."""


@dataclass(frozen=True)
class Number:
    """One number of a benchmark."""

    name: str
    set: str
    value: float | None
    """None: it is not defined here, such as PrivLeak beside a reference that tells members with certainty."""
    n: int
    definition: str
    low: float | None = None
    high: float | None = None
    """The ends of its 95 % interval, over other records like these; None: it has none."""
    against: str = ""
    """The reference that it is held against; empty where it is of the model alone."""

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two ends")


def mean(name: str, where: str, values: Sequence[float], definition: str) -> Number:
    """The mean over records."""
    found = mean_estimate(values)
    low, high = (found.low, found.high) if len(values) > 1 else (None, None)
    return Number(name, where, found.value, len(values), definition, low, high)


def probabilities(losses: Sequence[float]) -> list[float]:
    """exp(-loss), of mean losses per token: the probability to the power 1 / tokens."""
    return torch.tensor(losses, dtype=torch.float64).neg().exp().tolist()


def option_probabilities(right: Sequence[float], wrong: Sequence[Sequence[float]], least: float = TINY) -> list[float]:
    """p / (p + the sum of p of the wrong answers + `least`), where p = exp(-loss).

    Of mean losses it is the released definition. Of losses summed over tokens it is the paper's, of which `least` is 0:
    a whole answer may well have a probability of 1e-10.
    """
    found = []
    for own, others in zip(right, wrong, strict=True):
        losses = _double([own, *others])
        p = (losses.min() - losses).exp()  # in units of the likeliest answer's, so that none vanishes
        found.append(float(p[0] / (p.sum() + least * losses.min().exp())))
    return found


def truth_ratios(right: Sequence[float], wrong: Sequence[Sequence[float]], averaged: Mean) -> list[float]:
    """R of each record, from mean losses per token (see `TruthRatio`)."""
    audit = TruthRatio(mean=averaged)
    pairs = zip(right, wrong, strict=True)
    return [float(audit.ratio(_double([own])[0], _double(others))) for own, others in pairs]


def truth_scores(ratios: Sequence[float], gone: bool) -> list[float]:
    """What is averaged: min(R, 1 / R) of what should be gone, else max(0, 1 - R)."""
    scores: list[float] = TruthRatio.values(_double(ratios), gone).tolist()
    return scores


def membership(values: Values, measure: str) -> Number:
    """How well an attacker tells the forget set from the holdout set by a measure of each answer."""
    found = _area(values, measure)
    told = (
        f"Chance that an answer of the holdout set has a higher value than one of the forget set ({MEMBERSHIP[measure]}"
        f"): 0.5 cannot be told apart, 1 is remembered, 0 is over-forgotten."
    )
    n = sum(len(values.of(side, measure)) for side in SIDES)
    return Number(f"membership by {measure}", " vs ".join(SIDES), found.value, n, told, found.low, found.high)


def _area(values: Values, measure: str) -> Estimate:
    forget, holdout = (values.of(where, measure) for where in SIDES)
    return area_estimate([*holdout, *forget], positives=len(holdout))


def leak(values: Values, reference: Values | None, against: str, measure: str = "min_k") -> Number:
    """PrivLeak by a measure; a reference that lacks it counts as one that cannot tell (0.5)."""
    there = reference is not None and all(reference.has(where, measure) for where in SIDES)
    chance = _area(reference, measure).value if reference is not None and there else 0.5
    area = _area(values, measure).value
    told = f"100 ((1 - AUC) - (1 - AUC of {against if there else 'chance, 0.5'})) / (1 - that AUC), by {measure}."
    leaked = priv_leak(area, chance)
    where, n = " vs ".join(SIDES), sum(len(values.of(side, measure)) for side in SIDES)
    return Number("PrivLeak", where, None if math.isnan(leaked) else leaked, n, told, against=against if there else "")


def compare(ours: Sequence[float], theirs: Sequence[float], against: str, averaged: Mean) -> list[Number]:
    """Forget quality: whether truth ratios look drawn like the reference's, on which side they lie, and what shows."""
    shift, sizes = ks(ours, theirs), f"{len(ours)} against {len(theirs)} questions"
    least = smallest_detectable(len(ours), len(theirs))
    said: dict[str, tuple[float | None, str]] = {
        "forget quality": (
            shift.p,
            f"p of the two-sided two-sample Kolmogorov-Smirnov test of R ({averaged}), {sizes}.",
        ),
        "KS distance": (shift.distance, f"The statistic of that test, {sizes}."),
        "KS side": (
            float(shift.sign),
            "-1: R lies below the reference's, so more is known than there; 1: above, so it is over-forgotten.",
        ),
        "KS detectable": (
            least if math.isfinite(least) else None,
            f"The smallest distance that has p < 0.05 with {sizes}: no lesser one shows.",
        ),
    }
    return [Number(name, "forget", value, len(ours), told, against=against) for name, (value, told) in said.items()]


def against(values: Values, reference: Values, name: str) -> list[Number]:
    """Membership by the loss less that of a reference, where both were asked the same questions."""
    ours, theirs = ({w: each.columns.get(Column(w, "loss"), {}) for w in SIDES} for each in (values, reference))
    if not all(ours[w] and ours[w].keys() == theirs[w].keys() for w in SIDES):
        return []
    differences = {w: {record: loss - theirs[w][record] for record, loss in ours[w].items()} for w in SIDES}
    made = membership(Values({Column(w, "reference"): differences[w] for w in SIDES}), "reference")
    return [replace(made, against=name)]


def _double(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
