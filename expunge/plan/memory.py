"""Bytes that a run holds on each device, by what they are for.

    weights            parameters x bytes of their precision; Full holds a second copy, in float32
    optimizer          16 bytes for each number that moves (weight, gradient, two moments, in float32), and 4 more for
                       the state of the best step so far
    activations        what the blocks keep for backward; recomputed: each block's input, and one block's own
    workspace          what exists for a moment in the largest pass beside that: the folded matrix, its slope, dY
    class scores       a chunk of rows x classes, in float32, as often as the objective needs it at a time
    tree mask          a number for each pair of a node and one that its piece may look at
    reference          last hidden states of the model before, kept from its first reading; 1 GiB at most
    allocator          on a CPU: what glibc keeps of freed blocks between those in use

An edit has, in the place of the optimizer, what it gathers: a gradient, and importances, in float32; and then its
result beside the network, with what it writes the result from.

Audits hold the whole model on each device, and the one after the run holds it beside the model before; with `--hold
cut`, a part of one model and, for a moment, two blocks and the embeddings. The whole lies on the host then, as a mapped
file that all processes share. Merging is done there too, by the first process, where several train.

Over N processes training cuts weights, gradients and moments into N parts, and has two blocks and the embeddings whole
at a time. Activations and workspace are not estimated: one and two blocks of the very network are run on tensors that
have sizes and no contents, and every allocation is added up. An image classifier is run whole.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from expunge.adapters._layers import blocks
from expunge.models import tree_attention as attention
from expunge.models.prefix_tree import Piece
from expunge.plan.images import blank
from expunge.plan.paper import sketch
from expunge.primitives.class_scores import CHUNK
from expunge.runtime.cached_model import ROOM as REMEMBERED
from expunge.train.activations import manage_activations

if TYPE_CHECKING:
    from expunge.plan.cost import Call, Widths
    from expunge.plan.course import Course, Opened
    from expunge.plan.images import Pictures
    from expunge.plan.machine import Machine
    from expunge.plan.paper import Paper
    from expunge.plan.reads import Part, Reads

FLOAT = 4
MAPPED = 32 << 20
"""glibc takes larger blocks from the system and gives them back; smaller ones come to lie on a heap."""
FRAGMENTS = 0.5
"""What the heap grew by beyond the tensors alive in it, over those: 0.47 to 0.62 for Llamas of 3 to 70 million
parameters, where every allocation of a step was added up, and next to nothing with MALLOC_MMAP_THRESHOLD_=1000000."""
PARTIAL = 1 << 26
"""Bytes of partial sums that the kernels of the bounded adapter hold at most."""
TILE = 16
"""Entries of a weight for each byte of partial sums and unit of rank: two sums in float32 for each tile of 128."""


@dataclass(frozen=True)
class Held:
    """What a pass over one block, and over each further one, holds."""

    kept: int
    each: int
    workspace: int
    """Beyond the network and what is kept, at the worst moment."""

    def of(self, count: int) -> int:
        """What `count` blocks keep."""
        return self.kept + (count - 1) * self.each


@dataclass(frozen=True)
class Memory:
    """The most that each phase of a run holds on one device, and the parts of the training phase."""

    training: dict[str, float]
    phases: dict[str, float]
    kept: float
    """Activations of training where all are kept."""
    recomputed: float
    """Activations of training where each block is computed again."""
    host: float
    """What the first process holds on the host, where that is no device, while it merges the parts of several or widens
    a GGUF file."""

    @property
    def peak(self) -> float:
        """The most that any phase holds."""
        return max(self.phases.values())


def memory(
    paper: Paper,
    course: Course,
    widths: Widths | Pictures,
    read: Reads,
    machine: Machine,
    base: float,
    gathered: tuple[int, int] = (0, 0),
) -> Memory:
    """Bytes on one device; `base` is what the process holds before it has loaded anything, `gathered` an edit's."""
    device, processes = machine.device, machine.processes
    parts = processes if course.trained else 1  # an edit works on the whole
    size = torch.empty((), dtype=paper.dtype).element_size()
    weights = float(paper.parameters * size)
    full = course.copies
    moving = float(widths.trainable)
    largest = max((part for step in read.steps for part in step), key=lambda part: part.tokens)
    kept, recomputed, work = _activations(paper, course.opened, largest)
    chosen = recomputed if course.recomputed else kept
    rows = max((call.rows for step in read.steps for part in step for call in part.now), default=0)
    scores = min(rows * widths.classes, CHUNK.get(device, CHUNK["cpu"])) * FLOAT
    working = _gathered(paper, size) if processes > 1 else 0.0
    shared = weights if parts > 1 and device == "cpu" else 0.0  # the whole stays beside its parts
    training = {
        "weights": (weights + (moving * FLOAT if full else 0.0)) / parts + (working if parts > 1 else 0.0) + shared,
        **(
            {"adapter and optimizer": moving * ((16 if not full else 12) + FLOAT) / parts}
            if course.trained
            else {"gradient and importances": moving * FLOAT * gathered[0]}
        ),
        "activations": chosen,
        "workspace": work + (_folded(widths, size) if device != "cpu" else 0.0),
        "class scores": scores * read.asked.copies
        + (widths.classes * widths.width * FLOAT if widths.head_moves else 0),
        "tree mask": sum(_mask(call, size) for call in largest.now),
        "reference": _reference(paper, read, size, processes),
    }
    reading = max((*read.audit, *read.check, *read.level), key=lambda call: call.tokens)
    audit = _reading(paper, reading) + _mask(reading, size)
    audit += 3 * min(reading.rows * widths.classes, CHUNK.get(device, CHUNK["cpu"])) * FLOAT
    write = max((_writing(paper, w, size, widths.classes) for w in read.writing), default=0.0)
    after = disk(paper, widths, course)["model"]
    copied = moving * FLOAT if full else sum(x.size for x in widths.linears if x.how != "frozen") * size
    passing = sum(training[name] for name in ("activations", "workspace", "class scores", "tree mask"))
    share = _fragments(device, next(iter(largest.now), None), widths)
    training |= {"allocator": share * passing, "libraries": base}
    # On a CPU the process keeps what training took: the heap between small tensors is not given back.
    left = (1 + share) * passing if device == "cpu" else 0.0
    merging = weights + copied + (moving * FLOAT if full else 0.0)
    written = {} if course.trained else {"edit": base + left + weights + _editing(paper, weights, gathered[1])}
    beside = parts > 1 and device != "cpu"
    part = processes > 1 and machine.hold == "cut"
    mapped = 0.0 if beside else 1.0
    before, other = (
        model * (mapped + 1 / processes) + working * model / weights if part else model for model in (weights, after)
    )
    asked = max(audit, write)
    phases = {
        "audit before": base + before + asked * (1 + _fragments(device, reading, widths)),
        "training": sum(training.values()),
        **written,
        "merge": base + left + (0.0 if beside else merging),
        "audit after": base + (weights * mapped if part else weights) + other + max(left, asked),
    }
    host = merging if beside else 0.0
    if paper.packed:
        wide = paper.parameters * torch.empty((), dtype=paper.stored).element_size() if device != "cpu" else weights
        if device == "cpu":
            phases = {"load": base + wide + paper.packed.beside, **phases}
        else:
            host = max(host, wide + paper.packed.beside)
    return Memory(training, phases, kept, recomputed, host)


def disk(paper: Paper, widths: Widths | Pictures, course: Course) -> dict[str, float]:
    """Bytes that a run writes: the merged model, the adapter where there is one; tokenizer and report are small."""
    size = torch.empty((), dtype=paper.dtype).element_size()
    full = widths.trainable >= paper.parameters
    model = paper.parameters * (FLOAT if full and not course.plain else size)
    return {"model": float(model), "adapter": 0.0 if full or course.plain else float(widths.trainable * FLOAT)}


def _editing(paper: Paper, weights: float, numbers: int) -> float:
    """An edit's result, what it is written from, and what exists for a moment of the largest tensor: a quotient, its
    bound, what is chosen of it and what is written."""
    largest = max(p.numel() for p in paper.network.module.parameters())
    copied = weights + paper.parameters * FLOAT * min(numbers, 2)
    return max(copied, paper.parameters * FLOAT * numbers) + 4 * FLOAT * largest


def _fragments(device: str, call: Call | None, widths: Widths | Pictures) -> float:
    small = call is None or widths.widest(call) * FLOAT < MAPPED
    return FRAGMENTS if device == "cpu" and small else 0.0


def _folded(widths: Widths | Pictures, size: int) -> float:
    """On a GPU the folded matrix exists whole, beside the partial sums of its factors' gradients."""
    layers = [layer for layer in widths.linears if layer.how == "bounded"]
    return max((layer.size * size + min(PARTIAL, layer.size * layer.rank / TILE) for layer in layers), default=0.0)


def _mask(call: Call, size: int) -> float:
    return float(call.pairs * size) if call.cut else 0.0


def _reference(paper: Paper, read: Reads, size: int, processes: int) -> float:
    """Each process keeps what all have read."""
    rows = processes * sum(call.rows for step in read.steps for part in step for call in part.before)
    return float(min(REMEMBERED, rows * paper.width * size))


def _gathered(paper: Paper, size: int) -> float:
    """Two blocks (one at work, the next under way) and what stands outside of blocks."""
    module = paper.network.module
    inside = [sum(p.numel() for p in block.parameters()) for block in blocks(module).values()]
    return float((paper.parameters - sum(inside) + 2 * max(inside, default=0)) * size)


def _writing(paper: Paper, writing: Any, size: int, classes: int) -> float:
    """Keys and values of every position of every block, and the scores of the last."""
    text = paper.config.get_text_config()
    heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    each = int(getattr(text, "head_dim", None) or paper.width // text.num_attention_heads)
    cache = 2 * paper.blocks * heads * each * writing.prompts * (writing.width + writing.new) * size
    return float(cache + 2 * writing.prompts * classes * FLOAT)


# Passes on tensors without contents


def _activations(paper: Paper, adapter: Opened, part: Part) -> tuple[float, float, float]:
    """Kept by all blocks, kept where they are computed again, and the workspace."""
    calls = [(call, 1.0) for call in part.now] + [(c, depth) for view, c, depth in part.hidden if view == "now"]
    kept, recomputed, work = 0.0, 0.0, 0.0
    for call, depth in calls:
        count = max(1, round(depth * paper.blocks))
        plain, again = (held(paper, adapter, call, recompute) for recompute in (False, True))
        kept += plain.of(count)
        recomputed += again.of(count) + plain.each
        work = max(work, plain.workspace)
    return kept, recomputed, work


def held(paper: Paper, adapter: Opened, call: Call, recompute: bool) -> Held:
    """What a training pass holds."""
    if paper.shape:
        stacked = bool(blocks(paper.network.module))
        whole, work = _pass(paper, adapter, call, paper.blocks, recompute and stacked)
        each = whole // paper.blocks if stacked else 0
        return Held(whole - (paper.blocks - 1) * each, each, work)
    one, two = (_pass(paper, adapter, call, count, recompute) for count in (1, 2))
    # Computed again, the second block's workspace holds a whole block's activations, which are counted elsewhere.
    return Held(one[0], two[0] - one[0], two[1])


def _reading(paper: Paper, call: Call) -> float:
    """What a pass without gradients holds for a moment."""
    return float(_pass(paper, None, call, 1, False)[1])


def _pass(paper: Paper, adapter: Opened | None, call: Call, count: int, recompute: bool) -> tuple[int, int]:
    """Bytes kept for backward by `count` blocks, and the most that exists beside them at any time."""
    base: Any = replace(paper.network, module=sketch(paper.config, paper.dtype, count))
    with torch.device("meta"):
        adapted = adapter(base, None) if adapter else base
    module: Any = adapted.module
    with FakeTensorMode():
        _without_contents([*module.modules(), *base.module.modules()])
        if paper.shape:
            return _alive(module, blank(module, paper.shape, call.trees), _scores, bool(adapter), recompute)
        dtype = module.get_input_embeddings().weight.dtype
        tokens = torch.zeros(call.trees, call.nodes, dtype=torch.long)
        given: dict[str, Tensor] = {"input_ids": tokens}
        masks: list[Tensor] = []
        if base.trees:
            ends = torch.zeros(1, 1, 1, call.nodes, dtype=torch.long)
            attention.set_pieces(ends, call.cut or (Piece(0, call.nodes),))
            masks = [m for m in attention.masks_of(ends, dtype, True) if m is not None]  # counted by themselves
            given |= {"position_ids": torch.zeros_like(tokens), "attention_mask": ends}
        else:
            given |= {"attention_mask": torch.ones_like(tokens)}
        return _alive(module, given, lambda _, given: adapted.states(**given)[0], bool(adapter), recompute, masks)


def _scores(module: nn.Module, given: dict[str, Tensor]) -> Tensor:
    scores: Tensor = module(**given).logits
    return scores


def _alive(
    module: nn.Module,
    given: dict[str, Tensor],
    read: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    gradients: bool,
    recompute: bool,
    masks: Sequence[Tensor] = (),
) -> tuple[int, int]:
    """Bytes that reading keeps for backward, and the most that exists beside them and the network at any time."""
    known = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers(), *given.values(), *masks)}
    known |= {p.grad.untyped_storage()._cdata for p in module.parameters() if p.grad is not None}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with _Live(known) as live, hooks if gradients else torch.no_grad():
        with manage_activations(module, "recomputed") if recompute else nullcontext():
            states = read(module, given)
        total = sum(storage.nbytes() for storage in kept.values())
        kept.clear()
        if gradients and not recompute:
            states.backward(torch.empty_like(states))
    return total, live.peak - total


def _without_contents(modules: list[nn.Module]) -> None:
    """Meta tensors become tensors that claim to lie on a CPU; gradients are there, as from the second part on."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old one is kept beside, so that its id() is not given away
    for module in modules:
        for table in (module._parameters, module._buffers):
            for name, was in table.items():
                if was is None:
                    continue
                if id(was) not in made:
                    new = _like(was)
                    made |= {id(was): (was, new), id(new): (new, new)}
                table[name] = made[id(was)][1]  # type: ignore[assignment]


def _like(was: Tensor) -> Tensor:
    new = torch.empty(was.shape, dtype=was.dtype, device="cpu")
    if isinstance(was, nn.Parameter):
        new = nn.Parameter(new, was.requires_grad)
        new.grad = torch.empty_like(new) if was.requires_grad else None
    return new


@dataclass
class _Live(TorchDispatchMode):
    """Adds up the storages that are alive."""

    known: set[int]
    alive: int = 0
    peak: int = 0
    sizes: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, run: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = run(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._born(tensor.untyped_storage())
        return made

    def _born(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known or key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.alive += self.sizes[key]
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.alive -= self.sizes.pop(key)
