"""Gradient restriction of IAU (arXiv 2507.23257): trains an original model that one step can make forget later.

    loss = CE(retain) + 0.005 * sum over parameter tensors p of || d CE(retain) / d p ||_2

This is the sum of norms, to be added to the training loss of the *original*: `RetainNLL() + 0.005 * GradientNorm()`.
Where gradients are small, the step of `IAU` is closer to the influence function that it approximates (on a small CNN no
gain was
seen: docs/results.md). Its own gradient is a second derivative, which takes two to three times as long; and the norm of
a sum is not the sum of norms, so there must be no micro-batches (`accumulate=1`).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.core.model import Network
from expunge.core.objective import Objective, Scalar
from expunge.core.question import Scores
from expunge.core.view import View
from expunge.errors import ModelRefused, UsageRefused


@dataclass(frozen=True)
class GradientNorm(Objective):
    """Sum over the trainable tensors of the Euclidean norm of the retain loss's gradient."""

    needs: ClassVar[tuple[str, ...]] = ("retain",)
    intention: ClassVar[Literal["removal", "suppression", "retention"]] = "retention"

    def __call__(self, now: View, before: View) -> Scalar:
        if not isinstance(now.model, Network):
            raise ModelRefused(f"{type(now.model).__name__} has no weights, so no gradients to restrict.")
        if now.fraction("retain") < 1:
            raise UsageRefused(
                "GradientNorm is not a mean over rows, so a step cannot have micro-batches: accumulate=1."
            )
        weights = list(now.model.trainable().values())
        # A forward pass of its own: fused attention and chunked losses have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            predictions = now.model.ask(Scores(), now.batch("retain"))
        loss = -predictions.over_rows(predictions.log_probs().gather(-1, predictions.labels[:, None]).squeeze(-1))
        slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        # The norm of a zero gradient has no derivative, so a small number is added.
        return sum(((s.square().sum() + 1e-24).sqrt() for s in slopes if s is not None), start=loss.new_zeros(()))
