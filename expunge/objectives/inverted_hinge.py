"""Inverted hinge loss (IHL, of LoKU, Cha et al., 2025, arXiv 2408.06621): let the runner-up overtake the right token.

    loss = mean over labelled rows of  max(0, 1 + p(y) - max over v != y of p(v)),   probabilities, so within [0, 2]

With v* the runner-up and d = p(y) - p(v*), the gradient on the scores is p(y) (1 - d) on y, -p(v*) (1 + d) on v*, and
-p(v) d on the others: once d is about 0 only the two leading tokens move.

Needs the forget set. Meant as removal. Published beside `RetainNLL()`, with LoRA of rank 32 started by FILA, learning
rate 1e-4 to 2e-4. `InvertedHinge() + RetainNLL()` forgot everything on a small model and kept 0.99 of the rest, over
three seeds, with plain weights.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.notation.recipes import ALL_STEPS, Recipe

PUBLISHED = Recipe(
    "LoKU",
    "language",
    "Finetune(objective=InvertedHinge() + RetainNLL(), adapter=Fila(adapter=LoRA(rank=32, "
    "alpha=64.0, targets='all')), learning_rate=0.0002, steps=Epochs(count=5.0), batch=32, "
    f"retain_batch=32, warmup=Epochs(count=1.0), schedule='linear', weight_decay=0.01, {ALL_STEPS})",
    "Cha et al., 2025, the authors' code on TOFU: rank 32, alpha 64, all linear layers, 5 epochs in "
    "batches of 32 at 2e-4 (1e-4 for 7 B), an epoch of warm-up.",
    "LoKU (Cha et al., 2025, arXiv 2408.06621): the inverted hinge, in a LoRA started by FILA.",
)


@dataclass(frozen=True)
class InvertedHinge(Objective):
    """Lower the right token's probability and raise the runner-up's."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    def __call__(self, now: View, before: View) -> Scalar:
        return now.forget.over_rows(now.forget.each_row(_hinge))


def _hinge(labels: Tensor, logits: Tensor) -> Tensor:
    likely = logits.softmax(-1)
    right = likely.gather(-1, labels[:, None]).squeeze(-1)
    runner_up = likely.scatter(-1, labels[:, None], -torch.inf).amax(-1)
    return (1 + right - runner_up).clamp(min=0)
