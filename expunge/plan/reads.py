"""What a run reads: every pass of its steps, checks and audits, with the shape that it will have.

The shapes are not guessed: examples are drawn and laid into trees by the code that the run uses. What an objective asks
of the model is found by asking it once, of a small random network of the same architecture.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from expunge.core.request import Request
from expunge.core.view import Run, View
from expunge.models.decoding import WRITES
from expunge.models.language import ROOM, LanguageModel
from expunge.models.prefix_tree import pack, pieces
from expunge.models.tree_attention import most_on
from expunge.plan.cost import Call
from expunge.train.batches import Batches
from expunge.train.best_step import sample

if TYPE_CHECKING:
    from expunge.core.audit import Audit
    from expunge.core.model import Batch, Network
    from expunge.methods.finetune import Finetune
    from expunge.plan.paper import Readable

DRAWN = 256
"""Steps whose examples are drawn; those of a longer run are taken to be like them."""


@dataclass(frozen=True)
class Asked:
    """What an objective reads in a step."""

    now: tuple[str, ...]
    """Sets read in full with gradients."""
    before: tuple[str, ...]
    """Sets of which the model before is asked."""
    hidden: tuple[tuple[str, str, float], ...]
    """now or before, the set, and the part of the blocks that is gone through."""
    head: Mapping[str, float]
    """For each set, how often its rows meet the output matrix, there or back."""
    copies: float
    """Tensors of class scores that exist at one time, in float32."""


@dataclass(frozen=True)
class Part:
    """What is read between two additions to the gradients."""

    now: tuple[Call, ...]
    before: tuple[Call, ...]
    hidden: tuple[tuple[str, Call, float], ...]
    head: float
    """Rows that meet the output matrix, each time counted."""

    @property
    def tokens(self) -> int:
        """Positions read with gradients."""
        return sum(call.tokens for call in self.now) + sum(c.tokens for view, c, _ in self.hidden if view == "now")


@dataclass(frozen=True)
class Writing:
    """Prompts continued side by side."""

    prompts: int
    width: int
    new: int


@dataclass(frozen=True)
class Reads:
    """Everything that a run reads."""

    asked: Asked
    steps: tuple[tuple[Part, ...], ...]
    """The parts of each drawn step."""
    times: float
    """Steps of the run for each drawn one."""
    level: tuple[Call, ...]
    """The holdout set, read once for the level."""
    check: tuple[Call, ...]
    checks: int
    audit: tuple[Call, ...]
    """One audit's reading; there is one before and one after."""
    writing: tuple[Writing, ...]
    merge: Call
    """What adapter, merged model and model before are compared on, once each."""
    examples: int
    tokens: int
    """Of the examples that training reads, each time it does, prompt included."""


def reads(
    network: Readable,
    small: Readable,
    method: Finetune,
    request: Request,
    audits: Sequence[Audit],
    device: str,
    processes: int,
) -> Reads:
    """What one process of a run reads."""
    asked = ask(small, method, request)
    draw = Batches(request, method.batch, method.retain_batch, method.seed)
    known: set[int] = set()
    drawn = [draw.sets() for _ in range(min(method.steps, DRAWN))]
    times = method.steps / len(drawn)
    steps = [
        tuple(part_of(network, asked, part, known, device, processes) for part in parts(sets, method.accumulate))
        for sets in drawn
    ]
    checked = (*sample(request.forget), *sample(request.retain))
    every = method.stop.every
    level = request.holdout if method.stop.level == "holdout" else ()
    return Reads(
        asked=asked,
        steps=tuple(steps),
        times=times,
        level=spread(network, level, device, processes),
        check=spread(network, checked, device, processes),
        checks=1 + method.steps // every + (method.steps % every > 0),
        tokens=round(times * sum(e.size for sets in drawn for batch in sets.values() for e in batch)),
        **audited(network, request, audits, device, processes),
    )


def audited(
    network: Readable, request: Request, audits: Sequence[Audit], device: str, processes: int
) -> dict[str, Any]:
    """What is read beside the method's own passes, whatever the method: the fields of `Reads` for it."""
    texts = [t for examples in request.sets().values() for one in examples for t in (one, *one.alternatives)]
    return {
        "audit": spread(network, texts, device, processes),
        "writing": tuple(_writing(request, audits, processes)),
        "merge": shape(network, [request.forget[k] for k in groups(network, request.forget, device)[0][:8]], device),
        "examples": len(texts),
    }


def parts(sets: Mapping[str, Batch], accumulate: int) -> Iterator[dict[str, Batch]]:
    """A step's examples as training cuts them."""
    count = min(accumulate, *map(len, sets.values()))
    for k in range(count):
        yield {name: batch[k * len(batch) // count : (k + 1) * len(batch) // count] for name, batch in sets.items()}


def share(sets: Mapping[str, Batch], processes: int) -> dict[str, Batch]:
    """The largest part of a step that one process reads; each reads one example at least."""
    return {name: batch[: -(-len(batch) // processes)] for name, batch in sets.items()}


def groups(network: Readable, examples: Batch, device: str) -> list[list[int]]:
    """Indices of `examples` as the network reads them on `device`, without gradients."""
    if not isinstance(network, LanguageModel):
        return list(network.batches(examples))
    sequences = [example.tokens for example in examples]  # type: ignore[attr-defined]
    room = ROOM.get(device, ROOM["cpu"])
    if network.trees:
        return pack(sequences, room)
    made: list[list[int]] = []
    for index in sorted(range(len(sequences)), key=lambda k: len(sequences[k])):
        if not made or (len(made[-1]) + 1) * len(sequences[index]) > room:
            made.append([])
        made[-1].append(index)
    return made


def shape(network: Readable, examples: Batch, device: str) -> Call:
    """The pass that reads `examples` in one call: the network's own code lays them out, and is stopped there.

    Images are read side by side, each a tree of one node.
    """
    if not isinstance(network, LanguageModel):
        return Call(len(examples), 1, len(examples))
    watched = replace(network, module=_Watched(network), headed=False)
    try:
        watched.predict(examples)
    except _Laid as laid:
        cut = pieces(laid.ends, most_on(device)) if laid.ends else []
        return Call(*laid.shape, sum(example.rows for example in examples), tuple(cut))
    raise AssertionError("A pass that reads nothing.")


class _Laid(Exception):  # noqa: N818 (it is no error: it ends a pass)
    def __init__(self, shape: torch.Size, ends: list[int]) -> None:
        self.shape, self.ends = shape, ends


class _Watched(nn.Module):
    """Stands where a network would, and tells what it is given."""

    def __init__(self, network: LanguageModel) -> None:
        super().__init__()
        table = network.module.get_input_embeddings().weight
        self.table = nn.Embedding(1, table.shape[1], dtype=table.dtype)

    def get_input_embeddings(self) -> nn.Module:
        """A table of the same width."""
        return self.table

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> None:
        raise _Laid(input_ids.shape, attention_mask.flatten().tolist() if attention_mask.dim() == 4 else [])


def spread(network: Readable, examples: Batch, device: str, processes: int) -> tuple[Call, ...]:
    """The passes over a set without gradients: one process's, of those that are dealt out."""
    mine = groups(network, examples, device)[::processes] if examples else []
    return tuple(shape(network, [examples[k] for k in group], device) for group in mine)


def part_of(
    network: Readable, asked: Asked, sets: Mapping[str, Batch], known: set[int], device: str, processes: int
) -> Part:
    """One process's share of a part of a step. The model before is asked of each example once, by one of them."""
    new = [e for name in asked.before for e in sets[_set(name)] if id(e) not in known]
    known |= {id(example) for example in new}
    before = new[: -(-len(new) // processes)]
    sets = share(sets, processes)
    now = [example for name in asked.now for example in sets[_set(name)]]
    return Part(
        now=(shape(network, now, device),) if now else (),
        before=(shape(network, before, device),) if before else (),
        hidden=tuple((view, shape(network, sets[_set(name)], device), depth) for view, name, depth in asked.hidden),
        head=sum(times * sum(e.rows for e in sets[name]) for name, times in asked.head.items()),
    )


def _set(name: str) -> str:
    return name.partition(",")[0]  # "forget, instead": other examples in the place of those of the forget set


def _writing(request: Request, audits: Sequence[Audit], processes: int) -> Iterator[Writing]:
    lengths = sorted({int(new) for audit in audits if (new := getattr(audit, "max_new_tokens", 0))})
    for new in lengths:
        every = [e for examples in request.sets().values() for e in examples]
        asked = sorted(len(e.prompt_tokens) for e in every if getattr(e, "prompt_tokens", ()))[::processes]
        for start in range(0, len(asked), WRITES):
            group = asked[start : start + WRITES]
            yield Writing(len(group), group[-1], new)


# What an objective asks


def ask(small: Readable, method: Finetune, request: Request) -> Asked:
    """Ask the objective once, of a small network; each set has examples of a number of rows of its own."""
    cut = {"forget": 1, "retain": 2, "stand_in": 3}
    sets = {n: [short(getattr(request, n)[0], rows)] for n, rows in cut.items() if getattr(request, n)}
    adapted = method.adapter(small, request)
    run = Run(level=1.0, step=1, whole=sets)
    views = {
        name: View(model, sets, gradients=name == "now", run=run)
        for name, model in (("now", adapted), ("before", small))
    }
    with Scores.of(small) as scores:
        terms = [weight * term(views["now"], views["before"]) for weight, term in method.objective.terms()]
        with torch.no_grad():
            for said in views["now"].said.values():
                said.nll()  # what a step tells of each set that it read
        sum(terms).backward()  # type: ignore[union-attr]
    depth = int(getattr(small.module.config.get_text_config(), "num_hidden_layers", 0))
    hidden = [(view, name, _blocks(layer, depth) / depth) for view, seen in views.items() for name, layer in seen.felt]
    rows = {sum(e.rows for e in batch): name for name, batch in sets.items()}
    head: dict[str, float] = {}
    for count, flops in scores.flops.items():
        name = rows.get(count, "forget")
        head[name] = head.get(name, 0.0) + flops / (2 * count * scores.classes * scores.width)
    return Asked(tuple(views["now"].said), tuple(views["before"].said), tuple(hidden), head, scores.peak)


def _blocks(layer: int | None, depth: int) -> int:
    return (depth * 7 // 32 if layer is None else layer) + 1


def short(example: Any, rows: int) -> Any:
    """The example with fewer labelled rows; an image has one."""
    if not hasattr(example, "tokens"):
        return example
    return replace(example, tokens=example.tokens[: example.first + rows])


@dataclass
class Scores(TorchDispatchMode):
    """Counts products with the output matrix by the rows they are made for, and the class scores alive at a time."""

    classes: int
    width: int
    flops: dict[int, float] = field(default_factory=dict)
    alive: float = 0.0
    peak: float = 0.0

    def __post_init__(self) -> None:
        super().__init__()

    @staticmethod
    def of(small: Network) -> Scores:
        """Those of a network; of an image classifier none, since its scores are few and come of no matrix apart."""
        matrix = small.module.get_output_embeddings().weight if isinstance(small, LanguageModel) else None  # type: ignore[operator]
        return Scores(*matrix.shape) if matrix is not None else Scores(0, 0)

    def __torch_dispatch__(
        self, run: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = run(*args, **(kwargs or {}))
        name = run.__name__.partition(".")[0]
        if name in ("mm", "addmm"):
            one, other = [a for a in args if isinstance(a, torch.Tensor)][-2:]
            sides = [*one.shape, other.shape[1]]
            if self.classes in sides:
                sides.remove(self.classes)
                if self.width in sides:
                    sides.remove(self.width)
                    rows = sides[0]
                    self.flops[rows] = self.flops.get(rows, 0.0) + 2.0 * rows * self.classes * self.width
        for tensor in tree_leaves(made):
            if (
                isinstance(tensor, torch.Tensor)
                and self.classes
                and tensor.shape[-1:] == (self.classes,)
                and tensor.dim() == 2
            ):
                self._born(tensor)
        return made

    def _born(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.shape[0] > 3 or getattr(storage, "_counted", False):
            return
        size = storage.nbytes() / (4 * tensor.numel())
        storage._counted = True  # type: ignore[attr-defined]
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: float) -> None:
        self.alive -= size
