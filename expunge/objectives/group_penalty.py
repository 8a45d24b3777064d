"""The group penalty of GS-LoRA (Zhao et al., 2024, arXiv 2403.11530): drive the update of whole blocks to zero.

    loss = sum over blocks of  sqrt( sum over the block's trainable matrices of ||W||_F^2 )

A group is the trainable parameters of one block: with LoRA on the MLP the A and B of its two or three layers. (A
block's name ends
at the first number in a parameter's name; parameters outside of the blocks are not counted.) With `Full()` the weights
themselves are the groups, and the penalty would shrink the model: use it with an adapter.

Needs nothing but the weights; sharded ones are gathered. Meant as retention: a block without a change is not
damaged. Published weights are 1e-4 to 1e-2 beside a loss of about 100; beside a cross-entropy 0.03 drove one
block of four to 0 on a small vision transformer.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.core.objective import Objective, Scalar
from expunge.core.predictions import Share
from expunge.core.view import View
from expunge.errors import ModelRefused, UsageRefused
from expunge.objectives._weights import trainable_weights


@dataclass(frozen=True)
class GroupPenalty(Objective):
    """Keep the number of changed blocks small."""

    needs: ClassVar = ()
    intention: ClassVar = "retention"

    warmup: float = 0.0
    """Passes through the forget set before the penalty starts. From the first step on it can hold an adapter that
    begins at zero where it is, and nothing is forgotten."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < math.inf:
            raise UsageRefused(f"The `warmup` of GroupPenalty must be at least 0 and finite. Got {self.warmup!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        groups: dict[str, list[Tensor]] = {}
        for name, weight in trainable_weights(now, "GroupPenalty").items():
            groups.setdefault(_block(name), []).append(weight)
        groups.pop("", None)
        if not groups:
            raise ModelRefused("GroupPenalty finds no block with a trainable weight. Use an adapter of the blocks.")
        # The gradient of a zero matrix's norm is 0 here; that of a root of a sum of squares would be NaN.
        norms = [torch.linalg.vector_norm(torch.stack([w.norm() for w in group])) for group in groups.values()]
        return (_passes(now) >= self.warmup) * now.fraction("forget") * torch.stack(norms).sum()


def _passes(now: View) -> float:
    """How often the forget set was gone through before this step; a step reads all of it where its size is unknown."""
    step = now.shares.get("forget") or Share.of(now.sets.get("forget", ()))
    whole = Share.of(now.run.whole.get("forget", ())) if now.run.whole.get("forget") else step
    return max(0, now.run.step - 1) * step.examples / whole.examples if whole.examples else 0.0


def _block(name: str) -> str:
    """The name of the block that a parameter belongs to; empty where it belongs to none."""
    parts = name.split(".")
    numbered = next((k for k, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[: numbered + 1])
