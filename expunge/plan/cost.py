"""Matrix products of a run, counted by formula: two FLOPs for each multiplication and addition.

A call reads T tokens, the nodes of a tree or padded rows, of which k are labelled; attention works out p pairs of a
token and one that it may look at. For each linear layer of [out, in], with an adapter of rank r:

    forward              2 T out in                    attention, of width w:   4 p w
    backward, frozen     2 T out in                                             8 p w
    backward, Full       4 T out in
    bounded, on top      2 T out in + 10 r out in      fold 2 r; in backward again 2 r, phase 2 r, dA and dB 4 r
    LoRA, on top         6 T r (out + in)
    output matrix        2 k classes width             for each time that scores are made or a gradient is sent back

No gradient goes below the first adapted layer: what lies there has no backward, and a layer whose input has no gradient
lacks its 2 T out in. Recomputed activations add a forward of the blocks, but for each one's last product. What flash
attention makes again, elementwise work and the optimizer are not counted; the measured time holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.pytorch_utils import Conv1D

from expunge.adapters._layers import blocks, kinds
from expunge.internals.mixtures import mixtures
from expunge.models.prefix_tree import Piece, pairs

if TYPE_CHECKING:
    from expunge.core.model import Network
    from expunge.models.language import LanguageModel
    from expunge.plan.course import Opened

How = Literal["frozen", "bounded", "low-rank", "full"]
PREFIX = "base_model.model."
KINDS: dict[How, str] = {"bounded": "bounded_A", "low-rank": "lora_A"}
"""How an adapted layer calls the factor of [rank, in]."""


@dataclass(frozen=True)
class Call:
    """One pass over some texts."""

    trees: int
    nodes: int
    rows: int
    """Labelled rows."""
    cut: tuple[Piece, ...] = ()
    """The pieces of a tree, whose attention is worked out one after the other."""

    @property
    def pairs(self) -> int:
        """Pairs of a position and one that it may look at, as attention works them out."""
        return pairs(self.cut) if self.cut else self.trees * self.nodes**2

    @property
    def tokens(self) -> int:
        """Positions read, those that only fill up a tree included."""
        return self.trees * self.nodes


@dataclass(frozen=True)
class Linear:
    """A linear layer, and what training does to it."""

    out: int
    width: int
    how: How = "frozen"
    rank: int = 0
    gradient: bool = True
    """Whether its input has a gradient."""
    share: float = 1.0
    """Tokens that go through it, of those read; a mixture's experts see a part each."""
    inside: bool = True
    """Whether it stands in a block, so that recomputation repeats it."""
    last: bool = False
    """Whether it is its block's last, of which recomputation needs no result."""

    @property
    def size(self) -> int:
        """Entries of its weight."""
        return self.out * self.width


@dataclass(frozen=True)
class Attention:
    """Scores and sums of one block's attention."""

    width: int
    gradient: bool


@dataclass(frozen=True)
class Flops:
    """Matrix products by what they are for."""

    forward: float = 0.0
    backward: float = 0.0
    adapter: float = 0.0
    reference: float = 0.0
    head: float = 0.0
    checks: float = 0.0
    audits: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __mul__(self, times: float) -> Flops:
        return Flops(*(getattr(self, name) * times for name in self.__dataclass_fields__))

    @property
    def total(self) -> float:
        """All of them."""
        return sum(getattr(self, name) for name in self.__dataclass_fields__)


@dataclass(frozen=True)
class Widths:
    """The sizes that decide what a pass through an adapted network costs."""

    linears: tuple[Linear, ...]
    attention: tuple[Attention, ...]
    classes: int
    width: int
    head_moves: bool
    """Whether the output matrix is trained."""
    trainable: int = field(default=0)
    """Numbers that move."""

    def forward(self, call: Call) -> float:
        """A pass up to the last hidden state, as if nothing were adapted."""
        linear = sum(2 * call.tokens * layer.share * layer.size for layer in self.linears)
        return linear + sum(4 * call.pairs * a.width for a in self.attention)

    def silent(self, call: Call) -> float:
        """What the adapter adds to a pass without gradients."""
        return sum(_folding(layer, call.tokens * layer.share) for layer in self.linears)

    def backward(self, call: Call) -> float:
        """Gradients of all layers that lie above the first that moves, and of the weights where those move."""
        total = 0.0
        for layer in self.linears:
            each = 2 * call.tokens * layer.share * layer.size
            total += each * ((layer.how == "full") + (layer.gradient or layer.how == "full" and layer.inside))
        return total + sum(8 * call.pairs * a.width for a in self.attention if a.gradient)

    def adapter(self, call: Call) -> float:
        """What the adapter adds to a pass with gradients, forward and backward."""
        return sum(_adapting(layer, call.tokens * layer.share) for layer in self.linears)

    def again(self, call: Call) -> float:
        """A second forward of the blocks, where activations are recomputed."""
        linear = sum(_again(layer, call.tokens * layer.share) for layer in self.linears if layer.inside)
        return linear + sum(4 * call.pairs * a.width for a in self.attention)

    def scores(self, rows: float) -> float:
        """Class scores of some rows."""
        return 2 * rows * self.classes * self.width

    def widest(self, call: Call) -> float:
        """Numbers of the widest tensor of a pass."""
        return float(call.tokens * max((max(layer.out, layer.width) for layer in self.linears), default=0))

    def norms(self) -> float:
        """The update of every adapted layer, made once more for its norms, and met with a direction there and back."""
        return sum((2 * layer.rank + 6) * layer.size for layer in self.linears if layer.how != "frozen")


def _folding(layer: Linear, tokens: float) -> float:
    if layer.how == "bounded":
        return 2 * layer.rank * layer.size
    return 2 * tokens * layer.rank * (layer.out + layer.width) if layer.how == "low-rank" else 0.0


def _again(layer: Linear, tokens: float) -> float:
    plain, fold = 2 * tokens * layer.size, _folding(layer, tokens)
    if not layer.last or layer.how == "bounded":
        return plain + fold
    # Recomputation ends with the last thing that was kept: here the layer's input, or what LoRA's A made of it.
    return plain + 2 * tokens * layer.rank * layer.width if layer.how == "low-rank" else 0.0


def _adapting(layer: Linear, tokens: float) -> float:
    if layer.how == "bounded":  # fold, (fold,) phase, dY^T X, dA, dB
        return 2 * tokens * layer.size + (10 if layer.gradient else 8) * layer.rank * layer.size
    if layer.how == "low-rank":
        both = 6 * tokens * layer.rank * (layer.out + layer.width)
        return both - (0 if layer.gradient else 2 * tokens * layer.rank * layer.width)
    return 0.0


def widths(network: LanguageModel, adapter: Opened) -> tuple[Widths, LanguageModel]:
    """The sizes of `network` under `adapter`, and the adapted network; both on the meta device.

    Two tokens are sent through, which on the meta device costs nothing, to see where gradients would begin.
    """
    with torch.device("meta"):
        adapted = adapter(network, None)  # no adapter that is planned with reads the request
    seen = _seen(adapted)
    base = network.module
    head = base.get_output_embeddings()
    full = all(p.requires_grad for p in adapted.module.parameters())
    moving = [p for p in adapted.module.parameters() if p.requires_grad]
    inside = kinds(base)
    ends = [[n for n in seen if n.startswith(f"{block}.") and n in inside][-1:] for block in blocks(base)]
    last = {name for end in ends for name in end}
    linears = []
    for name, layer in base.named_modules():
        if not isinstance(layer, nn.Linear | Conv1D) or layer is head or name not in seen:
            continue
        shape = layer.weight.shape
        out, width = shape[::-1] if isinstance(layer, Conv1D) else shape
        linears.append(
            Linear(out, width, *how(adapted, name, full), seen[name], inside=name in inside, last=name in last)
        )
    linears += _experts(adapted, base, full, seen)
    classes, width = head.weight.shape
    found = Widths(
        tuple(linears),
        tuple(_attention(base, seen, inside)),
        int(classes),
        int(width),
        full,
        sum(p.numel() for p in moving),
    )
    return found, adapted


def how(adapted: Network, name: str, full: bool) -> tuple[How, int]:
    """What training does to the layer of that name, and the rank where it has one."""
    if full:
        return "full", 0
    found: Any = dict(adapted.module.named_modules()).get(PREFIX + name)
    for kind, factor in KINDS.items():
        if hasattr(found, factor):
            return kind, next(p.shape[-2] for part in [getattr(found, factor)] for p in part.parameters())
    return "frozen", 0


def _seen(adapted: LanguageModel) -> dict[str, bool]:
    """Every layer that a pass goes through, by its name before it was adapted: whether its input has a gradient."""
    seen: dict[str, bool] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, given[0].requires_grad)

        return note

    hooks = [
        part.register_forward_pre_hook(watch(name.removeprefix(PREFIX).removesuffix(".base_layer")))
        for name, part in adapted.module.named_modules()
        if isinstance(part, nn.Linear | Conv1D) or hasattr(part, "base_layer")
    ]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.device("meta"):  # so that no mask is looked into
            two = torch.zeros(1, 2, dtype=torch.long)
            adapted.module(input_ids=two, attention_mask=torch.ones_like(two), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _attention(base: nn.Module, seen: dict[str, bool], inside: dict[str, str]) -> list[Attention]:
    """Of each block: the width of what its attention hands to its last linear layer."""
    found = []
    for block in blocks(base):
        own = [n for n in seen if n.startswith(f"{block}.") and inside.get(n) == "attention"]
        if own:
            last = base.get_submodule(own[-1])
            width = last.weight.shape[0 if isinstance(last, Conv1D) else 1]
            found.append(Attention(int(width), seen[own[-1]]))
    return found


def _experts(adapted: LanguageModel, base: nn.Module, full: bool, seen: dict[str, bool]) -> list[Linear]:
    """Experts kept as one tensor [experts, out, in], of which each token meets a few; adapted, each is folded alone."""
    config: Any = base.config
    few = float(getattr(config.get_text_config(), "num_experts_per_tok", 0) or 0)
    found: list[Linear] = []
    for name, part in base.named_modules():
        if not few or "Expert" not in type(part).__name__:
            continue
        method, rank = how(adapted, name, full)
        gradient = seen.get(name, True)
        for p in (p for p in part.parameters(recurse=False) if p.dim() == 3):
            count = len(p) if method == "bounded" else 1
            found += count * [Linear(p.shape[1], p.shape[2], method, rank, gradient, share=few / count)]
            gradient |= method != "frozen"  # the second matrix reads what the first has made
    for mixture in mixtures(base).values():  # a router reads what its experts do
        weight: Any = mixture.gate.weight
        gradient = seen.get(f"{mixture.name}.experts", True)
        found.append(Linear(*weight.shape, "full" if full else "frozen", gradient=gradient))
    return found
