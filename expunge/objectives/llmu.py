"""LLMU (Yao et al., 2023, arXiv 2310.10683): ascent, random answers, and a KL term on normal text.

    loss = forget_weight * -CE(y_f | x_f) + CE(y_random | x_f) + KL(p_before || p_now) on the retain set

It is a sum, so it is written as one: `LLMU()` reads back as `0.5 * Ascent() + IdkNLL() + RetainKL()`. The random
answers are those of other prompts (the paper takes 5 for each): give them as the stand-in set.

Published: weights 0.5, 1 and 1, learning rate 2e-6 with LoRA, 1,000 steps, stopped when the ascent's loss passes 100, a
test that in the authors' code has the wrong sign and never fires; here `Stop` ends a run.
"""

from expunge.core.objective import Objective
from expunge.notation.recipes import ALL_STEPS, Recipe
from expunge.objectives.ascent import Ascent
from expunge.objectives.idk_nll import IdkNLL
from expunge.objectives.retain_kl import RetainKL

PUBLISHED = Recipe(
    "LLMU",
    "language",
    "Finetune(objective=LLMU(forget_weight=0.5), adapter=LoRA(rank=8, alpha=16.0, "
    f"targets='attention'), learning_rate=2e-06, steps=1000, batch=2, retain_batch=2, {ALL_STEPS})",
    "Yao et al., 2023: weights 0.5, 1 and 1, LoRA, 1,000 steps of 2 at 2e-6. Its stop never fires in "
    "the authors' code; there is none here. Rank and layers were not found: rank 8 in attention. "
    "Give answers of other prompts with --stand-in.",
)


def LLMU(forget_weight: float = 0.5) -> Objective:  # noqa: N802 (a plug-in's name is the paper's)
    """Ascent on the forget set, descent on answers of other prompts, and KL on the retain set."""
    return forget_weight * Ascent() + IdkNLL() + RetainKL()
