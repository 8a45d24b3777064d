"""A model that is asked each question once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from expunge.core.errors import ModelRefused
from expunge.core.model import Batch, Model, Network, Speaker
from expunge.core.predictions import Hidden, Predictions, RowScores
from expunge.core.request import Example
from expunge.internals.mixtures import Routes, routed
from expunge.runtime.answer_store import Entry, Recall

ROOM = 1 << 30
"""Bytes of last hidden states that are kept in memory at most; beyond that the model is asked again."""

WIDEST = 1 << 14
"""Numbers of a row's states that are kept at most."""

T = TypeVar("T")


@dataclass
class CachedModel(Speaker):
    """A model that is asked each question once: every audit of a text reads the same pass, and so does every epoch.

    Only for a model that does not change meanwhile. Answers are kept by example, generations by example and length,
    and of predictions the last hidden states. With a `store`, a later run finds them again.
    """

    model: Model
    store: Recall | None = None
    known: dict[int, tuple[Example, RowScores]] = field(default_factory=dict)
    said: dict[tuple[int, int], tuple[Example, str]] = field(default_factory=dict)
    seen: dict[int, tuple[Example, Predictions]] = field(default_factory=dict)
    wide: bool = False
    """Whether a row's states are too many to be kept: class scores of a large vocabulary."""
    found: int = 0
    """How many questions the store answered."""

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        return self.model.batches(examples)

    def predict(self, batch: Batch) -> Predictions:
        """As the model does; without gradients, from memory."""
        if torch.is_grad_enabled() or not isinstance(self.model, Network) or self.wide:
            return self.model.predict(batch)
        if not self.seen and self.model.head() is None:  # class scores: kept where they are few, as a classifier's
            said = self.model.predict(batch)
            self.wide = said.states.shape[-1] > WIDEST
            if self.wide:
                return said
        new = _unknown(batch, self.seen)
        if new:
            self.seen |= {id(e): (e, part) for e, part in zip(new, self._read(new), strict=True)}
        parts = [self.seen[id(e)][1] for e in batch]
        if sum(p.states.numel() * p.states.element_size() for _, p in self.seen.values()) > ROOM:
            self.seen.clear()
        return Predictions.join(parts)

    def hidden(self, batch: Batch, layer: int | None = None) -> Hidden:
        """As the model's own; asked anew each time."""
        if not isinstance(self.model, Network):
            raise ModelRefused(f"{type(self.model).__name__} has no hidden states that can be read.")
        return self.model.hidden(batch, layer)

    def routes(self, batch: Batch, layer: int | None = None) -> Routes:
        """As the model's own; asked anew each time."""
        return routed(self.model, batch, layer)

    def answers(self, examples: Batch) -> RowScores:
        new = _unknown(examples, self.known)
        if new:
            # The example is kept beside its answer so that its id() cannot be given to another one.
            self.known |= {id(e): (e, part) for e, part in zip(new, self._answer(new), strict=True)}
        return RowScores.join([self.known[id(e)][1] for e in examples], list(range(len(examples))))

    def generate(self, prompts: Batch, max_new_tokens: int, sure: Sequence[int] = ()) -> list[str]:
        """As the model does; what its answers have shown that it writes anyway is not written again."""
        new = [e for e in {id(e): e for e in prompts}.values() if (id(e), max_new_tokens) not in self.said]
        if new:
            texts = self._write(new, max_new_tokens)
            self.said |= {(id(e), max_new_tokens): (e, text) for e, text in zip(new, texts, strict=True)}
        return [self.said[id(e), max_new_tokens][1] for e in prompts]

    @property
    def speaks(self) -> bool:
        """Whether the model asked can generate."""
        return isinstance(self.model, Speaker)

    @cached_property
    def identity(self) -> bytes | None:
        """All that the model's answers depend on beside the question; None where there is no store to ask."""
        return self.model.identity() if self.store and isinstance(self.model, Network) else None

    def _read(self, new: list[Example]) -> list[Predictions]:
        network = self.model
        assert isinstance(network, Network)
        head = network.head()

        def ask(examples: list[Example]) -> list[Predictions]:
            said = network.predict(examples).detach()
            return [replace(part, share=None) for part in said.cut([1] * len(examples))]

        def back(entry: Entry) -> Predictions:
            labels, states = (entry[name].to(network.device) for name in ("labels", "states"))
            return Predictions(labels, torch.zeros_like(labels), 1, None, states, head)

        return self._stored("states", new, ask, lambda p: {"labels": p.labels, "states": p.states}, back)

    def _answer(self, new: list[Example]) -> list[RowScores]:
        def back(entry: Entry) -> RowScores:
            labels = entry["labels"]
            return RowScores(
                labels=labels,
                example=torch.zeros_like(labels),
                examples=1,
                share=None,
                log_probs=entry["log_probs"],
                right=entry["right"],
            )

        return self._stored(
            "answers",
            new,
            lambda examples: self.model.answers(examples).parts(),
            lambda a: {"labels": a.labels, "log_probs": a.log_probs, "right": a.right},
            back,
        )

    def _write(self, new: list[Example], max_new_tokens: int) -> list[str]:
        speaker = self.model
        assert isinstance(speaker, Speaker)

        def entry(text: str) -> Entry:
            return {"text": torch.tensor(list(text.encode()), dtype=torch.uint8)}

        return self._stored(
            f"text {max_new_tokens}",
            new,
            lambda examples: speaker.generate(examples, max_new_tokens, [self._sure(e) for e in examples]),
            entry,
            lambda e: bytes(e["text"].tolist()).decode(),
        )

    def _sure(self, example: Example) -> int:
        """How many rows of the example's own answer come first, one after the other, by greedy choice."""
        asked = getattr(example, "asked", ())
        if id(example) not in self.known or not asked or example.tokens[: example.first] != asked:  # type: ignore[attr-defined]
            return 0  # a lead stands between the prompt and what was read
        return int(self.known[id(example)][1].right.int().cumprod(0).sum())

    def _stored(
        self,
        kind: str,
        new: list[Example],
        ask: Callable[[list[Example]], Sequence[T]],
        pack: Callable[[T], dict[str, Tensor]],
        back: Callable[[Entry], T],
    ) -> list[T]:
        """What the store has of `new`; the rest is asked, and kept there."""
        if self.store is None or self.identity is None:
            return list(ask(new))
        keys = [b"|".join((self.identity, kind.encode(), example.exact())) for example in new]
        there = self.store.get(keys)
        self.found += len(there)
        absent = [(key, example) for key, example in zip(keys, new, strict=True) if key not in there]
        made: dict[bytes, T] = {}
        if absent:
            asked = ask([example for _, example in absent])
            made = {key: value for (key, _), value in zip(absent, asked, strict=True)}
            self.store.put({key: pack(value) for key, value in made.items()})
        return [back(there[key]) if key in there else made[key] for key in keys]


def _unknown(examples: Batch, known: dict[int, tuple[Example, T]]) -> list[Example]:
    """Those of `examples` that are not known, each once."""
    return list({id(e): e for e in examples if id(e) not in known}.values())
