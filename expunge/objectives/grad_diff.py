"""Gradient difference (Liu et al., 2022, arXiv 2203.12817): descend on the retain set, ascend on the forget set.

    loss = CE(y_r | x_r) - forget_weight * CE(y_f | x_f)

It is a sum, so it is written as one: `GradDiff()` reads back as `Ascent() + RetainNLL()`.
"""

from expunge.core.objective import Objective
from expunge.notation.recipes import CIFAR, TOFU, Recipe
from expunge.objectives.ascent import Ascent
from expunge.objectives.retain_nll import RetainNLL

PUBLISHED = (
    Recipe(
        "GradDiff",
        "language",
        f"Finetune(objective=GradDiff(forget_weight=1.0), steps=Epochs(count=10.0), {TOFU})",
        "open-unlearning's configuration for TOFU: AdamW at 1e-5, batches of 32, 10 epochs, both weights 1.",
    ),
    Recipe(
        "GradDiff",
        "vision",
        "Finetune(objective=GradDiff(forget_weight=1.0), adapter=Full(), learning_rate=0.01, "
        f"steps=Epochs(count=10.0), {CIFAR})",
        "NegGrad+ (Kurmanji et al., 2023), whose weights and rate were not found: both weights 1, and "
        "the rate and length with which SalUn's code fine-tunes.",
    ),
)


def GradDiff(forget_weight: float = 1.0) -> Objective:  # noqa: N802 (a plug-in's name is the paper's)
    """Ascent on the forget set, weighted, and descent on the retain set."""
    return (Ascent() if forget_weight == 1 else forget_weight * Ascent()) + RetainNLL()
