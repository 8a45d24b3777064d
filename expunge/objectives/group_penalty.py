"""The group penalty of GS-LoRA (Zhao et al., 2024, arXiv 2403.11530): whole blocks fall to no change at all.

    loss = sum over blocks of  sqrt( sum over the block's trainable matrices of ||W||_F^2 )

A group is what may move in one block: with LoRA on the MLP the A and B of its two or three layers. (A block's name ends
at the first number in a parameter's name; what stands outside of the blocks is not counted.) With `Full()` the weights
themselves are the groups, and the penalty would shrink the model: use it with an adapter.

Needs nothing but the weights; processes that hold a part of each put them together. Meant as retention: what does not
move is not broken. Published weights are 1e-4 to 1e-2 beside a loss of about 100; beside a cross-entropy 0.03 drove one
block of four to 0 on a small vision transformer.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

from expunge.core.model import Network
from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.errors import ModelRefused, UsageRefused


@dataclass(frozen=True)
class GroupPenalty(Objective):
    """Keep the number of blocks that change small."""

    needs: ClassVar = ()
    intention: ClassVar = "retention"

    warmup: int = 0
    """Steps before the penalty sets in."""

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise UsageRefused(f"The `warmup` of GroupPenalty must be at least 0. Got {self.warmup!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        if not isinstance(now.model, Network):
            raise ModelRefused(f"GroupPenalty reads weights, which {type(now.model).__name__} does not show.")
        groups: dict[str, list[Tensor]] = {}
        for name, weight in now.model.trainable().items():
            groups.setdefault(_block(name), []).append(_whole(weight))
        groups.pop("", None)
        if not groups:
            raise ModelRefused("GroupPenalty finds no block in which a weight may move. Use an adapter of the blocks.")
        # The norm of a zero matrix has the slope 0 here, where a root of a sum of squares would have none.
        norms = [torch.linalg.vector_norm(torch.stack([w.norm() for w in group])) for group in groups.values()]
        awake = now.run.step > self.warmup or not self.warmup
        return awake * now.fraction("forget") * torch.stack(norms).sum()


def _whole(weight: Tensor) -> Tensor:
    """All of a weight, where it is cut over processes: each adds to its slope by its part of the step's examples."""
    return weight.full_tensor(grad_placements=[Partial()]) if isinstance(weight, DTensor) else weight


def _block(name: str) -> str:
    """The name of the block that a parameter belongs to; empty where it belongs to none."""
    parts = name.split(".")
    numbered = next((k for k, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[: numbered + 1])
