"""Concept activation vectors (Kim et al., 2018, arXiv 1711.11279): directions that separate examples of a concept."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from expunge.core.audit import Audit, Finding
from expunge.errors import UsageRefused
from expunge.primitives.statistics import mean_interval

if TYPE_CHECKING:
    from jaxtyping import Float

COSTS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""How much a support vector machine minds an example on the wrong side; the best is chosen on examples held out."""
HELD_OUT = 1 / 3


def cav(
    shown: Float[np.ndarray, "a width"], others: Float[np.ndarray, "b width"], draw: np.random.Generator
) -> tuple[Float[np.ndarray, " width"], float]:
    """The unit normal, towards `shown`, of a linear SVM that tells them from `others`; its accuracy on those held out.

    States are scaled by one number, so that `COSTS` mean the same in every layer; a direction is not changed by it.
    """
    both = np.concatenate([shown, others])
    scale = float(np.sqrt(np.square(both).sum(1).mean())) or 1.0
    if both.shape[1] > len(both):
        # The normal lies in the span of the examples: there the fit is the same, and many times as fast.
        basis = np.linalg.qr(both.T)[0]
        normal, accuracy = cav(shown @ basis, others @ basis, draw)
        return basis @ normal, accuracy
    parts = [_cut(states / scale, draw) for states in (shown, others)]
    (left, left_out), (right, right_out) = parts
    asked, truth = np.concatenate([left_out, right_out]), np.repeat([1, 0], [len(left_out), len(right_out)])
    best = max(
        (
            (float(np.mean((asked @ w + b > 0) == truth)), -cost, w)
            for cost in COSTS
            for w, b in [_fit(left, right, cost)]
        ),
        key=lambda found: found[:2],
    )
    normal = _fit(shown / scale, others / scale, -best[1])[0]
    return normal / (np.linalg.norm(normal) or 1.0), best[0]


def _cut(states: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Examples to learn from, and some held out; of a single example, the same one twice."""
    order = draw.permutation(len(states))
    out = max(1, round(HELD_OUT * len(states)))
    return states[order[out:]] if len(states) > 1 else states, states[order[:out]]


def _fit(shown: np.ndarray, others: np.ndarray, cost: float) -> tuple[np.ndarray, float]:
    labels = np.repeat([1, 0], [len(shown), len(others)])
    machine = LinearSVC(C=cost, class_weight="balanced", random_state=0, max_iter=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its direction has long settled
        machine.fit(np.concatenate([shown, others]), labels)
    return machine.coef_[0], float(machine.intercept_[0])


def sample(states: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """At most `count` rows by lot."""
    return states[draw.permutation(len(states))[:count]]


def random_cavs(
    states: Float[np.ndarray, "examples width"], count: int, draws: int, draw: np.random.Generator
) -> list[Float[np.ndarray, " width"]]:
    """Directions between random sets of at most `count` examples: what a concept that means nothing gets."""
    half = min(count, len(states) // 2)
    pairs = (sample(states, 2 * half, draw) for _ in range(draws))
    return [cav(both[:half], both[half:], draw)[0] for both in pairs]


def remaining(
    states: Float[np.ndarray, "examples width"],
    middle: Float[np.ndarray, " width"],
    directions: Sequence[Float[np.ndarray, " width"]],
) -> Float[np.ndarray, "examples width"]:
    """The states with what lies along the directions set to that of `middle`."""
    if not len(directions):
        return states
    basis = np.linalg.qr(np.stack(directions, axis=1))[0]
    left: np.ndarray = states - (states - middle) @ basis @ basis.T
    return left


# What audits of concepts share


def present(audit: str, concepts: Sequence[str], sets: Mapping[str, object]) -> None:
    """Refuse a concept that no set of the request shows."""
    missing = [name for name in concepts if name not in sets]
    if missing:
        raise UsageRefused(f"{audit}: there is no set '{missing[0]}'. Sets: {', '.join(sets)}. Give it as a probe.")


def mean_of(audit: Audit, name: str, scores: Float[np.ndarray, " scores"]) -> Finding:
    """The mean of `scores` with its interval, which holds it."""
    values = scores.tolist()
    value = float(np.mean(values))
    low, high = mean_interval(values)
    return audit.finding(name, value, (min(low, value), max(high, value)), values)
