"""What reading images costs: the network itself is run on one image and on two that have sizes and no contents.

All images of a run have the same size, so what a pass costs grows by the same with each further one, and some of it
(the folded matrices of the bounded adapter) does not grow at all:

    cost(n images) = cost(1) + (n - 1) (cost(2) - cost(1))

So no formula for a kind of layer is needed, and transformers and convolutional networks are counted alike: the products
are those that torch counts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from expunge.plan.cost import Linear, how
from expunge.train.activations import manage_activations

if TYPE_CHECKING:
    from expunge.models.vision import ImageClassifier
    from expunge.plan.cost import Attention, Call
    from expunge.plan.course import Opened


@dataclass(frozen=True)
class Line:
    """A cost by the number of images."""

    one: float
    each: float
    """Of each further image."""

    def at(self, call: Call) -> float:
        """Of a pass."""
        return self.one + (call.trees - 1) * self.each

    def __sub__(self, other: Line) -> Line:
        return Line(self.one - other.one, self.each - other.each)


@dataclass(frozen=True)
class Pictures:
    """What a pass over images costs; answers what `Widths` does."""

    reading: Line
    folding: Line
    """What the adapter adds without gradients."""
    returning: Line
    """All of a pass with gradients that is not in these two."""
    repeating: Line
    """What is done again where blocks are computed again."""
    linears: tuple[Linear, ...]
    """Linear and convolutional layers."""
    classes: int
    width: int
    trainable: int
    wide: int
    """Numbers of the largest tensor that a pass makes of one image."""
    attention: tuple[Attention, ...] = ()
    head_moves: bool = False

    def forward(self, call: Call) -> float:
        """A pass up to the class scores, as if nothing were adapted."""
        return self.reading.at(call)

    def silent(self, call: Call) -> float:
        """What the adapter adds to a pass without gradients."""
        return self.folding.at(call)

    def backward(self, call: Call) -> float:
        """What a pass with gradients costs beyond one without."""
        return self.returning.at(call)

    def adapter(self, call: Call) -> float:
        """What the adapter adds to the forward pass; its part of backward is counted there."""
        return self.folding.at(call)

    def again(self, call: Call) -> float:
        """A second forward of the blocks, where activations are recomputed."""
        return self.repeating.at(call)

    def scores(self, rows: float) -> float:
        """None: those of a classifier are in the pass."""
        return 0.0

    def norms(self) -> float:
        """The update of every adapted layer, made once more for its norms, and met with a direction there and back."""
        return sum((2 * layer.rank + 6) * layer.size for layer in self.linears if layer.how != "frozen")

    def widest(self, call: Call) -> float:
        """Numbers of the largest tensor of a pass."""
        return float(call.trees * self.wide)


def pictures(
    network: ImageClassifier, opened: Opened, shape: tuple[int, ...], recomputed: bool
) -> tuple[Pictures, ImageClassifier]:
    """The costs of `network` under what `opened` makes of it, and that; both on the meta device."""
    with torch.device("meta"):
        adapted = opened(network, None)
    plain = _line(lambda count: _counted(network.module, shape, count, gradients=False))
    silent = _line(lambda count: _counted(adapted.module, shape, count, gradients=False))
    there_and_back = _line(lambda count: _counted(adapted.module, shape, count, gradients=True))
    again = Line(0.0, 0.0)
    if recomputed:
        with manage_activations(adapted.module, "recomputed"):
            again = _line(lambda count: _counted(adapted.module, shape, count, gradients=True)) - there_and_back
    moving = [p for p in adapted.module.parameters() if p.requires_grad]
    full = len(moving) == len(list(adapted.module.parameters()))
    found = Pictures(
        reading=plain,
        folding=silent - plain,
        returning=there_and_back - silent,
        repeating=again,
        linears=tuple(_layers(network.module, adapted, full)),
        classes=len(network.classes),
        width=len(network.classes),
        trainable=sum(p.numel() for p in moving),
        wide=_widest(network.module, shape),
        head_moves=full,
    )
    return found, adapted


def blank(module: nn.Module, shape: tuple[int, ...], count: int) -> dict[str, Tensor]:
    """What the module is called with to read `count` images."""
    weights = next(module.parameters())
    return {"pixel_values": torch.zeros(count, *shape, dtype=weights.dtype, device=weights.device)}


def _line(cost: Callable[[int], float]) -> Line:
    one, two = cost(1), cost(2)
    return Line(one, two - one)


def _counted(module: nn.Module, shape: tuple[int, ...], count: int, gradients: bool) -> float:
    with FlopCounterMode(display=False) as counter, nullcontext() if gradients else torch.no_grad():
        scores = module(**blank(module, shape, count)).logits
        if gradients:
            scores.backward(torch.empty_like(scores))
    for parameter in module.parameters():
        parameter.grad = None
    return float(counter.get_total_flops())


def _layers(base: nn.Module, adapted: Any, full: bool) -> list[Linear]:
    found = []
    for name, layer in base.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            out, *rest = layer.weight.shape
            kind, rank = how(adapted, name, full)
            found.append(Linear(int(out), int(torch.Size(rest).numel()), kind, rank))
    return found


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self, run: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = run(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(made) if isinstance(t, Tensor) and not isinstance(t, nn.Parameter)]
        self.numbers = max(self.numbers, *sizes, 0)
        return made


def _widest(module: nn.Module, shape: tuple[int, ...]) -> int:
    sizes = []
    for count in (1, 2):
        with _Largest() as largest, torch.no_grad():
            module(**blank(module, shape, count))
        sizes.append(largest.numbers)
    return sizes[1] - sizes[0]  # what has a weight's size is as large for two
