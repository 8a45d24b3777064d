"""A network that all processes run together: examples are distributed over the ranks, and each rank gets all answers.

Each rank holds the whole network, or a shard of it (`cut`). With shards every forward pass needs all ranks, which
gather
the weights block by block. A rank without examples left therefore runs idle passes until the last one is done
(`in_step`), so that uneven shares and sequences that end early cannot leave anybody waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from expunge.core.model import Batch, Model, Network, Wrapper
from expunge.core.predictions import Predictions, weights_of
from expunge.core.question import (
    DerivedQuestion,
    Question,
    Reply,
    RowQuestion,
    RowsReply,
    Scores,
    Text,
)
from expunge.primitives.class_scores import Head, widen
from expunge.runtime.answer_store import AnswerStore, Entry, Recall, store_of_environment
from expunge.runtime.cached_model import CachedModel
from expunge.runtime.processes import all_reduce, barrier, is_main, rank, world_size
from expunge.runtime.sharding import shard_over_processes

Hold = Literal["whole", "cut"]
"""What each rank holds of a network that is audited: all of it, or a shard."""


@dataclass(frozen=True)
class ParallelModel(Network):
    """A network that all ranks call together, in the same order, without gradients."""

    whole: Network
    hold: Hold = "whole"
    parts: Network | None = None
    """The same network, sharded already, where there is one."""
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    """Context in which the shards are called, so that they answer as the whole does."""

    @cached_property
    def local(self) -> Network:
        """The network that this rank calls. A sharded one is made at the first call, and `whole` may be on another
        device."""
        if self.parts is not None and self.module is self.whole.module:
            return self.parts
        network = self.whole if self.module is self.whole.module else self.whole.fork(self.module)
        return shard_over_processes(network) if self.hold == "cut" else network

    def ask(self, question: Question[Reply], batch: Batch) -> Reply:
        with self.around():
            if isinstance(question, Text):
                return cast(Reply, self._write_texts(question, batch))
            if isinstance(question, DerivedQuestion):
                return cast(Reply, self._in_groups(question, batch))
            return cast(Reply, self._in_shares(cast(RowQuestion[Any], question), batch))

    def answers_to(self, kind: type[Question[Any]]) -> bool:
        return self.whole.answers_to(kind)

    def ask_alone(self, question: Question[Reply], batch: Batch) -> Reply:
        """The reply about this rank's own share of a batch, while the other ranks read theirs."""
        with self.around():
            return self.local.ask(question, batch)

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        return self.local.batches(examples)

    def head(self) -> Head | None:
        for module in sharded_roots(self.local):
            module.unshard()
        return self.local.head()

    def settings(self) -> str:
        device = next(self.local.module.parameters()).device.type
        return self.whole.settings() + (f"\n{device}" if device != self.device.type else "")

    def save(self, folder: Path) -> None:
        self.whole.save(folder)

    def give_back(self) -> None:
        """Free this rank's shard; the next call makes it again."""
        self.__dict__.pop("local", None)

    def _in_groups(self, question: DerivedQuestion[RowsReply], examples: Batch) -> RowsReply:
        """The reply about any number of examples, numbers for each row: groups of examples are dealt out."""
        ends = torch.cumsum(torch.tensor([example.rows for example in examples]), 0).tolist()
        names = [f.name for f in fields(question.reply) if f.name not in ("example", "examples", "share", "weights")]
        table = torch.zeros(len(names), ends[-1], dtype=torch.float64)
        with without_gradients(), in_step(self.local, lambda: self.local.ask(Scores(), examples[:1])):
            for group in list(self.local.batches(examples))[rank() :: world_size()]:
                reply = question.derive(self.local.ask(Scores(), [examples[k] for k in group]))
                for k, one in zip(group, question.split(reply), strict=True):
                    own = one.tensors()
                    rows = slice(ends[k] - len(one.labels), ends[k])
                    table[:, rows] = torch.stack([own[name].to(table) for name in names])
        wide = widen(next(self.module.parameters()).new_empty(0)).dtype
        whole = dict(zip(names, all_reduce(table), strict=True))
        tensors = {name: values.to(WHOLE_NUMBERS.get(name, wide)) for name, values in whole.items()}
        return _reply(question, tensors, torch.tensor([example.rows for example in examples]), examples)

    def _in_shares(self, question: RowQuestion[RowsReply], batch: Batch) -> RowsReply:
        """The reply about a batch of which each rank reads a share: one forward pass each, even for an empty share."""
        start, end = len(batch) * rank() // world_size(), len(batch) * (rank() + 1) // world_size()
        with without_gradients():
            reply = self.local.ask(question, batch[start:end] or batch[:1])
        sizes = torch.zeros(len(batch), dtype=torch.long)
        if end > start:
            sizes[start:end] = reply.counts().cpu()
        sizes = all_reduce(sizes)
        first = int(sizes[:start].sum())
        tensors = {}
        for name, own in reply.tensors().items():
            wide = (
                torch.float64
                if own.dtype == torch.float64
                else torch.float32
                if own.is_floating_point()
                else torch.long
            )
            whole = torch.zeros(int(sizes.sum()), *own.shape[1:], dtype=wide)
            if end > start:
                whole[first : first + len(own)] = own.cpu().to(wide)
            tensors[name] = all_reduce(whole).to(own)
        common = {"labels", "example", "examples", "share", "weights", "head", *tensors}
        others = {f.name: vars(reply)[f.name] for f in fields(reply) if f.name not in common}  # such as Routes' layers
        made = _reply(question, tensors, sizes.to(reply.labels.device), batch, **others)
        return replace(made, head=self.head()) if isinstance(made, Predictions) else made

    def _write_texts(self, question: Text, prompts: Batch) -> list[str]:
        mine = range(rank(), len(prompts), world_size())
        if sharded_roots(self.local):
            self._run_idle_pass()  # FSDP2 allocates its tensors in the first pass; generation is in inference mode
        with in_step(self.local, self._run_idle_pass):
            begun = tuple(question.begun[k] for k in mine) if question.begun else ()
            texts = self.local.ask(replace(question, begun=begun), [prompts[k] for k in mine])
        return gather_texts({k: text for k, text in zip(mine, texts, strict=True)}, len(prompts))

    def _run_idle_pass(self) -> None:
        token = torch.zeros(1, 1, dtype=torch.long, device=next(self.local.module.parameters()).device)
        with without_gradients():
            self.local.module(input_ids=token, use_cache=False)


WHOLE_NUMBERS = {"labels": torch.long, "rank": torch.long, "right": torch.bool}
"""Types of the fields of replies that are not floating-point numbers."""


def _reply(
    question: RowQuestion[RowsReply], tensors: Mapping[str, Tensor], sizes: Tensor, batch: Batch, **others: Any
) -> RowsReply:
    """A reply about a whole batch; `sizes`: rows of each example."""
    owner = torch.arange(len(batch), device=sizes.device).repeat_interleave(sizes)
    made = question.reply(
        example=owner, examples=len(batch), share=None, weights=weights_of(batch), **{**tensors, **others}
    )
    return cast(RowsReply, made)


def ask_together(network: Network, hold: Hold = "whole") -> Network:
    """The network, called by all ranks together; with one process the network itself."""
    return network if world_size() == 1 else ParallelModel(network.module, network, hold)


def ask_parts_together(
    network: Network, parts: Network, around: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Network:
    """The network, called by all ranks together through `parts`, which is sharded over them already."""
    return network if world_size() == 1 else ParallelModel(network.module, network, "whole", parts, around)


def give_back(model: Model) -> None:
    """Free this rank's shard of a network that was sharded for an audit; the next call shards it again."""
    if isinstance(model, ParallelModel):
        model.give_back()


def sharded_roots(network: Network) -> Sequence[FSDPModule]:
    """The outermost FSDP module, which each forward pass enters once; empty where the network is not sharded."""
    return [each for each in network.module.modules() if isinstance(each, FSDPModule)][:1]


@contextmanager
def without_gradients() -> Iterator[None]:
    """No gradients, but not inference mode: FSDP2 would allocate tensors there that later passes cannot write to."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def in_step(network: Network, idle: Callable[[], object]) -> Iterator[None]:
    """Within the block each rank calls `network` as often as it needs to; then it calls `idle`, one forward pass, until
    all ranks are done.

    Before each pass an all-reduce counts the ranks that still have work.
    """
    barrier()
    done = False

    def announce(*_: object) -> None:
        if not done:
            all_reduce(torch.ones(1))

    hooks = [root.register_forward_pre_hook(announce, prepend=True) for root in sharded_roots(network)]  # type: ignore[attr-defined]
    try:
        yield
        done = True
        while hooks and all_reduce(torch.zeros(1)):
            idle()
    finally:
        for hook in hooks:
            hook.remove()
    barrier()


def gather_texts(mine: Mapping[int, str], many: int) -> list[str]:
    """The texts of all ranks, in the order of their numbers."""
    encoded = {k: text.encode("utf-8", "surrogatepass") for k, text in mine.items()}
    sizes = all_reduce(torch.tensor([len(encoded.get(k, b"")) for k in range(many)]))
    ends = torch.cumsum(sizes, 0).tolist()
    letters = torch.zeros(ends[-1], dtype=torch.uint8)
    for k, text in encoded.items():
        letters[ends[k] - len(text) : ends[k]] = torch.tensor(list(text), dtype=torch.uint8)
    written = bytes(all_reduce(letters).tolist())
    return [
        written[end - size : end].decode("utf-8", "surrogatepass")
        for size, end in zip(sizes.tolist(), ends, strict=True)
    ]


# Answers of the original model


@dataclass(frozen=True)
class SharedStore:
    """A store that rank 0 reads and writes for all ranks."""

    store: AnswerStore

    def get(self, wanted: Sequence[bytes]) -> dict[bytes, Entry]:
        """The entries that exist, by the bytes of everything that they depend on."""
        there = self.store.get(wanted) if is_main() else {}
        packed = {
            f"{wanted.index(key)} {name}": part.contiguous()
            for key, entry in there.items()
            for name, part in entry.items()
        }
        barrier()
        found: dict[bytes, Entry] = {}
        for name, part in load(_broadcast_bytes(save(packed) if is_main() else b"")).items():
            number, _, name = name.partition(" ")
            found.setdefault(wanted[int(number)], {})[name] = part
        return found

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Store `entries`."""
        if is_main():
            self.store.put(entries)


def shared_store() -> Recall | None:
    """The store that `EXPUNGE_CACHE` names, read by rank 0 for all."""
    store = store_of_environment()
    return store if store is None or world_size() == 1 else SharedStore(store)


def _broadcast_bytes(data: bytes) -> bytes:
    """Broadcast bytes from rank 0."""
    size = all_reduce(torch.tensor(len(data)))
    table = torch.zeros(int(size), dtype=torch.uint8)
    if is_main():
        table = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(table, 0)
    return table.numpy().tobytes()


def cache_reference(
    before: Network, parts: Network, around: Callable[[], AbstractContextManager[None]] = nullcontext
) -> CachedModel:
    """The original model with a cache, in one process or in all."""
    return CachedModel(ask_parts_together(before, parts, around), shared_store())


@dataclass(frozen=True)
class SharedReference(Wrapper):
    """A cached model for one rank's share of a step: all ranks ask about the whole step, and each takes its own share.

    So all ranks have the same cache entries, and the network is always called by all of them.
    """

    inner: CachedModel
    sets: Mapping[str, Batch]
    """All examples of this micro-batch, over all ranks."""
    transparent: ClassVar[bool] = True

    def ask(self, question: Question[Reply], batch: Batch) -> Reply:
        owner = {id(example): examples for examples in self.sets.values() for example in examples}
        strange = any(id(example) not in owner for example in batch)
        if not isinstance(question, Scores) or strange or self.inner.is_wide(batch):
            return self._network.ask_alone(question, batch)
        whole = list({id(e): e for each in batch for e in owner[id(each)]}.values())
        parts = question.split(self.inner.ask(question, whole))
        replies = {id(example): part for example, part in zip(whole, parts, strict=True)}
        # FSDP frees and refills the head's memory from step to step.
        reply = replace(question.join([replies[id(e)] for e in batch]), head=self._network.head())
        return cast(Reply, reply)

    @property
    def _network(self) -> ParallelModel:
        assert isinstance(self.inner.inner, ParallelModel)
        return self.inner.inner


def share_reference(known: CachedModel, sets: Mapping[str, Batch]) -> Model:
    """The original model for one rank's share of a step; with one process the cached model itself."""
    return SharedReference(known, sets) if world_size() > 1 else known
