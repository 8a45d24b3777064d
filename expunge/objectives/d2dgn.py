"""Distil to delete (D2DGN, Sinha et al., 2023, arXiv 2309.16173): one teacher preserves, another destroys.

    loss = alpha * KL(p_before || p_now) on retained + (1 - alpha) * KL(p_random || p_now) on deleted

This is the response form; `D2DGNFeatures` is the other. The preserver is the trained network, the destroyer one of the
same shape with random weights, drawn once. Student and preserver are asked with the graph that is left: no message
passes over what is deleted. Of two nodes p is (1 - s, s), s = sigmoid(u . v), compared before the sigmoid, so that
nothing is clamped at 1e-5 as published. The student starts as the trained network; the published re-implementation
draws its weights anew, which is a retraining.

Needs the forget set and the retain set, with the reference. Meant as removal. What is forgotten so is answered at
random: a retrained network knows most deleted links from those around them (docs/graphs.md).
"""

from expunge.core.objective import Objective
from expunge.notation.recipes import ALL_STEPS, Recipe
from expunge.objectives.bad_teacher import BadTeacher
from expunge.objectives.retain_kl import RetainKL

PUBLISHED = Recipe(
    "D2DGN",
    "graph",
    "Finetune(objective=0.5 * RetainKL() + 0.5 * BadTeacher(temperature=1.0), adapter=Full(), learning_rate=0.001, "
    f"steps=100, batch=1024, retain_batch=1024, {ALL_STEPS})",
    "The paper's weights, 0.5 and 0.5; 100 steps, where OpenGU's re-implementation takes 100 epochs of all records "
    "at once, with weights drawn anew. The learning rate is ours.",
)


def D2DGN(alpha: float = 0.5, seed: int = 0) -> Objective:  # noqa: N802 (a plug-in's name is the paper's)
    """Stay close to the original on the retain set, and to a network that never learnt on the forget set."""
    return alpha * RetainKL() + (1 - alpha) * BadTeacher(seed=seed)
