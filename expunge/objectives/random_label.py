"""Forgetting by random labels (Zhang et al., 2024, Unforgettable Generalization, arXiv 2409.02228).

    loss = E_examples[ CE(y_random | x_f) ],   CE = mean over the answer's rows, in nats

An example with options (wrong answers beside the right one) gets one of all its answers at random, the right one
included: the
paper's two-way choice is one with a single option. An example without, such as an image, gets for each row a class
drawn uniformly. The draw depends on the example's content and the seed, so an example keeps its label throughout.

Needs the forget set. Meant as removal. Published: learning rate 1e-4, 100 to 1,000 examples, on a model that was
fine-tuned on the task. What is forgotten is mostly the training examples: other examples of a well-known task keep most
of their accuracy, and probes read the answer as well as before, so audit with questions that were not trained on.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from expunge.core.objective import Objective, Scalar
from expunge.core.request import Example
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.notation.recipes import ALL_STEPS, CIFAR, Recipe

PUBLISHED = (
    Recipe(
        "RandomLabel",
        "language",
        "Finetune(objective=RandomLabel(), adapter=Full(), learning_rate=0.0001, "
        f"steps=Epochs(count=1.0), batch=32, {ALL_STEPS})",
        "Zhang et al., 2024: 1e-4 on 1,000 examples, no retain term. Batch and length were not found: "
        "one pass in batches of 32.",
    ),
    Recipe(
        "RandomLabel",
        "vision",
        "Finetune(objective=RandomLabel() + RetainNLL(), adapter=Full(), learning_rate=0.01, "
        f"steps=Epochs(count=10.0), {CIFAR})",
        "Random labels as SalUn's code runs them on CIFAR-10 without its mask: SGD at 0.01, 10 epochs. "
        "There the passes through the two sets alternate; here each step reads both.",
        "Forgetting by random labels (Golatkar et al., 2020), the retain set beside them.",
    ),
)


@dataclass(frozen=True)
class RandomLabel(Objective):
    """Cross-entropy of a random answer."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    seed: int = 0
    """Draws the labels."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise UsageRefused(f"The `seed` of RandomLabel must be from 0 to 2**63 - 1. Got {self.seed!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        examples = now.batch("forget")
        predictions = now.instead("forget", [self._one_of(example) for example in examples])
        classes = predictions.states.shape[-1] if predictions.head is None else len(predictions.head.weight)
        if not predictions.examples:  # this rank has none in this step
            return -predictions.over_examples(predictions.mean(predictions.log_prob()))
        labels_before = predictions.split(predictions.labels)
        drawn = [
            old if e.alternatives else self._classes(e, classes) for e, old in zip(examples, labels_before, strict=True)
        ]
        labels = torch.cat([new.to(predictions.labels.device) for new in drawn])
        predictions = replace(predictions, labels=labels)
        return -predictions.over_examples(predictions.mean(predictions.log_prob()))

    def _one_of(self, example: Example) -> Example:
        """The example with one of its answers, right or wrong."""
        answers = (example, *example.alternatives)
        return answers[self._lot(example) % len(answers)]

    def _classes(self, example: Example, classes: int) -> Tensor:
        """A class for each row."""
        return torch.randint(classes, (example.rows,), generator=torch.Generator().manual_seed(self._lot(example)))

    def _lot(self, example: Example) -> int:
        return int(hashlib.sha256(f"{self.seed}:{example.record_digest()}".encode()).hexdigest()[:15], 16)
