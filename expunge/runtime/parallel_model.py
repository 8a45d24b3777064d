"""A network that all processes ask together: what is asked is dealt out, and answers come back in their order.

Each process holds the whole network, or a part of it (`cut`): then a pass of one is a pass of all, since they hand each
other weights block by block. Who has nothing left to read therefore goes on calling the network until the last is done
(`in_step`), so that uneven shares, sequences that end early and drafts of any length cannot make anybody wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from expunge.core.model import Batch, Model, Network, Wrapper
from expunge.core.predictions import Predictions, weights_of
from expunge.core.question import (
    LogProbabilities,
    Question,
    Reply,
    RowQuestion,
    RowsReply,
    RowStatistics,
    Scores,
    Text,
)
from expunge.primitives.class_scores import Head, widened
from expunge.runtime.answer_store import AnswerStore, Entry, Recall, store_of_environment
from expunge.runtime.cached_model import CachedModel
from expunge.runtime.processes import all_reduce, barrier, is_main, rank, world_size
from expunge.runtime.sharding import shard_over_processes

Hold = Literal["whole", "cut"]
"""What each of several processes holds of a network that is audited: all of it, or a part."""


@dataclass(frozen=True)
class ParallelModel(Network):
    """A network asked by all processes together, in the same order. Reads without gradients."""

    whole: Network
    hold: Hold = "whole"
    parts: Network | None = None
    """The same network cut already, where there is one."""
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    """Within what the parts are asked, so that they answer as the whole does."""

    @cached_property
    def asked(self) -> Network:
        """What this process calls; a cut one is made when it is first asked, from a whole that may lie elsewhere."""
        if self.parts is not None and self.module is self.whole.module:
            return self.parts
        network = self.whole if self.module is self.whole.module else self.whole.fork(self.module)
        return shard_over_processes(network) if self.hold == "cut" else network

    def ask(self, question: Question[Reply], batch: Batch) -> Reply:
        with self.around():
            if isinstance(question, Text):
                return self._written(question, batch)  # type: ignore[return-value]
            if isinstance(question, LogProbabilities | RowStatistics):
                return self._in_groups(question, batch)
            return self._in_shares(question, batch)

    def answers_to(self, kind: type[Question[Any]]) -> bool:
        return self.whole.answers_to(kind)

    def ask_alone(self, question: Question[Reply], batch: Batch) -> Reply:
        """What this process's network says of its own share of a batch, while the others ask theirs."""
        with self.around():
            return self.asked.ask(question, batch)

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        return self.asked.batches(examples)

    def head(self) -> Head | None:
        for module in sharded_roots(self.asked):
            module.unshard()
        return self.asked.head()

    def settings(self) -> str:
        device = next(self.asked.module.parameters()).device.type
        return self.whole.settings() + (f"\n{device}" if device != self.device.type else "")

    def save(self, folder: Path) -> None:
        self.whole.save(folder)

    def give_back(self) -> None:
        """Give back the memory of this process's part; asked again, it is made anew."""
        self.__dict__.pop("asked", None)

    def _in_groups(self, question: RowQuestion[RowsReply], examples: Batch) -> RowsReply:
        """The reply about any number of examples, numbers for each row: groups of examples are dealt out."""
        ends = torch.cumsum(torch.tensor([example.rows for example in examples]), 0).tolist()
        names = [f.name for f in fields(question.reply) if f.name not in ("example", "examples", "share", "weights")]
        table = torch.zeros(len(names), ends[-1], dtype=torch.float64)
        with without_gradients(), in_step(self.asked, lambda: self.asked.ask(Scores(), examples[:1])):
            for group in list(self.asked.batches(examples))[rank() :: world_size()]:
                reply = self.asked.ask(question, [examples[k] for k in group])
                for k, one in zip(group, question.split(reply), strict=True):
                    own = one.tensors()
                    rows = slice(ends[k] - len(one.labels), ends[k])
                    table[:, rows] = torch.stack([own[name].to(table) for name in names])
        wide = widened(next(self.module.parameters()).new_empty(0)).dtype
        whole = dict(zip(names, all_reduce(table), strict=True))
        tensors = {name: values.to(WHOLE_NUMBERS.get(name, wide)) for name, values in whole.items()}
        return _reply(question, tensors, torch.tensor([example.rows for example in examples]), examples)

    def _in_shares(self, question: RowQuestion[RowsReply], batch: Batch) -> RowsReply:
        """The reply about a batch of which each process reads a share: one pass for each, be its share empty."""
        start, end = len(batch) * rank() // world_size(), len(batch) * (rank() + 1) // world_size()
        with without_gradients():
            reply = self.asked.ask(question, batch[start:end] or batch[:1])
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
        return replace(made, head=self.head()) if isinstance(made, Predictions) else made  # type: ignore[return-value]

    def _written(self, question: Text, prompts: Batch) -> list[str]:
        mine = range(rank(), len(prompts), world_size())
        if sharded_roots(self.asked):
            self._pass_idly()  # FSDP2 makes its tensors in its first pass, and writing is done in inference mode
        with in_step(self.asked, self._pass_idly):
            begun = tuple(question.begun[k] for k in mine) if question.begun else ()
            texts = self.asked.ask(replace(question, begun=begun), [prompts[k] for k in mine])
        return gather_texts({k: text for k, text in zip(mine, texts, strict=True)}, len(prompts))

    def _pass_idly(self) -> None:
        token = torch.zeros(1, 1, dtype=torch.long, device=next(self.asked.module.parameters()).device)
        with without_gradients():
            self.asked.module(input_ids=token, use_cache=False)


WHOLE_NUMBERS = {"labels": torch.long, "rank": torch.long, "right": torch.bool}
"""Types of what a row is answered with, where they are no floating-point numbers."""


def _reply(
    question: RowQuestion[RowsReply], tensors: Mapping[str, Tensor], sizes: Tensor, batch: Batch, **others: Any
) -> RowsReply:
    """A reply about a whole batch; `sizes`: rows of each example."""
    owner = torch.arange(len(batch), device=sizes.device).repeat_interleave(sizes)
    made: Any = question.reply(
        example=owner, examples=len(batch), share=None, weights=weights_of(batch), **tensors, **others
    )
    return made


def ask_together(network: Network, hold: Hold = "whole") -> Network:
    """The network, asked by all processes together; one alone: itself."""
    return network if world_size() == 1 else ParallelModel(network.module, network, hold)


def ask_parts_together(
    network: Network, parts: Network, around: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Network:
    """The network asked by all processes together, by its `parts`, which are cut over them already."""
    return network if world_size() == 1 else ParallelModel(network.module, network, "whole", parts, around)


def give_back(model: Model) -> None:
    """Give back what this process holds of a network cut to be asked; asked again, it is cut anew."""
    if isinstance(model, ParallelModel):
        model.give_back()


def sharded_roots(network: Network) -> list[FSDPModule]:
    """The outermost module that is cut, which each pass goes through once; none of a network that is whole."""
    return [each for each in network.module.modules() if isinstance(each, FSDPModule)][:1]


@contextmanager
def without_gradients() -> Iterator[None]:
    """No gradients, but outside of inference mode: there FSDP2 would make tensors that no other pass may write to."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def in_step(network: Network, idle: Callable[[], object]) -> Iterator[None]:
    """In here each process calls `network` as often as it needs to, and `idle`, one pass, until the others are done.

    Before each pass all say whether they are at work; a process that is not looks whether anybody is.
    """
    barrier()
    done = False

    def tell(*_: object) -> None:
        if not done:
            all_reduce(torch.ones(1))

    hooks = [root.register_forward_pre_hook(tell, prepend=True) for root in sharded_roots(network)]  # type: ignore[attr-defined]
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
    """The texts of all processes, by their numbers."""
    said = {k: text.encode("utf-8", "surrogatepass") for k, text in mine.items()}
    sizes = all_reduce(torch.tensor([len(said.get(k, b"")) for k in range(many)]))
    ends = torch.cumsum(sizes, 0).tolist()
    letters = torch.zeros(ends[-1], dtype=torch.uint8)
    for k, text in said.items():
        letters[ends[k] - len(text) : ends[k]] = torch.tensor(list(text), dtype=torch.uint8)
    written = bytes(all_reduce(letters).tolist())
    return [
        written[end - size : end].decode("utf-8", "surrogatepass")
        for size, end in zip(sizes.tolist(), ends, strict=True)
    ]


# What was said before


@dataclass(frozen=True)
class SharedStore:
    """A store that the first process reads and writes for all, so that all know the same."""

    store: AnswerStore

    def get(self, wanted: Sequence[bytes]) -> dict[bytes, Entry]:
        """The entries that are there, by what they depend on."""
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
        """Keep `entries`."""
        if is_main():
            self.store.put(entries)


def shared_store() -> Recall | None:
    """The store that the environment names, read by one process for all."""
    store = store_of_environment()
    return store if store is None or world_size() == 1 else SharedStore(store)


def _broadcast_bytes(data: bytes) -> bytes:
    """What the first process has, for all."""
    size = all_reduce(torch.tensor(len(data)))
    table = torch.zeros(int(size), dtype=torch.uint8)
    if is_main():
        table = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(table, 0)
    return table.numpy().tobytes()


def cache_reference(
    before: Network, parts: Network, around: Callable[[], AbstractContextManager[None]] = nullcontext
) -> CachedModel:
    """The model before, asked about each example once: by one process or by all."""
    return CachedModel(ask_parts_together(before, parts, around), shared_store())


@dataclass(frozen=True)
class SharedReference(Wrapper):
    """A cached model of which one process asks its share: all ask for the whole step, and each takes its own.

    So all know the same at any time, and none is alone in having to call the network.
    """

    inner: CachedModel
    sets: Mapping[str, Batch]
    """All examples of this part of the step."""
    transparent: ClassVar[bool] = True

    def ask(self, question: Question[Reply], batch: Batch) -> Reply:
        owner = {id(example): examples for examples in self.sets.values() for example in examples}
        strange = any(id(example) not in owner for example in batch)
        if not isinstance(question, Scores) or strange or self.inner.is_wide(batch):
            return self._network.ask_alone(question, batch)
        whole = list({id(e): e for each in batch for e in owner[id(each)]}.values())
        parts = question.split(self.inner.ask(question, whole))
        said = {id(example): part for example, part in zip(whole, parts, strict=True)}
        # Its memory is given back and filled again from step to step.
        return replace(question.join([said[id(e)] for e in batch]), head=self._network.head())  # type: ignore[type-var]

    @property
    def _network(self) -> ParallelModel:
        assert isinstance(self.inner.inner, ParallelModel)
        return self.inner.inner


def share_reference(known: CachedModel, sets: Mapping[str, Batch]) -> Model:
    """The model before, for one process's share of a step; one alone: as it is."""
    return SharedReference(known, sets) if world_size() > 1 else known
