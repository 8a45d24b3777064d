"""A network that all processes ask together: what is asked is dealt out, and answers come back in their order.

Each process holds the whole network, or a part of it (`cut`): then a pass of one is a pass of all, since they hand each
other weights block by block. Who has nothing left to read therefore goes on calling the network until the last is done
(`in_step`), so that uneven shares, sequences that end early and drafts of any length cannot make anybody wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch.distributed.fsdp import FSDPModule

from expunge.core.model import Batch, Model, Network, Speaker
from expunge.core.predictions import Hidden, Predictions, RowScores
from expunge.core.rows import Head, widened
from expunge.runtime.answer_store import Entry, Recall, Store, kept
from expunge.runtime.cached_model import CachedModel
from expunge.runtime.processes import all_reduce, barrier, is_main, rank, shard_over_processes, world_size

Hold = Literal["whole", "cut"]
"""What each of several processes holds of a network that is audited: all of it, or a part."""


@dataclass(frozen=True)
class ParallelModel(Network):
    """A network asked by all processes together, in the same order. Reads without gradients."""

    whole: Network
    hold: Hold = "whole"
    parts: Network | None = None
    """The same network cut already, where there is one."""

    @cached_property
    def asked(self) -> Network:
        """What this process calls; a cut one is made when it is first asked, from a whole that may lie elsewhere."""
        if self.parts is not None and self.module is self.whole.module:
            return self.parts
        network = self.whole if self.module is self.whole.module else self.whole.fork(self.module)
        return shard_over_processes(network) if self.hold == "cut" else network

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        return self.asked.batches(examples)

    def answers(self, examples: Batch) -> RowScores:
        sizes = torch.tensor([example.rows for example in examples])
        ends = torch.cumsum(sizes, 0).tolist()
        table = torch.zeros(3, ends[-1], dtype=torch.float64)
        with plainly(), in_step(self.asked, lambda: self.asked.predict(examples[:1])):
            for group in list(self.batches(examples))[rank() :: world_size()]:
                said = self.asked.predict([examples[k] for k in group]).answers()
                for k, one in zip(group, said.parts(), strict=True):
                    table[:, ends[k] - len(one.labels) : ends[k]] = torch.stack(
                        [one.labels.cpu(), one.log_probs.cpu(), one.right.cpu()]
                    )
        labels, log_probs, right = all_reduce(table)
        return RowScores(
            labels=labels.long(),
            example=torch.arange(len(examples)).repeat_interleave(sizes),
            examples=len(examples),
            share=None,
            log_probs=log_probs.to(widened(next(self.module.parameters()).new_empty(0)).dtype),
            right=right.bool(),
        )

    def predict(self, batch: Batch) -> Predictions:
        said = self._dealt(batch, self.asked.predict)
        return Predictions(said.labels, said.example, said.examples, None, said.states, self.head())

    def hidden(self, batch: Batch, layer: int | None = None) -> Hidden:
        return self._dealt(batch, lambda examples: self.asked.hidden(examples, layer))

    def head(self) -> Head | None:
        for module in roots(self.asked):
            module.unshard()
        return self.asked.head()

    def settings(self) -> str:
        device = next(self.asked.module.parameters()).device.type
        return self.whole.settings() + (f"\n{device}" if device != self.device.type else "")

    def save(self, folder: Path) -> None:
        self.whole.save(folder)

    def rest(self) -> None:
        """Give back the memory of this process's part; asked again, it is made anew."""
        self.__dict__.pop("asked", None)

    def _dealt(self, batch: Batch, read: Callable[[Batch], Predictions | Hidden]) -> Hidden:
        """The states of a batch of which each process reads a share: one pass for each, be its share empty."""
        start, end = len(batch) * rank() // world_size(), len(batch) * (rank() + 1) // world_size()
        sizes = torch.tensor([example.rows for example in batch])
        bounds = [0, *torch.cumsum(sizes, 0).tolist()]
        with plainly():
            said = read(batch[start:end] or batch[:1])
        labels = torch.zeros(bounds[-1], dtype=torch.long)
        states = torch.zeros(bounds[-1], said.states.shape[-1], dtype=widened(said.states[:0]).dtype)
        if end > start:
            rows = slice(bounds[start], bounds[end])
            labels[rows], states[rows] = said.labels.cpu(), said.states.cpu().to(states.dtype)
        return Hidden(
            labels=all_reduce(labels).to(said.labels.device),
            example=torch.arange(len(batch), device=said.labels.device).repeat_interleave(sizes.to(said.labels.device)),
            examples=len(batch),
            share=None,
            states=all_reduce(states).to(said.states),
        )


@dataclass(frozen=True)
class ParallelSpeaker(ParallelModel, Speaker):
    """The same for a network that can write."""

    def generate(self, prompts: Batch, max_new_tokens: int, sure: Sequence[int] = ()) -> list[str]:
        assert isinstance(self.asked, Speaker)
        mine = range(rank(), len(prompts), world_size())
        if roots(self.asked):
            self._idle()  # FSDP2 makes its tensors in its first pass, and writing is done in inference mode
        with in_step(self.asked, self._idle):
            own = [sure[k] for k in mine] if sure else ()
            texts = self.asked.generate([prompts[k] for k in mine], max_new_tokens, own)
        return gathered({k: text for k, text in zip(mine, texts, strict=True)}, len(prompts))

    def _idle(self) -> None:
        token = torch.zeros(1, 1, dtype=torch.long, device=next(self.asked.module.parameters()).device)
        with plainly():
            self.asked.module(input_ids=token, use_cache=False)


def spread(network: Network, hold: Hold = "whole", parts: Network | None = None) -> Network:
    """The network, asked by all processes together; one alone: itself."""
    if world_size() == 1:
        return network
    kind = ParallelSpeaker if isinstance(parts or network, Speaker) else ParallelModel
    return kind(network.module, network, hold, parts)


def rest(model: Model) -> None:
    """Give back what this process holds of a network cut to be asked; asked again, it is cut anew."""
    if isinstance(model, ParallelModel):
        model.rest()


def roots(network: Network) -> list[FSDPModule]:
    """The outermost module that is cut, which each pass goes through once; none of a network that is whole."""
    return [each for each in network.module.modules() if isinstance(each, FSDPModule)][:1]


@contextmanager
def plainly() -> Iterator[None]:
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

    hooks = [root.register_forward_pre_hook(tell, prepend=True) for root in roots(network)]  # type: ignore[attr-defined]
    try:
        yield
        done = True
        while hooks and all_reduce(torch.zeros(1)):
            idle()
    finally:
        for hook in hooks:
            hook.remove()
    barrier()


def gathered(mine: Mapping[int, str], many: int) -> list[str]:
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
class Common:
    """A store that the first process reads and writes for all, so that all know the same."""

    store: Store

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
        for name, part in load(_handed(save(packed) if is_main() else b"")).items():
            number, _, name = name.partition(" ")
            found.setdefault(wanted[int(number)], {})[name] = part
        return found

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Keep `entries`."""
        if is_main():
            self.store.put(entries)


def common() -> Recall | None:
    """The store that the environment names, read by one process for all."""
    store = kept()
    return store if store is None or world_size() == 1 else Common(store)


def _handed(data: bytes) -> bytes:
    """What the first process has, for all."""
    size = all_reduce(torch.tensor(len(data)))
    table = torch.zeros(int(size), dtype=torch.uint8)
    if is_main():
        table = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(table, 0)
    return table.numpy().tobytes()


def remembered(before: Network, reference: Network) -> CachedModel:
    """The model before, asked about each example once: by one process or by all."""
    return CachedModel(spread(before, parts=reference), common())


@dataclass(frozen=True)
class SharedReference(Model):
    """A model that all processes remember, asked for one's share: they ask for the whole step, and each takes its own.

    So all know the same at any time, and none is alone in having to call the network.
    """

    known: CachedModel
    sets: Mapping[str, Batch]
    """All examples of this part of the step."""

    def predict(self, batch: Batch) -> Predictions:
        owner = {id(example): examples for examples in self.sets.values() for example in examples}
        if self.known.wide or any(id(example) not in owner for example in batch):
            return self._network.asked.predict(batch)
        whole = list({id(e): e for each in batch for e in owner[id(each)]}.values())
        said = self.known.predict(whole).cut([1] * len(whole))
        parts = {id(example): part for example, part in zip(whole, said, strict=True)}
        # Its memory is given back and filled again from step to step.
        return replace(Predictions.join([parts[id(e)] for e in batch]), head=self._network.head())

    def hidden(self, batch: Batch, layer: int | None = None) -> Hidden:
        """As the network's own; asked anew each time."""
        return self._network.asked.hidden(batch, layer)

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        return self.known.batches(examples)

    @property
    def _network(self) -> ParallelModel:
        assert isinstance(self.known.model, ParallelModel)
        return self.known.model


def dealt(known: CachedModel, sets: Mapping[str, Batch]) -> Model:
    """The model before, for one process's share of a step; one alone: as it is."""
    return SharedReference(known, sets) if world_size() > 1 else known
