"""Loss adjustment with forget data only (FLAT, Wang et al., 2025, arXiv 2410.11143): prefer a template answer to the
forgotten one.

    loss = -E[ g(P_stand_in) ] + E[ f*(g(P_forget)) ],   P = mean over the answer's rows of p_now(y)

It maximises the variational bound of an f-divergence between a template answer and the forgotten one; g is the best
witness in closed form, f* the convex conjugate of f. P is a mean of probabilities, not of their logarithms:

    divergence   f(u)                           g(P)                    f*(g(P))
    tv           |u - 1| / 2                    tanh(P) / 2             tanh(P) / 2
    kl           u log u                        P                       exp(P - 1)
    pearson      (u - 1)^2                      P                       P^2 / 4 + P
    js           u log u - (u+1) log((u+1)/2)   log 2 - log(1 + e^-P)   P + log(1 + e^-P) - log 2
    reverse_kl   -log u                         -e^-P                   P - 1
    hellinger    (sqrt u - 1)^2                 1 - e^-P                e^P - 1
    jeffrey      (u - 1) log u                  P                       P u - (u - 1) log u, where log u + 1 - 1/u = P
    neyman       (u - 1)^2 / u                  1 - e^-P                2 - 2 e^(-P / 2)

Four published entries are corrected. Those of reverse_kl, hellinger and neyman have e^P for e^-P, which falls as P
rises,
so that a step moves the model towards the forgotten answer; f-GAN's sign (Nowozin et al., 2016) is taken instead.
Neyman's second half, 2 - 2 sqrt(1 - P), is not the conjugate at the witness; jeffrey's is a cubic Taylor polynomial
(1.3125 instead of 1.3304 at P = 1).

Needs the forget set and the stand-in set (refusals or any ordinary answers), no retain set, no reference. Meant as
removal. Published: tv, 5 epochs at the learning rate of fine-tuning or less. A probability's gradient vanishes where it
is about 0, so a template that the model finds impossible has hardly any gradient; log both. Alone it has a narrow
window on a
small model: nothing at learning rate 1e-4 for 10 steps, the retain set gone at 3e-4 for 40. Add `RetainNLL()` there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from expunge.core.objective import Objective, Scalar
from expunge.core.predictions import Predictions
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.notation.recipes import TOFU, Recipe

Divergence = Literal["tv", "kl", "pearson", "js", "reverse_kl", "hellinger", "jeffrey", "neyman"]


PUBLISHED = Recipe(
    "FLAT",
    "language",
    f"Finetune(objective=FLAT(divergence='tv'), steps=Epochs(count=5.0), {TOFU})",
    "Wang et al., 2025: total variation, 5 epochs in batches of 32 at the rate of fine-tuning (1e-5 "
    "for 7 B), no retain term. Give template answers with --stand-in.",
)


@dataclass(frozen=True)
class FLAT(Objective):
    """Raise the stand-in answers' mean probability and lower the forgotten ones', weighted by the divergence."""

    needs: ClassVar = ("forget", "stand_in")
    intention: ClassVar = "removal"

    divergence: Divergence = "tv"
    """How the two are weighted as their probabilities change."""

    def __post_init__(self) -> None:
        if self.divergence not in _PAIRS:
            raise UsageRefused(f"The `divergence` of FLAT must be one of {', '.join(_PAIRS)}. Got {self.divergence!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        witness, conjugate = _PAIRS[self.divergence]
        pulled = now.stand_in.over_examples(witness(_likely(now.stand_in)))
        return now.forget.over_examples(conjugate(_likely(now.forget))) - pulled


def _likely(predictions: Predictions) -> Tensor:
    return predictions.mean(predictions.log_prob().exp())


def _half_tanh(p: Tensor) -> Tensor:
    return p.tanh() / 2


def _same(p: Tensor) -> Tensor:
    return p


def _jeffrey(p: Tensor) -> Tensor:
    """sup over u of u p - (u - 1) log u: Newton's steps to the u that attains it, which is also the slope."""
    with torch.no_grad():
        u = torch.ones_like(p)
        for _ in range(8):
            u = u + (p - u.log() - 1 + 1 / u) / (1 / u + 1 / u**2)
    return p * u - (u - 1) * u.log()


_PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "tv": (_half_tanh, _half_tanh),
    "kl": (_same, lambda p: (p - 1).exp()),
    "pearson": (_same, lambda p: p**2 / 4 + p),
    "js": (lambda p: math.log(2) - softplus(-p), lambda p: softplus(p) - math.log(2)),
    "reverse_kl": (lambda p: -(-p).exp(), lambda p: p - 1),
    "hellinger": (lambda p: 1 - (-p).exp(), lambda p: p.exp() - 1),
    "jeffrey": (_same, _jeffrey),
    "neyman": (lambda p: 1 - (-p).exp(), lambda p: 2 - 2 * (-p / 2).exp()),
}
"""The witness g(P), and the conjugate at it, f*(g(P)), of each divergence."""
