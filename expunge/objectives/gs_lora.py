"""GS-LoRA (Zhao et al., 2024, arXiv 2403.11530): bounded ascent, descent on the retain set, and a group penalty.

    loss = beta * E[ max(0, bound - CE(y_f | x_f)) ] + CE(y_r | x_r) + alpha * sum over blocks of ||A, B||_F

It is a sum, so it is written as one: `GSLoRA()` reads back as `0.15 * HingedAscent(level=10.0) + RetainNLL() + 0.03 *
GroupPenalty(warmup=20.0)`. The paper hinges the mean of a batch; here each example is, so that the micro-batches of a
step add up, and the two agree until the first example reaches the bound.

Use it with `LoRA(rank=8, targets='mlp')`. Published: beta 0.15 to 0.25, bound 105 to 110 and alpha 1e-4 to 1e-2, for a
face head whose loss is of that size; for a softmax start near log(classes) plus a few (10), and with alpha 0.03.
Learning rate 1e-2 falling as a cosine, weight decay 0.05, 100 epochs, `warmup` of the penalty 20 of them.
"""

from expunge.core.objective import Objective
from expunge.notation.recipes import ALL_STEPS, Recipe
from expunge.objectives.group_penalty import GroupPenalty
from expunge.objectives.hinged_ascent import HingedAscent
from expunge.objectives.retain_nll import RetainNLL

PUBLISHED = Recipe(
    "GSLoRA",
    "vision",
    "Finetune(objective=GSLoRA(beta=0.15, bound=10.0, alpha=0.03), "
    "adapter=GroupSparse(adapter=LoRA(rank=8, alpha=16.0, targets='mlp')), learning_rate=0.01, "
    "steps=Epochs(count=100.0), batch=48, retain_batch=48, schedule='cosine', weight_decay=0.05, "
    f"{ALL_STEPS})",
    "Zhao et al., 2024: beta 0.15, LoRA of rank 8 on the MLPs, 100 epochs in batches of 48 at 1e-2, "
    "a cosine, decay 0.05. Their bound (110) and alpha (0.01) are for a face loss of that size: 10 "
    "and 0.03 for a softmax.",
)


def GSLoRA(  # noqa: N802 (a plug-in's name is the paper's)
    beta: float = 0.15, bound: float = 10.0, alpha: float = 0.03, warmup: float = 20.0
) -> Objective:
    """Ascent up to a bound, descent on the retain set, and a penalty on each changed block."""
    return beta * HingedAscent(level=bound) + RetainNLL() + alpha * GroupPenalty(warmup=warmup)
